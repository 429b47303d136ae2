//! The index of a fixed context: its keys and values permuted by cluster, and statistics of the clusters.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::check::{check_dtype, check_finite, check_fixed};
use super::cluster::{Method, Ordered, Span};
use super::division::Division;
use super::error::{Error, Result};
use super::level::Level;
use super::options::IndexOptions;
use super::rows::{Origin, Rows, read};
use crate::cpu::InstructionSet;
use crate::dtype::Dtype;
use crate::tensor::TensorView;

/// The clustered keys and values of a fixed context, for one layer.
///
/// Keys and values are [1, kv_heads, length, head_dim], with the rotary embedding applied. The index owns them, permuted: for each
/// head first what stays outside of clusters (sinks and the last window), then cluster after cluster, so that a kept cluster is
/// a contiguous run. Attention over keys that are all visible does not depend on their order.
///
/// The same keys give the same index to the bit, whatever the number of threads, on machines with the same instruction set.
///
/// # Memory
/// [`Index::bytes`]: keys and values in their own type, 4 bytes a key and head for positions, and for each cluster 4 · head_dim + 12 bytes
/// (as much again with [`Variance::PerDimension`](super::Variance::PerDimension)). With the default 5 % + 1 % clusters and bf16 keys of 128 elements that is 1.07
/// times the keys and values alone.
///
/// ```
/// use sample_attention::TensorView;
/// use sample_attention::squeeze::{Index, IndexOptions};
/// let data = vec![0.25f32; 2 * 1000 * 64];
/// let fixed = TensorView::bhsd(&data, [1, 2, 1000, 64])?;
/// let index = Index::build(&fixed, &fixed, IndexOptions::default())?;
/// assert_eq!((index.len(), index.outside()), (1000, 16 + 128));
/// # Ok::<(), sample_attention::squeeze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    pub(super) options: IndexOptions,
    pub(super) keys: Rows,
    pub(super) values: Rows,
    /// First rows of every head that are in no cluster.
    pub(super) outside: usize,
    pub(super) heads: Vec<Head>,
}

/// One key/value head.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    /// Position of each row.
    pub(super) positions: Vec<u32>,
    pub(super) fine: Level,
    pub(super) coarse: Option<Level>,
}

impl Index {
    /// Clusters the keys of a fixed context, on the threads of the current rayon pool.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::Batch`], [`Error::Shape`], [`Error::Dtype`], [`Error::NonFinite`], and sizes that no
    /// [`Problem`](crate::Problem) has.
    pub fn build(k: &TensorView<'_>, v: &TensorView<'_>, options: IndexOptions) -> Result<Self> {
        Index::build_watched(k, v, options, &|_, _| {})
    }

    /// As [`Index::build`]; `progress` is told of each span of a head that is clustered, with the number of all, from the threads that
    /// did it.
    ///
    /// # Errors
    /// As [`Index::build`].
    pub fn build_watched(
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        options: IndexOptions,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        options.validate()?;
        check_fixed(k, v)?;
        let [_, heads, len, _] = k.shape();
        let division = Division::new(&options, len);
        let clustered = division.sinks..division.window_start;
        let origins: Vec<Vec<Origin>> =
            vec![clustered.clone().map(|p| (0, p as u32)).collect(); heads];
        check_finite("k", k, division.outside_positions(), 0)?;
        check_finite("v", v, 0..len, 0)?;
        let spans = cluster(&[*k], clustered.start, &origins, options, progress)?;
        let outside: Vec<Origin> = division
            .outside_positions()
            .map(|p| (0, p as u32))
            .collect();
        Index::assemble(
            [&[*k], &[*v]],
            options,
            vec![Old::default(); heads],
            (&outside, division),
            (clustered.start, &origins, spans),
        )
    }

