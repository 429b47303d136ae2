//! Ragged batches of sequences, packed or paged, in the emulator.

use sample_attention_device::abi::{KvTensor, LseTensor, Sequences, SparseMask};
use sample_attention_device::gpu::{Global, emu};
use sample_attention_device::params::{BLOCK, TensorArg};
use sample_attention_device::sparse_flash::SparseFlashParams;

use super::case::{Case, Kernel};
use super::oracle::Inputs;
use super::run::{Outcome, attend};

/// How the keys of a batch lie in pages.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    pub page: usize,
    /// \[pages, page, kv_heads, head_dim\], K and V side by side in each token; else \[pages, kv_heads, page, head_dim\].
    pub interleaved: bool,
    /// A CSR table; else one row a sequence.
    pub csr: bool,
    /// One length a sequence; else cumulative lengths.
    pub lens_each: bool,
}

/// Sequences that share everything but their lengths and data.
pub struct Batch {
    /// Each alone: batch 1.
    pub cases: Vec<Case>,
    pub inputs: Vec<Inputs>,
    pub paging: Option<Paging>,
}

const NAN: u16 = 0xffff;

impl Batch {
    /// Sequences of these lengths, each with data of its own.
    pub fn new(alike: &Case, lens: &[(usize, usize)], mask: impl Fn(Case) -> Case) -> Self {
        let cases: Vec<Case> = lens
            .iter()
            .map(|&(q_len, k_len)| {
                mask(Case {
                    q_len,
                    k_len,
                    ..alike.clone()
                })
            })
            .collect();
        let inputs = cases.iter().enumerate().map(|(i, case)| {
            let mut inputs = Inputs::random(case);
            for tensor in [&mut inputs.q, &mut inputs.k, &mut inputs.v] {
                let len = tensor.len().max(1);
                tensor.rotate_left(37 * i % len);
            }
            inputs
        });
        Batch {
            inputs: inputs.collect(),
            cases,
            paging: None,
        }
    }

    fn starts(&self, len: impl Fn(&Case) -> usize) -> Vec<u32> {
        let mut starts = vec![0];
        for case in &self.cases {
            starts.push(starts.last().unwrap() + len(case) as u32);
        }
        starts
    }

    /// Runs the batch; what it wrote, by sequence. Sequences for which `poisoned` have NaN in every input.
    pub fn run(&self, poisoned: impl Fn(usize) -> bool, mode: emu::Mode) -> Vec<Outcome> {
        let case = &self.cases[0];
        self.run_by(poisoned, |device, params, extents| {
            attend(device, case.kernel, case.dtype, params, extents, mode)
        })
    }

