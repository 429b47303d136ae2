//! Indices in files: safetensors, with the format's version and a checksum in the metadata.
//!
//! A file appears whole under its name or not at all. Nothing in it is trusted when it is read: types, shapes, the order of clusters and
//! positions, and that every number is finite.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype as FileDtype, SafeTensors, TensorView as FileView};
use tempfile::Builder;

use super::error::{Error, Result};
use super::index::{Head, Index};
use super::level::Level;
use super::options::{IndexOptions, Variance};
use super::rows::{Data, Rows};
use crate::cpu::KEY_GROUP;
use crate::problem::Problem;

const FORMAT: &str = "sample-attention squeeze index";

/// Of the format that is written, and the only one that is read.
const VERSION: u32 = 1;

impl Index {
    /// Writes the index to `path`, in place of what may lie there: safetensors, little-endian. The file is written beside it under another name and
    /// renamed once it is complete.
    ///
    /// # Errors
    /// [`Error::Io`]; what lay at `path` is as it was then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let failed = |error: &dyn std::fmt::Display| Error::Io {
            path: path.display().to_string(),
            why: error.to_string(),
        };
        let tensors = self.tensors();
        let mut metadata = metadata(&self.options);
        let sum = checksum(&tensors, &metadata);
        metadata.insert("checksum".to_owned(), sum);
        let views = tensors
            .iter()
            .map(|(name, tensor)| {
                let view = FileView::new(tensor.dtype, tensor.shape.clone(), tensor.bytes);
                Ok((name.clone(), view.map_err(|error| failed(&error))?))
            })
            .collect::<Result<Vec<_>>>()?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mut builder = Builder::new();
        builder.prefix(".squeeze-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // As for any new file, the umask takes its part away.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let temporary = builder
            .tempfile_in(folder)
            .map_err(|error| failed(&error))?;
        safetensors::serialize_to_file(views, Some(metadata), temporary.path())
            .map_err(|error| failed(&error))?;
        let written = File::open(temporary.path()).and_then(|file| file.sync_all());
        written.map_err(|error| failed(&error))?;
        temporary
            .persist(path)
            .map_err(|error| failed(&error.error))?;
        Ok(())
    }

    /// Reads an index that [`Index::save`] wrote. It takes the file's size in memory besides the index while it reads.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Foreign`], [`Error::Version`] and [`Error::Damaged`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = || path.display().to_string();
        let failed = |error: std::io::Error| Error::Io {
            path: name(),
            why: error.to_string(),
        };
        if !fs::metadata(path).map_err(failed)?.is_file() {
            return Err(Error::Foreign {
                path: name(),
                why: "it is not a regular file".to_owned(),
            });
        }
        let bytes = fs::read(path).map_err(failed)?;
        let foreign = |why: String| Error::Foreign { path: name(), why };
        let (_, header) =
            SafeTensors::read_metadata(&bytes).map_err(|error| foreign(error.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("format").is_none_or(|format| format != FORMAT) {
            return Err(foreign(format!("its metadata does not say `{FORMAT}`")));
        }
        let version = metadata.get("version").cloned().unwrap_or_default();
        if version != VERSION.to_string() {
            return Err(Error::Version {
                path: name(),
                given: version,
                expected: VERSION,
            });
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|error| foreign(error.to_string()))?;
        read(&file, &metadata).map_err(|why| Error::Damaged { path: name(), why })
    }

    /// The tensors by name, in the order of their names.
    fn tensors(&self) -> Vec<(String, Plain<'_>)> {
        let (heads, len, dim) = (self.kv_heads(), self.len(), self.head_dim());
        let mut tensors = Vec::new();
        for (name, rows) in [("k", &self.keys), ("v", &self.values)] {
            let (dtype, bytes) = match rows.data() {
                Data::F32(data) => (FileDtype::F32, bytemuck::cast_slice(data)),
                Data::F16(data) => (FileDtype::F16, bytemuck::cast_slice(data)),
                Data::Bf16(data) => (FileDtype::BF16, bytemuck::cast_slice(data)),
            };
            let shape = vec![heads, len, dim];
            tensors.push((
                name.to_owned(),
                Plain {
                    dtype,
                    shape,
                    bytes,
                },
            ));
        }
        for (index, head) in self.heads.iter().enumerate() {
            tensors.push((
                format!("head.{index}.positions"),
                Plain::of_u32(&head.positions),
            ));
            let coarse = head.coarse.as_ref().map(|level| ("coarse", level));
            for (level_name, level) in [("fine", &head.fine)].into_iter().chain(coarse) {
                let name = |part: &str| format!("head.{index}.{level_name}.{part}");
                let clusters = level.len();
                tensors.push((name("rows"), Plain::of_u32(&level.rows)));
                if !level.children.is_empty() {
                    tensors.push((name("children"), Plain::of_u32(&level.children)));
                }
                tensors.push((name("means"), Plain::of_rows(&level.means, clusters, dim)));
                tensors.push((name("spread"), Plain::of_f32(&level.spread)));
                tensors.push((name("profile"), Plain::of_f32(&level.profile)));
                if !level.variances.is_empty() {
                    let variances = Plain::of_rows(&level.variances, clusters, dim);
                    tensors.push((name("variances"), variances));
                }
            }
        }
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    }
}