    /// Adds text to the end of the fixed context: keys and values [1, kv_heads, more, head_dim] at the positions after the last. What
    /// was the window is clustered with it, but for the new window. Clusters that were there stay as they are, so that the result differs
    /// from an index of the whole by where its spans begin. Each call makes clusters of its own, so append whole passages, not token by token.
    ///
    /// It makes a new copy of the keys and values: until it returns there are two.
    ///
    /// # Errors
    /// As [`Index::build`]; the index is as it was then.
    pub fn append(&mut self, k: &TensorView<'_>, v: &TensorView<'_>) -> Result<()> {
        check_fixed(k, v)?;
        let [_, heads, more, dim] = k.shape();
        let expected = [1, self.kv_heads(), more, self.head_dim()];
        if [1, heads, more, dim] != expected {
            return Err(Error::Shape {
                tensor: "k",
                expected,
                given: k.shape(),
            });
        }
        check_dtype("k", self.dtype(), k.dtype())?;
        check_finite("k", k, 0..more, self.len())?;
        check_finite("v", v, 0..more, self.len())?;
        let before = Division::new(&self.options, self.len());
        let after = Division::new(&self.options, self.len() + more);
        // Old window and new text; a context that had no clusters may have had fewer sinks.
        let first = before.window_start.max(after.sinks);
        let origin = |position: usize| -> Origin {
            match position.checked_sub(before.len) {
                Some(token) => (1, token as u32),
                None => (0, before.row(position) as u32),
            }
        };
        let origins: Vec<Vec<Origin>> =
            vec![(first..after.window_start).map(origin).collect(); heads];
        let (old_keys, old_values) = (self.keys.view()?, self.values.view()?);
        let spans = cluster(&[old_keys, *k], first, &origins, self.options, &|_, _| {})?;
        let outside: Vec<Origin> = after.outside_positions().map(origin).collect();
        let old = self.heads.iter().map(|head| Old::of(head, self.outside));
        *self = Index::assemble(
            [&[old_keys, *k], &[old_values, *v]],
            self.options,
            old.collect(),
            (&outside, after),
            (first, &origins, spans),
        )?;
        Ok(())
    }