    /// The same by kernels of the caller's.
    pub fn run_by(
        &self,
        poisoned: impl Fn(usize) -> bool,
        kernels: impl FnOnce(&mut emu::Gpu, SparseFlashParams, [[u32; 3]; 2]) -> Result<(), emu::Fault>,
    ) -> Vec<Outcome> {
        let mut device = emu::Gpu::new();
        let case = &self.cases[0];
        let (dim, q_heads, kv_heads) = (case.head_dim, case.q_heads, case.kv_heads);
        let cu_q = self.starts(|case| case.q_len);
        let cu_k = self.starts(|case| case.k_len);
        let total_q = *cu_q.last().unwrap() as usize;
        let bits = |sequence: usize, x: f32| {
            if poisoned(sequence) {
                NAN
            } else {
                case.dtype.round(x)
            }
        };
        // [total, heads, head_dim] of one tensor.
        let pack = |tensor: fn(&Inputs) -> &Vec<f32>, heads: usize, starts: &[u32]| -> Vec<u16> {
            let mut packed = vec![NAN; *starts.last().unwrap() as usize * heads * dim];
            for (i, inputs) in self.inputs.iter().enumerate() {
                let tokens = (starts[i + 1] - starts[i]) as usize;
                for (row, data) in tensor(inputs).chunks_exact(dim).enumerate() {
                    let token = starts[i] as usize + row % tokens;
                    let at = (token * heads + row / tokens) * dim;
                    for (to, &x) in packed[at..at + dim].iter_mut().zip(data) {
                        *to = bits(i, x);
                    }
                }
            }
            packed
        };
        let packed = |address: Global<u16>, heads: usize| TensorArg {
            address: address.cast(),
            stride_batch: 0,
            stride_head: dim as u64,
            stride_token: (heads * dim) as u64,
        };
        let q = device.upload("q", &pack(|inputs| &inputs.q, q_heads, &cu_q));
        let [k, v] = [
            pack(|inputs| &inputs.k, kv_heads, &cu_k),
            pack(|inputs| &inputs.v, kv_heads, &cu_k),
        ];
        let (k, v, of_kv, k_lens) = match self.paging {
            None => {
                let [k, v] = [("k", k), ("v", v)].map(|(name, data)| {
                    let address = device.upload(name, &data).address();
                    KvTensor::strided(packed(address, kv_heads))
                });
                let total_k = cu_k.last().unwrap();
                (k, v, [1, kv_heads as u32, *total_k], None)
            }
            Some(paging) => self.page(&mut device, paging, [&k, &v], &cu_k),
        };
        let o = device.alloc::<u16>("o", total_q * q_heads * dim);
        let lse = device.alloc::<f32>("lse", total_q * q_heads);
        let longest = |len: fn(&Case) -> usize| self.cases.iter().map(len).max().unwrap() as u32;
        let sequences = Sequences {
            count: self.cases.len() as u32,
            max_q: longest(|case| case.q_len) + 3,
            max_k: longest(|case| case.k_len) + 130,
            total_q: total_q as u32 + 5,
            causal: case.causal.into(),
            k_lens_each: k_lens.is_some().into(),
            cu_q: device.upload("cu_q", &cu_q).address(),
            cu_k: match k_lens {
                Some(lens) => device.upload("k_lens", &lens).address(),
                None => device.upload("cu_k", &cu_k).address(),
            },
        };
        let params = SparseFlashParams {
            sequences,
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: dim as u32,
            scale_log2: case.softmax_scale * std::f32::consts::LOG2_E,
            output_f32: 0,
            q: packed(q.address(), q_heads),
            k,
            v,
            o: packed(o.address(), q_heads),
            lse: LseTensor {
                address: lse.address(),
                stride_batch: 0,
                stride_head: total_q as u64,
            },
            mask: self.mask(&mut device, &sequences, &cu_q),
        };
        let of_q = [1, q_heads as u32, total_q as u32];
        kernels(&mut device, params, [of_q, of_kv]).unwrap_or_else(|fault| panic!("{fault}"));
        let (o, lse) = (device.read(&o), device.read(&lse));
        (0..self.cases.len())
            .map(|i| {
                let rows = cu_q[i] as usize..cu_q[i + 1] as usize;
                let mut outcome = Outcome {
                    o: vec![],
                    lse: vec![],
                };
                for head in 0..q_heads {
                    for row in rows.clone() {
                        let at = (row * q_heads + head) * dim;
                        outcome
                            .o
                            .extend(o[at..at + dim].iter().map(|&x| u32::from(x)));
                        outcome.lse.push(lse[head * total_q + row].to_bits());
                    }
                }
                outcome
            })
            .collect()
    }

    /// Pages in shuffled order, NaN in every slot that is not used, and page numbers that are not to be read after the used ones.
    #[allow(clippy::type_complexity)]
    fn page(
        &self,
        device: &mut emu::Gpu,
        paging: Paging,
        [k, v]: [&[u16]; 2],
        cu_k: &[u32],
    ) -> (KvTensor, KvTensor, [u32; 3], Option<Vec<u32>>) {
        let case = &self.cases[0];
        let (page, heads, dim) = (paging.page, case.kv_heads, case.head_dim);
        let lens: Vec<usize> = cu_k.windows(2).map(|w| (w[1] - w[0]) as usize).collect();
        let needed: usize = lens.iter().map(|len| len.div_ceil(page)).sum();
        let pages = needed + 3;
        // Every page once, in an order that no neighbour shares.
        let stride = (pages / 2..)
            .find(|&s| s > 0 && gcd(s, pages) == 1)
            .unwrap();
        let mut next = 0;
        let mut take = || {
            next += 1;
            (next * stride + 1) % pages
        };
        let (token, head, of_page) = if paging.interleaved {
            (2 * heads * dim, dim, page * 2 * heads * dim)
        } else {
            (dim, page * dim, 2 * heads * page * dim)
        };
        let v_first = if paging.interleaved {
            heads * dim
        } else {
            heads * page * dim
        };
        let mut pool = vec![NAN; pages * of_page];
        let row_stride = lens.iter().map(|len| len.div_ceil(page)).max().unwrap() + 2;
        let (mut table, mut starts) = (vec![], vec![0]);
        for (i, &len) in lens.iter().enumerate() {
            let mine: Vec<usize> = (0..len.div_ceil(page)).map(|_| take()).collect();
            for t in 0..len {
                for h in 0..heads {
                    let from = ((cu_k[i] as usize + t) * heads + h) * dim;
                    let to = mine[t / page] * of_page + t % page * token + h * head;
                    pool[to..to + dim].copy_from_slice(&k[from..from + dim]);
                    pool[to + v_first..][..dim].copy_from_slice(&v[from..from + dim]);
                }
            }
            table.extend(mine.iter().map(|&page| page as u32));
            if !paging.csr {
                table.resize((i + 1) * row_stride, u32::MAX);
            }
            starts.push(table.len() as u32);
        }
        table.push(u32::MAX);
        let pool = device.upload("pool", &pool).address();
        let block_table = device.upload("block_table", &table).address();
        let table_starts = if paging.csr {
            device.upload("table_starts", &starts).address()
        } else {
            Global::NULL
        };
        let [k, v] = [0, v_first].map(|first| KvTensor {
            rows: TensorArg {
                address: pool.add(first as u64).cast(),
                stride_batch: of_page as u64,
                stride_head: head as u64,
                stride_token: token as u64,
            },
            block_table,
            table_starts,
            table_stride: row_stride as u32,
            page_log2: page.ilog2(),
        });
        let lens = lens.iter().map(|&len| len as u32).collect();
        let extents = [pages as u32, heads as u32, page as u32];
        (k, v, extents, paging.lens_each.then_some(lens))
    }