/// A tensor as it lies in the file.
struct Plain<'a> {
    dtype: FileDtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Plain<'a> {
    fn of_u32(data: &'a [u32]) -> Self {
        Plain {
            dtype: FileDtype::U32,
            shape: vec![data.len()],
            bytes: bytemuck::cast_slice(data),
        }
    }

    fn of_f32(data: &'a [f32]) -> Self {
        Plain {
            dtype: FileDtype::F32,
            shape: vec![data.len()],
            bytes: bytemuck::cast_slice(data),
        }
    }

    /// Rows without those that fill up a group.
    fn of_rows(data: &'a [f32], rows: usize, dim: usize) -> Self {
        Plain {
            shape: vec![rows, dim],
            ..Plain::of_f32(&data[..rows * dim])
        }
    }
}

fn metadata(options: &IndexOptions) -> HashMap<String, String> {
    let coarse = options.coarse_ratio.map_or("none".to_owned(), exact);
    [
        ("format", FORMAT.to_owned()),
        ("version", VERSION.to_string()),
        ("cluster_ratio", exact(options.cluster_ratio)),
        ("coarse_ratio", coarse),
        ("sinks", options.sinks.to_string()),
        ("window", options.window.to_string()),
        ("span", options.span.to_string()),
        ("rounds", options.rounds.to_string()),
        ("seed", options.seed.to_string()),
        ("variance", options.variance.name().to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// A ratio such that reading it gives the same bits.
fn exact(ratio: f32) -> String {
    format!("{ratio:?}")
}

/// FNV-1a over the options, and names and bytes of the tensors, eight bytes a step: it finds damage, not forgery.
fn checksum(tensors: &[(String, Plain<'_>)], metadata: &HashMap<String, String>) -> String {
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        let (words, rest) = bytes.as_chunks::<8>();
        let rest = rest.iter().map(|&byte| u64::from(byte));
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        for word in words.chain(rest).chain([bytes.len() as u64]) {
            // The rotation carries high bits down, which a product alone does not.
            sum = (sum ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(29);
        }
    };
    let mut options: Vec<_> = metadata
        .iter()
        .filter(|(key, _)| *key != "checksum")
        .collect();
    options.sort();
    for (key, value) in options {
        add(key.as_bytes());
        add(value.as_bytes());
    }
    for (name, tensor) in tensors {
        add(name.as_bytes());
        add(tensor.bytes);
    }
    format!("{sum:016x}")
}

/// What a damaged file lacks, in words.
type Why<T> = Result<T, String>;

fn read(file: &SafeTensors<'_>, metadata: &HashMap<String, String>) -> Why<Index> {
    let mut names: Vec<&str> = file.names();
    names.sort_unstable();
    let found: Vec<(String, FileView<'_>)> = names
        .iter()
        .map(|name| {
            Ok((
                (*name).to_owned(),
                file.tensor(name).map_err(|error| error.to_string())?,
            ))
        })
        .collect::<Why<_>>()?;
    let plain: Vec<(String, Plain<'_>)> = found
        .iter()
        .map(|(name, view)| {
            let tensor = Plain {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                bytes: view.data(),
            };
            (name.clone(), tensor)
        })
        .collect();
    if metadata.get("checksum") != Some(&checksum(&plain, metadata)) {
        return Err("its checksum is another".to_owned());
    }
    let parts = Parts {
        file,
        options: options(metadata)?,
    };
    parts.index()
}

fn options(metadata: &HashMap<String, String>) -> Why<IndexOptions> {
    fn number<T: std::str::FromStr>(metadata: &HashMap<String, String>, key: &str) -> Why<T> {
        let value = metadata.get(key).and_then(|value| value.parse().ok());
        value.ok_or_else(|| format!("its metadata has no valid `{key}`"))
    }
    let coarse_ratio = match metadata.get("coarse_ratio").map(String::as_str) {
        Some("none") => None,
        _ => Some(number(metadata, "coarse_ratio")?),
    };
    let variance = [Variance::Profile, Variance::PerDimension]
        .into_iter()
        .find(|variance| {
            metadata
                .get("variance")
                .is_some_and(|name| name == variance.name())
        })
        .ok_or("its metadata has no valid `variance`")?;
    let options = IndexOptions {
        cluster_ratio: number(metadata, "cluster_ratio")?,
        coarse_ratio,
        sinks: number(metadata, "sinks")?,
        window: number(metadata, "window")?,
        span: number(metadata, "span")?,
        rounds: number(metadata, "rounds")?,
        seed: number(metadata, "seed")?,
        variance,
    };
    options.validate().map_err(|error| error.to_string())?;
    Ok(options)
}

/// A file that is being checked.
struct Parts<'a> {
    file: &'a SafeTensors<'a>,
    options: IndexOptions,
}

impl Parts<'_> {
    fn index(&self) -> Why<Index> {
        let (keys, values) = (self.rows("k")?, self.rows("v")?);
        if (values.heads(), values.len(), values.dim(), values.dtype())
            != (keys.heads(), keys.len(), keys.dim(), keys.dtype())
        {
            return Err("`k` and `v` differ in shape or type".to_owned());
        }
        Problem::causal(keys.len(), keys.dim(), keys.dtype())
            .with_heads(keys.heads(), keys.heads())
            .validate()
            .map_err(|error| error.to_string())?;
        let outside = Index::outside_positions(&self.options, keys.len());
        let heads = (0..keys.heads())
            .map(|head| {
                self.head(head, &keys, &outside)
                    .map_err(|why| format!("head {head}: {why}"))
            })
            .collect::<Why<_>>()?;
        Ok(Index {
            options: self.options,
            keys,
            values,
            outside: outside.len(),
            heads,
        })
    }

    fn head(&self, head: usize, keys: &Rows, outside: &[u32]) -> Why<Head> {
        let positions = self.u32s(&format!("head.{head}.positions"))?;
        if positions.len() != keys.len() {
            return Err("`positions` has another length than the keys".to_owned());
        }
        if positions[..outside.len()] != *outside {
            return Err("`positions` does not begin with sinks and window".to_owned());
        }
        let mut seen = vec![false; keys.len()];
        for &position in &positions {
            match seen.get_mut(position as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(format!("position {position} is out of range or repeated")),
            }
        }
        let fine = self.level(head, "fine", keys.dim())?;
        let is_division = |bounds: &[u32], first: usize, last: usize| {
            bounds.first() == Some(&(first as u32))
                && bounds.last() == Some(&(last as u32))
                && bounds.is_sorted_by(|a, b| a < b)
        };
        if !is_division(&fine.rows, outside.len(), keys.len()) {
            return Err("`fine.rows` does not divide the rows".to_owned());
        }
        let ascends =
            |run: &[u32]| positions[run[0] as usize..run[1] as usize].is_sorted_by(|a, b| a < b);
        if !fine.rows.windows(2).all(ascends) {
            return Err("positions of a cluster do not ascend".to_owned());
        }
        let coarse = match self.options.coarse_ratio {
            None => None,
            Some(_) => Some(self.level(head, "coarse", keys.dim())?),
        };
        if let Some(coarse) = &coarse {
            if !is_division(&coarse.children, 0, fine.len()) {
                return Err("`coarse.children` does not divide the clusters".to_owned());
            }
            let rows = coarse.children.iter().map(|&at| fine.rows[at as usize]);
            if !rows.eq(coarse.rows.iter().copied()) {
                return Err("`coarse.rows` does not fit `coarse.children`".to_owned());
            }
        }
        Ok(Head {
            positions,
            fine,
            coarse,
        })
    }

    /// A level whose arrays have lengths that fit each other.
    fn level(&self, head: usize, level: &str, dim: usize) -> Why<Level> {
        let name = |part: &str| format!("head.{head}.{level}.{part}");
        let rows = self.u32s(&name("rows"))?;
        let children = match level {
            "coarse" => self.u32s(&name("children"))?,
            _ => Vec::new(),
        };
        let clusters = rows.len().checked_sub(1).ok_or("`rows` is empty")?;
        if level == "coarse" && children.len() != rows.len() {
            return Err("`children` and `rows` differ in length".to_owned());
        }
        if !rows.is_sorted() {
            return Err("`rows` does not ascend".to_owned());
        }
        let padded = |mut data: Vec<f32>| {
            data.resize((clusters + KEY_GROUP) * dim, 0.0);
            data
        };
        let means = padded(self.f32s(&name("means"), &[clusters, dim])?);
        let not_negative = |part: &str, shape: &[usize]| -> Why<Vec<f32>> {
            let data = self.f32s(&name(part), shape)?;
            match data.iter().all(|&x| x >= 0.0) {
                true => Ok(data),
                false => Err(format!("`{part}` has negative variances")),
            }
        };
        let spread = not_negative("spread", &[clusters])?;
        let profile = not_negative("profile", &[dim])?;
        let variances = match self.options.variance {
            Variance::Profile => Vec::new(),
            Variance::PerDimension => padded(not_negative("variances", &[clusters, dim])?),
        };
        let counts = rows.windows(2).map(|run| f64::from(run[1] - run[0]));
        Ok(Level {
            log2_counts: counts.map(|count| count.log2() as f32).collect(),
            rows,
            children,
            means,
            spread,
            profile,
            variances,
        })
    }

    fn tensor(&self, name: &str) -> Why<FileView<'_>> {
        let tensor = self.file.tensor(name);
        tensor.map_err(|_| format!("it has no tensor `{name}`"))
    }

    fn u32s(&self, name: &str) -> Why<Vec<u32>> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() != FileDtype::U32 || tensor.shape().len() != 1 {
            return Err(format!("`{name}` is not a list of u32"));
        }
        let words = tensor.data().as_chunks::<4>().0.iter();
        Ok(words.map(|&word| u32::from_le_bytes(word)).collect())
    }

    fn f32s(&self, name: &str, shape: &[usize]) -> Why<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.dtype() != FileDtype::F32 || tensor.shape() != shape {
            return Err(format!("`{name}` is not f32 of shape {shape:?}"));
        }
        let words = tensor.data().as_chunks::<4>().0.iter();
        let data: Vec<f32> = words.map(|&word| f32::from_le_bytes(word)).collect();
        match data.iter().all(|x| x.is_finite()) {
            true => Ok(data),
            false => Err(format!("`{name}` has numbers that are not finite")),
        }
    }

    /// Keys or values, finite.
    fn rows(&self, name: &str) -> Why<Rows> {
        let tensor = self.tensor(name)?;
        let shape: [usize; 3] = tensor
            .shape()
            .try_into()
            .map_err(|_| format!("`{name}` has not three dimensions"))?;
        let bytes = tensor.data();
        let halves = || bytes.as_chunks::<2>().0.iter().copied();
        let words = || bytes.as_chunks::<4>().0.iter().copied();
        let (data, finite) = match tensor.dtype() {
            FileDtype::F32 => {
                let data: Vec<f32> = words().map(f32::from_le_bytes).collect();
                let finite = data.iter().all(|x| x.is_finite());
                (Data::F32(data), finite)
            }
            FileDtype::F16 => {
                let data: Vec<f16> = halves().map(f16::from_le_bytes).collect();
                let finite = data.iter().all(|x| x.is_finite());
                (Data::F16(data), finite)
            }
            FileDtype::BF16 => {
                let data: Vec<bf16> = halves().map(bf16::from_le_bytes).collect();
                let finite = data.iter().all(|x| x.is_finite());
                (Data::Bf16(data), finite)
            }
            other => return Err(format!("`{name}` is {other:?}, not F32, F16 or BF16")),
        };
        if !finite {
            return Err(format!("`{name}` has numbers that are not finite"));
        }
        Ok(Rows::from_data(data, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::TensorView;

    fn index() -> Index {
        let data: Vec<f32> = (0..2 * 400 * 8).map(|x| (x as f32 * 0.7).sin()).collect();
        let view = TensorView::bhsd(&data, [1, 2, 400, 8]).unwrap();
        Index::build(&view, &view, IndexOptions::default()).unwrap()
    }

    /// The checksum is right in each of these files: only their content is not.
    fn refused(change: impl FnOnce(&mut Index), why: &str) {
        let mut index = index();
        change(&mut index);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        index.save(&path).unwrap();
        match Index::load(&path) {
            Err(Error::Damaged { why: said, .. }) => assert!(said.contains(why), "{said}"),
            other => panic!("{why}: {:?}", other.map(|_| "loaded")),
        }
    }

    #[test]
    fn contents_that_do_not_fit_each_other_are_refused() {
        refused(|index| index.heads[1].positions[200] = 400, "out of range");
        refused(
            |index| {
                let positions = &mut index.heads[1].positions;
                positions[200] = positions[201];
            },
            "repeated",
        );
        refused(
            |index| index.heads[0].positions.swap(0, 1),
            "sinks and window",
        );
        refused(
            |index| {
                let head = &mut index.heads[0];
                let run = head.run(0);
                head.positions[run].reverse();
            },
            "ascend",
        );
        refused(|index| index.heads[0].fine.rows[2] = 0, "ascend");
        refused(
            |index| index.heads[0].fine.rows[0] = 0,
            "`fine.rows` does not divide",
        );
        refused(
            |index| *index.heads[0].fine.rows.last_mut().unwrap() = u32::MAX,
            "`fine.rows` does not divide",
        );
        refused(
            |index| index.heads[0].fine.means[3] = f32::NAN,
            "not finite",
        );
        refused(|index| index.heads[1].fine.spread[0] = -1.0, "negative");
        refused(
            |index| index.heads[1].coarse.as_mut().unwrap().children[1] = 900,
            "`coarse.children`",
        );
        refused(
            |index| {
                let coarse = index.heads[1].coarse.as_mut().unwrap();
                coarse.rows[1] += 1;
            },
            "`coarse.rows`",
        );
        refused(|index| index.heads[1].coarse = None, "no tensor");
        refused(|index| index.options.rounds = 0, "rounds");
        refused(|index| index.options.sinks = 3, "sinks and window");
        refused(
            |index| {
                let Data::F32(data) = index.keys.data_mut() else {
                    unreachable!()
                };
                data[5] = f32::INFINITY;
            },
            "`k` has numbers that are not finite",
        );
    }
}