    /// Puts rows in order and measures the clusters.
    fn assemble(
        [keys, values]: [&[TensorView<'_>]; 2],
        options: IndexOptions,
        old: Vec<Old>,
        (outside, division): (&[Origin], Division),
        (first, origins, spans): (usize, &[Vec<Origin>], Vec<Vec<Ordered>>),
    ) -> Result<Self> {
        let mut order = Vec::new();
        let mut parts = Vec::new();
        for ((old, origins), spans) in old.into_iter().zip(origins).zip(spans) {
            let mut rows = outside.to_vec();
            let mut positions: Vec<u32> = division.outside_positions().map(|p| p as u32).collect();
            let mut boundaries = vec![rows.len() as u32];
            let mut families = vec![0u32];
            rows.extend(old.rows.clone().map(|row| (0, row as u32)));
            positions.extend_from_slice(&old.positions);
            extend_with_sizes(&mut boundaries, &old.sizes);
            extend_with_sizes(&mut families, &old.children);
            let mut start = 0;
            for span in spans {
                for &key in &span.order {
                    let key = start + key as usize;
                    rows.push(origins[key]);
                    positions.push((first + key) as u32);
                }
                start += span.order.len();
                extend_with_sizes(&mut boundaries, &span.sizes);
                extend_with_sizes(&mut families, &span.children);
            }
            order.push(rows);
            parts.push((positions, boundaries, families));
        }
        let keys = Rows::gathered(keys, &order);
        let values = Rows::gathered(values, &order);
        let heads = parts
            .into_iter()
            .enumerate()
            .map(|(head, (positions, boundaries, families))| {
                Head::measure(&keys, head, positions, boundaries, families, &options)
            })
            .collect();
        Ok(Index {
            options,
            keys,
            values,
            outside: division.outside(),
            heads,
        })
    }

    /// How it was built.
    pub fn options(&self) -> &IndexOptions {
        &self.options
    }

    /// Positions of the fixed context.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no positions; no index is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.keys.heads()
    }

    /// Elements of a key or value.
    pub fn head_dim(&self) -> usize {
        self.keys.dim()
    }

    /// Element type of keys and values.
    pub fn dtype(&self) -> Dtype {
        self.keys.dtype()
    }

    /// Positions of each head that are in no cluster and attended to by every query: sinks and the last window.
    pub fn outside(&self) -> usize {
        self.outside
    }

    /// Of [`Index::outside`], the last positions of the context: those whose queries calibrate.
    pub fn window(&self) -> usize {
        let division = Division::new(&self.options, self.len());
        division.len - division.window_start
    }

    /// Clusters of a key/value head.
    ///
    /// # Panics
    /// For a head that the index does not have; so do the other methods that take one.
    pub fn clusters(&self, kv_head: usize) -> usize {
        self.heads[kv_head].fine.len()
    }

    /// Clusters of the coarse level; 0 where there is one level.
    pub fn coarse_clusters(&self, kv_head: usize) -> usize {
        self.heads[kv_head].coarse.as_ref().map_or(0, Level::len)
    }

    /// Positions of the keys of a cluster, ascending.
    ///
    /// # Panics
    /// For a head or a cluster that the index does not have.
    pub fn positions(&self, kv_head: usize, cluster: usize) -> &[u32] {
        let head = &self.heads[kv_head];
        &head.positions[head.run(cluster)]
    }

    /// Positions of the keys of a coarse cluster, those of one fine cluster after the other.
    ///
    /// # Panics
    /// For a head or a cluster that the index does not have.
    pub fn coarse_positions(&self, kv_head: usize, cluster: usize) -> &[u32] {
        let head = &self.heads[kv_head];
        let level = head.coarse.as_ref().expect("the index has two levels");
        &head.positions[level.rows[cluster] as usize..level.rows[cluster + 1] as usize]
    }

    /// Mean of a cluster's keys, and their variance's mean over the dimensions.
    ///
    /// # Panics
    /// For a head or a cluster that the index does not have.
    pub fn mean(&self, kv_head: usize, cluster: usize) -> (&[f32], f32) {
        let fine = &self.heads[kv_head].fine;
        let dim = self.head_dim();
        (&fine.means[cluster * dim..][..dim], fine.spread[cluster])
    }

    /// Bytes that the index holds.
    pub fn bytes(&self) -> usize {
        let heads = self.heads.iter().map(|head| {
            let coarse = head.coarse.as_ref().map_or(0, Level::bytes);
            4 * head.positions.len() + head.fine.bytes() + coarse
        });
        self.keys.bytes() + self.values.bytes() + heads.sum::<usize>()
    }

    /// Bytes that [`Index::build`] works in beyond its inputs and the index, at most: for `threads` spans at a time the keys in f32, twice, and
    /// what the clustering holds for each key. Saturates.
    pub fn build_workspace_bytes(
        options: &IndexOptions,
        len: usize,
        head_dim: usize,
        kv_heads: usize,
        threads: usize,
    ) -> usize {
        let span = options.span.min(len);
        let at_once = threads.min(kv_heads.saturating_mul(len.div_ceil(span.max(1))));
        // Beside the spans, where the rows of all heads come from and the orders within spans.
        let orders = 48usize.saturating_mul(len).saturating_mul(kv_heads);
        Method::workspace_bytes(options, span, head_dim)
            .saturating_mul(at_once.max(1))
            .saturating_add(orders)
    }

    /// Whether the index holds exactly these keys and values, bit for bit up to the sign of zeros.
    pub fn holds(&self, k: &TensorView<'_>, v: &TensorView<'_>) -> bool {
        let shape = [1, self.kv_heads(), self.len(), self.head_dim()];
        let fits = |view: &TensorView<'_>| view.shape() == shape && view.dtype() == self.dtype();
        if !fits(k) || !fits(v) {
            return false;
        }
        let mut own = vec![0.0; self.head_dim()];
        let mut given = own.clone();
        let mut same = |rows: &Rows, view, head, row, position: u32| {
            rows.read(head, row, &mut own);
            read(view, (0, head, position as usize), &mut given);
            own == given
        };
        self.heads.iter().enumerate().all(|(head, of_head)| {
            let mut rows = of_head.positions.iter().enumerate();
            rows.all(|(row, &position)| {
                same(&self.keys, k, head, row, position)
                    && same(&self.values, v, head, row, position)
            })
        })
    }

    /// Positions in no cluster of a context of `len`, ascending.
    #[cfg(feature = "index-files")]
    pub(super) fn outside_positions(options: &IndexOptions, len: usize) -> Vec<u32> {
        let division = Division::new(options, len);
        division.outside_positions().map(|p| p as u32).collect()
    }
}

impl Head {
    pub(super) fn measure(
        keys: &Rows,
        head: usize,
        positions: Vec<u32>,
        boundaries: Vec<u32>,
        families: Vec<u32>,
        options: &IndexOptions,
    ) -> Self {
        let coarse = (options.coarse_ratio.is_some()).then(|| {
            let rows = families.iter().map(|&cluster| boundaries[cluster as usize]);
            Level::measure(
                keys,
                head,
                rows.collect(),
                families.clone(),
                options.variance,
            )
        });
        Head {
            positions,
            fine: Level::measure(keys, head, boundaries, Vec::new(), options.variance),
            coarse,
        }
    }

