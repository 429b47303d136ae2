//! Ragged batches from files, packed and in pages.

use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::support::{Folder, numbers, refused, run, succeeds};

const LENGTHS: [(usize, usize); 4] = [(150, 150), (0, 20), (1, 70), (33, 10)];
const DIM: usize = 64;

fn floats(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let numbers = (0..count).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    });
    numbers.flat_map(f32::to_le_bytes).collect()
}

fn sums(lengths: impl Iterator<Item = usize>) -> Vec<i64> {
    let mut sums = vec![0];
    for len in lengths {
        sums.push(sums[sums.len() - 1] + len as i64);
    }
    sums
}

/// Changes a tensor's type, shape and data.
type Change = dyn Fn(&mut Dtype, &mut Vec<usize>, &mut Vec<u8>);

struct File(Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>);

impl File {
    fn packed() -> Self {
        let (total_q, total_k) = (184, 250);
        let cu = |of: fn(&(usize, usize)) -> usize| -> Vec<u8> {
            let cu = sums(LENGTHS.iter().map(of));
            cu.iter().flat_map(|x| x.to_le_bytes()).collect()
        };
        File(vec![
            (
                "q",
                Dtype::F32,
                vec![total_q, 2, DIM],
                floats(total_q * 2 * DIM, 1),
            ),
            (
                "k",
                Dtype::F32,
                vec![total_k, 1, DIM],
                floats(total_k * DIM, 2),
            ),
            (
                "v",
                Dtype::F32,
                vec![total_k, 1, DIM],
                floats(total_k * DIM, 3),
            ),
            ("cu_seqlens_q", Dtype::I64, vec![5], cu(|l| l.0)),
            ("cu_seqlens_k", Dtype::I64, vec![5], cu(|l| l.1)),
        ])
    }

    /// The same keys in pages of 32, in descending order.
    fn paged() -> Self {
        const PAGE: usize = 32;
        let File(mut tensors) = File::packed();
        let used: Vec<usize> = LENGTHS.iter().map(|l| l.1.div_ceil(PAGE)).collect();
        let pages = used.iter().sum::<usize>();
        let mut table = [-1i32; 4 * 5];
        let mut next = pages;
        let cu_k = sums(LENGTHS.iter().map(|l| l.1));
        let row_bytes = 4 * DIM;
        for index in [1, 2] {
            next = pages;
            let mut pool = [0xff; 4].repeat(pages * PAGE * DIM);
            for (sequence, &(_, k_len)) in LENGTHS.iter().enumerate() {
                for slot in 0..used[sequence] {
                    next -= 1;
                    table[sequence * 5 + slot] = next as i32;
                    let tokens = PAGE.min(k_len - slot * PAGE);
                    let from = (cu_k[sequence] as usize + slot * PAGE) * row_bytes;
                    pool[next * PAGE * row_bytes..][..tokens * row_bytes]
                        .copy_from_slice(&tensors[index].3[from..][..tokens * row_bytes]);
                }
            }
            tensors[index].2 = vec![pages, PAGE, 1, DIM];
            tensors[index].3 = pool;
        }
        assert_eq!(next, 0);
        let table = table.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push(("block_table", Dtype::I32, vec![4, 5], table));
        File(tensors)
    }

    fn change(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut Dtype, &mut Vec<usize>, &mut Vec<u8>),
    ) {
        let tensor = self.0.iter_mut().find(|tensor| tensor.0 == name).unwrap();
        change(&mut tensor.1, &mut tensor.2, &mut tensor.3);
    }

    fn write(&self, path: &Path) {
        let tensors = self.0.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        std::fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    }
}

fn o_and_lse(path: &Path) -> (Vec<f32>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("o").unwrap().shape(), [184, 2, DIM]);
    assert_eq!(file.tensor("lse").unwrap().shape(), [2, 184]);
    (
        numbers(&file, "o", f32::from_le_bytes),
        numbers(&file, "lse", f32::from_le_bytes),
    )
}