    /// The cases' masks, by query tiles of the batch.
    fn mask(&self, device: &mut emu::Gpu, sequences: &Sequences, cu_q: &[u32]) -> SparseMask {
        if self.cases[0].masks.is_none() {
            return SparseMask::DENSE;
        }
        let q_heads = self.cases[0].q_heads;
        let tiles = sequences.query_tiles();
        let capacity = sequences.max_key_blocks();
        let rows = q_heads * tiles as usize;
        let mut counts = vec![u32::MAX; rows];
        let mut lists = vec![u32::MAX; rows * capacity as usize];
        let all: Vec<_> = self
            .cases
            .iter()
            .flat_map(|c| c.masks.as_ref().unwrap())
            .collect();
        let key_capacity = all.iter().map(|mask| mask.stripes.len()).max().unwrap();
        for (i, case) in self.cases.iter().enumerate() {
            let sequence = case.sequences().get(0);
            let first = cu_q[i] / BLOCK + 2 * i as u32;
            for block in sequence.first_query_block()..sequence.end_query_block() {
                for head in 0..q_heads {
                    let list = &case.masks.as_ref().unwrap()[head].blocks[block as usize];
                    let row = head * tiles as usize + (first + sequence.place_of(block)) as usize;
                    counts[row] = list.len() as u32;
                    lists[row * capacity as usize..][..list.len()].copy_from_slice(list);
                }
            }
        }
        let keys: Vec<u32> = all
            .iter()
            .flat_map(|mask| {
                let mut row = mask.stripes.clone();
                row.resize(key_capacity, u32::MAX);
                row
            })
            .collect();
        let num_keys: Vec<u32> = all.iter().map(|m| m.stripes.len() as u32).collect();
        let dense: Vec<u32> = all.iter().map(|m| m.dense.into()).collect();
        SparseMask {
            kv_num_blocks: device.upload("kv_num_blocks", &counts).address(),
            kv_indices: device.upload("kv_indices", &lists).address(),
            num_keys: device.upload("num_keys", &num_keys).address(),
            key_indices: device.upload("key_indices", &keys).address(),
            dense: device.upload("dense", &dense).address(),
            block_capacity: capacity,
            key_capacity: key_capacity as u32,
            keys_per_tile: 0,
            sinks: self.cases[0].sinks as u32,
            first_tile: 0,
            tiles,
        }
    }

    /// What each sequence alone gives.
    pub fn alone(&self) -> Vec<Outcome> {
        self.cases
            .iter()
            .zip(&self.inputs)
            .map(|(case, inputs)| match (case.q_len, case.k_len) {
                (0, _) => Outcome {
                    o: vec![],
                    lse: vec![],
                },
                (q_len, 0) => Outcome {
                    o: vec![0; q_len * case.q_heads * case.head_dim],
                    lse: vec![f32::NEG_INFINITY.to_bits(); q_len * case.q_heads],
                },
                _ => super::run::launch(case, inputs, emu::Mode::Fast),
            })
            .collect()
    }
}

/// Kernel-independent checks of a batch: each sequence has the bits that it has alone, whatever its neighbours hold.
pub fn check_batch(batch: &Batch, mode: emu::Mode) {
    let alone = batch.alone();
    assert_eq!(batch.run(|_| false, mode), alone, "{:?}", batch.paging);
    for parity in [0, 1] {
        let with_poison = batch.run(|sequence| sequence % 2 == parity, mode);
        for (i, outcome) in with_poison.iter().enumerate() {
            if i % 2 != parity {
                assert_eq!(outcome, &alone[i], "sequence {i}, {:?}", batch.paging);
            }
        }
    }
}

/// A case for batches.
pub fn alike(kernel: Kernel, head_dim: usize, causal: bool) -> Case {
    let mut case = kernel.causal(1, 1).heads(4, 2).head_dim(head_dim);
    case.causal = causal;
    case
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