    /// Rows of a cluster.
    pub(super) fn run(&self, cluster: usize) -> Range<usize> {
        self.fine.rows[cluster] as usize..self.fine.rows[cluster + 1] as usize
    }
}

/// What an index had of a head before text was added.
#[derive(Clone, Default)]
struct Old {
    rows: Range<usize>,
    positions: Vec<u32>,
    sizes: Vec<u32>,
    children: Vec<u32>,
}

impl Old {
    fn of(head: &Head, outside: usize) -> Self {
        let sizes = |bounds: &[u32]| bounds.windows(2).map(|run| run[1] - run[0]).collect();
        Old {
            rows: outside..head.positions.len(),
            positions: head.positions[outside..].to_vec(),
            sizes: sizes(&head.fine.rows),
            children: head
                .coarse
                .as_ref()
                .map_or(Vec::new(), |level| sizes(&level.children)),
        }
    }
}

fn extend_with_sizes(boundaries: &mut Vec<u32>, sizes: &[u32]) {
    let mut end = *boundaries.last().expect("begins with one");
    for size in sizes {
        end += size;
        boundaries.push(end);
    }
}

/// Clusters all spans of all heads; `origins[head]` are the keys from position `first` on.
fn cluster(
    sources: &[TensorView<'_>],
    first: usize,
    origins: &[Vec<Origin>],
    options: IndexOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Vec<Vec<Ordered>>> {
    let spans: Vec<(usize, usize, &[Origin])> = origins
        .iter()
        .enumerate()
        .flat_map(|(head, origins)| {
            let chunks = origins.chunks(options.span.min(origins.len().max(1)));
            chunks
                .enumerate()
                .map(move |(chunk, origins)| (head, chunk.saturating_mul(options.span), origins))
        })
        .collect();
    let done = AtomicUsize::new(0);
    // Where there are spans for all threads, each works on its own; else all work on one after the other.
    let parallel = spans.len() < 2 * rayon::current_num_threads();
    let method = Method {
        options,
        instruction_set: InstructionSet::widest(),
        parallel,
    };
    let work = |&(head, start, origins): &(usize, usize, &[Origin])| {
        let ordered = method.cluster(&Span {
            sources,
            head,
            first: first + start,
            origins,
        });
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, spans.len());
        ordered
    };
    // The first error in the order of heads and positions, whatever the threads did first.
    let ordered: Vec<Result<Ordered>> = if parallel {
        spans.iter().map(work).collect()
    } else {
        spans.par_iter().with_max_len(1).map(work).collect()
    };
    let mut heads: Vec<Vec<Ordered>> = origins.iter().map(|_| Vec::new()).collect();
    for (span, ordered) in spans.iter().zip(ordered) {
        heads[span.0].push(ordered?);
    }
    Ok(heads)
}