#[test]
fn pages_give_what_packed_keys_give() {
    let folder = Folder::new();
    File::packed().write(&folder.file("packed.safetensors"));
    File::paged().write(&folder.file("paged.safetensors"));
    for options in ["--dense", "--fallback never --compare-dense"] {
        let told = succeeds(
            &folder,
            &format!("--input packed.safetensors {options} --output a.safetensors --report r.json"),
        );
        assert!(
            told.contains("4 sequences of up to 150 queries and 150 keys"),
            "{told}"
        );
        succeeds(
            &folder,
            &format!("--input paged.safetensors {options} --output b.safetensors"),
        );
        let [a, b] = ["a", "b"].map(|name| o_and_lse(&folder.file(&format!("{name}.safetensors"))));
        assert_eq!(a, b);
        // The last sequence has more queries than keys.
        assert!(a.0[151 * 2 * DIM..174 * 2 * DIM].iter().all(|&x| x == 0.0));
        assert!(a.1[151..174].iter().all(|&x| x == f32::NEG_INFINITY));
        let report = std::fs::read_to_string(folder.file("r.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["input"]["total_q"], 184);
        assert_eq!(report["heads"].as_array().unwrap().len(), 8);
        assert_eq!(report["heads"][7]["sequence"], 3);
        assert_eq!(report["relative_error"].is_number(), options != "--dense");
    }
}

#[cfg(feature = "emulator")]
#[test]
fn the_gpu_kernels_take_the_same_files() {
    let folder = Folder::new();
    File::paged().write(&folder.file("paged.safetensors"));
    let options = "--input paged.safetensors --fallback never";
    succeeds(&folder, &format!("{options} --output a.safetensors"));
    succeeds(
        &folder,
        &format!("{options} --backend emulator --output b.safetensors"),
    );
    let [a, b] = ["a", "b"].map(|name| o_and_lse(&folder.file(&format!("{name}.safetensors"))));
    for (a, b) in a.0.iter().zip(&b.0) {
        assert!((a - b).abs() < 0.01, "{a} {b}");
    }
}

#[test]
fn what_is_wrong_with_a_ragged_batch_is_said_in_a_line() {
    let folder = Folder::new();
    let check = |file: &File, options: &str, words: &str| {
        file.write(&folder.file("bad.safetensors"));
        let run = run(
            &folder,
            &format!("--input bad.safetensors {options} --output o.safetensors"),
        );
        let line = refused(&run, words);
        assert!(line.contains(words), "{line}");
        assert!(!folder.names().contains("o.safetensors"));
    };
    let packed = File::packed();
    check(&packed, "--layout bshd", "there is no --layout");
    check(&packed, "--picture p.png", "there is no --picture");
    let changed = |name: &str, change: &Change| {
        let mut file = File::paged();
        file.change(name, change);
        file
    };
    let mut missing = File::packed();
    missing.0.retain(|tensor| tensor.0 != "cu_seqlens_k");
    check(&missing, "", "no tensor `cu_seqlens_k`");
    let file = changed("q", &|_, shape, _| *shape = vec![1, 184, 2, DIM]);
    check(&file, "", "tensor `q` has 4 dimensions");
    let file = changed("cu_seqlens_q", &|_, _, data| {
        data[8..16].copy_from_slice(&(-1i64).to_le_bytes())
    });
    check(&file, "", "seqlens_q goes from 0 to -1 at sequence 0");
    let file = changed("cu_seqlens_q", &|_, _, data| {
        data[32..40].copy_from_slice(&185i64.to_le_bytes());
    });
    check(&file, "", "seqlens_q ends at token 185");
    let file = changed("cu_seqlens_k", &|_, _, data| {
        data[32..40].copy_from_slice(&i64::MAX.to_le_bytes());
    });
    check(&file, "", "error: --input bad.safetensors");
    let file = changed("block_table", &|_, _, data| {
        data[..4].copy_from_slice(&99i32.to_le_bytes())
    });
    check(&file, "", "entry 0 of the block table of sequence 0 is 99");
    let file = changed("block_table", &|dtype, _, _| *dtype = Dtype::F32);
    check(
        &file,
        "",
        "tensor `block_table` is F32; i32, u32 or i64 is needed",
    );
    let file = changed("k", &|_, shape, _| *shape = vec![5, 64, 1, DIM]);
    check(&file, "", "`k` has shape");
}
