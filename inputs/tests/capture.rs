//! Reading captures: what is written comes back, and hostile files end in an error, never in a panic.

use std::fmt::Write as _;

use sample_attention::{Dtype, Problem};
use sample_attention_inputs::capture::{Capture, CaptureError, Tensor};
use sample_attention_inputs::synthetic::{Structure, Synthetic};

fn small(dtype: Dtype) -> Capture {
    let problem = Problem::causal(5, 8, dtype)
        .with_batch(2)
        .with_heads(4, 2)
        .with_q_len(3);
    let recipe = Synthetic {
        problem,
        structure: Structure::HARD,
        seed: 7,
    };
    recipe.generate().unwrap()
}

/// A file of `header` and `body_bytes` zeros.
fn file(header: &str, body_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + body_bytes, 0);
    file
}

/// A file of tensors (name, type, shape), with offsets that fit f32 or 2-byte types.
fn file_of(tensors: &[(&str, &str, &[usize])]) -> Vec<u8> {
    let mut header = String::from("{");
    let mut end = 0;
    for (at, (name, dtype, shape)) in tensors.iter().enumerate() {
        let start = end;
        let element_bytes = match *dtype {
            "F64" | "I64" => 8,
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        end += shape.iter().product::<usize>() * element_bytes;
        let comma = if at > 0 { "," } else { "" };
        write!(
            header,
            r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        )
        .unwrap();
    }
    header.push('}');
    file(&header, end)
}

fn error_of(file: &[u8]) -> String {
    match Capture::from_bytes(file) {
        Ok(_) => panic!(
            "accepted {:?}",
            String::from_utf8_lossy(&file[..file.len().min(200)])
        ),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_written_is_read() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let capture = small(dtype);
        let bytes = capture.to_bytes().unwrap();
        assert_eq!(Capture::from_bytes(&bytes).unwrap(), capture);
        let path = std::env::temp_dir().join(format!("capture-{}-{dtype}", std::process::id()));
        capture.write(&path).unwrap();
        let read = Capture::read(&path);
        let on_disk = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), capture);
        assert_eq!(on_disk, bytes);
    }
}

/// The reference implementation of the format agrees about what was written.
#[test]
fn the_safetensors_crate_reads_what_is_written() {
    let capture = small(Dtype::F32);
    let bytes = capture.to_bytes().unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let v = file.tensor("v").unwrap();
    assert_eq!(v.shape(), [2, 2, 5, 8]);
    let values: Vec<f32> = v
        .data()
        .chunks(4)
        .map(|x| f32::from_le_bytes(x.try_into().unwrap()))
        .collect();
    assert_eq!(values, capture.v.to_f32());
}

#[test]
fn a_problem_and_tensors_that_disagree_are_not_written() {
    let mut capture = small(Dtype::F32);
    capture.k = Tensor::from_f32(Dtype::F32, &[0.0; 3]);
    assert!(matches!(capture.to_bytes(), Err(CaptureError::Problem(_))));
    assert!(capture.inputs().is_err());
}

#[test]
fn other_tensors_are_ignored() {
    let shape: &[usize] = &[1, 1, 2, 8];
    let capture = Capture::from_bytes(&file_of(&[
        ("a", "I64", &[3]),
        ("k", "F16", shape),
        ("q", "F16", shape),
        ("scalar", "F32", &[]),
        ("v", "F16", shape),
    ]));
    assert_eq!(capture.unwrap().problem, Problem::causal(2, 8, Dtype::F16));
}

#[test]
fn each_fault_is_named() {
    let shape: &[usize] = &[1, 2, 3, 8];
    let qkv = |q: &[usize], k: &[usize], v: &[usize]| {
        error_of(&file_of(&[
            ("q", "F32", q),
            ("k", "F32", k),
            ("v", "F32", v),
        ]))
    };
    let cases = [
        (error_of(&[]), "0 bytes"),
        (error_of(&[1, 2, 3]), "3 bytes"),
        (error_of(&[0xff; 64]), "claims 18446744073709551615"),
        (error_of(&file("", 0)), "header is invalid"),
        (error_of(&file("[]", 0)), "header is invalid"),
        (error_of(&file("{}", 0)), "no tensor `q`"),
        (error_of(&file("{}", 8)), "take 0 bytes, but 8"),
        (
            error_of(&file_of(&[("q", "F32", shape), ("k", "F32", shape)])),
            "no tensor `v`; q, k and v are needed (this file has: q, k)",
        ),
        (
            error_of(&file_of(&[
                ("q", "I32", shape),
                ("k", "F32", shape),
                ("v", "F32", shape),
            ])),
            "`q` is I32",
        ),
        (
            error_of(&file_of(&[
                ("q", "F32", shape),
                ("k", "F16", shape),
                ("v", "F32", shape),
            ])),
            "`k` is f16, but `q` is f32",
        ),
        (qkv(&[2, 3, 8], shape, shape), "`q` has 3 dimensions"),
        (qkv(shape, shape, &[]), "`v` has 0 dimensions"),
        (
            qkv(&[2, 2, 3, 8], shape, shape),
            "`q` and `k` differ in batch: 2 and 1",
        ),
        (
            qkv(&[1, 2, 3, 16], shape, shape),
            "`q` and `k` differ in head_dim: 16 and 8",
        ),
        (
            qkv(shape, shape, &[1, 2, 4, 8]),
            "`k` and `v` differ in length: 3 and 4",
        ),
        (
            qkv(shape, shape, &[1, 1, 3, 8]),
            "`k` and `v` differ in heads: 2 and 1",
        ),
        (
            qkv(&[1, 3, 3, 8], shape, shape),
            "q_heads (3) is not a multiple of kv_heads (2)",
        ),
        (
            qkv(&[1, 2, 3, 7], &[1, 2, 3, 7], &[1, 2, 3, 7]),
            "head_dim 7",
        ),
        (qkv(&[1, 2, 0, 8], shape, shape), "q_len is 0"),
        (
            qkv(&[1, 2, 3, 0], &[1, 2, 3, 0], &[1, 2, 3, 0]),
            "head_dim is 0",
        ),
        (qkv(shape, &[1, 0, 3, 8], &[1, 0, 3, 8]), "kv_heads is 0"),
    ];
    for (error, expected) in cases {
        assert!(
            error.contains(expected),
            "{error:?} does not say {expected:?}"
        );
    }
}

/// Shapes whose product overflows, or that claim more than the file holds: nothing may be allocated for them.
#[test]
fn sizes_that_the_file_does_not_have_are_refused() {
    let tensor = |shape: &str, offsets: &str| {
        let q = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#);
        format!(r#"{{"q":{q},"k":{q},"v":{q}}}"#)
    };
    let huge = u64::MAX;
    for (shape, offsets) in [
        ("[1,1,1,8]".to_owned(), format!("[0,{huge}]")),
        (format!("[{huge},{huge},1,8]"), "[0,32]".to_owned()),
        (format!("[{huge},0,1,8]"), "[0,0]".to_owned()),
        ("[1,1,1,8]".to_owned(), "[32,0]".to_owned()),
        ("[1,1,1,8]".to_owned(), "[-1,31]".to_owned()),
        ("[1,1,-1,8]".to_owned(), "[0,32]".to_owned()),
        ("[1,1,1e30,8]".to_owned(), "[0,32]".to_owned()),
        (
            "[1,1,1099511627776,8]".to_owned(),
            "[0,35184372088832]".to_owned(),
        ),
    ] {
        error_of(&file(&tensor(&shape, &offsets), 96));
    }
    // Sizes of zero elsewhere keep huge ones from needing a single byte.
    let empty = r#"{"dtype":"F32","shape":[0,1,18446744073709551615,8],"data_offsets":[0,0]}"#;
    error_of(&file(
        &format!(r#"{{"q":{empty},"k":{empty},"v":{empty}}}"#),
        0,
    ));
}

#[test]
fn headers_nested_too_deeply_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    error_of(&file(&deep, 0));
    error_of(&file(&format!(r#"{{"q":{deep}}}"#), 0));
}

#[test]
fn what_is_not_a_file_is_refused() {
    assert!(matches!(
        Capture::read(std::env::temp_dir()),
        Err(CaptureError::NotAFile)
    ));
    assert!(matches!(
        Capture::read("/no/such/file"),
        Err(CaptureError::Io(_))
    ));
    #[cfg(unix)]
    assert!(matches!(
        Capture::read("/dev/zero"),
        Err(CaptureError::NotAFile)
    ));
}

/// Xorshift; the seed is in every failure's message.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

/// Accepted or refused, but never a panic; what is accepted must be consistent.
fn survives(file: &[u8], what: &str) -> bool {
    let outcome = std::panic::catch_unwind(|| Capture::from_bytes(file));
    match outcome.unwrap_or_else(|_| panic!("panicked on {what}")) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
        Ok(capture) => {
            capture
                .inputs()
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(
                capture.q.len(),
                capture.problem.q_shape().iter().product::<usize>(),
                "{what}"
            );
            assert_eq!(capture.k.len(), capture.v.len(), "{what}");
            true
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = small(Dtype::Bf16).to_bytes().unwrap();
    for len in 0..whole.len() {
        assert!(!survives(&whole[..len], &format!("the first {len} bytes")));
    }
    let mut longer = whole;
    longer.push(0);
    assert!(!survives(&longer, "one byte more"));
}

#[test]
fn flipped_bits_never_panic() {
    let whole = small(Dtype::Bf16).to_bytes().unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for bit in 0..header_end * 8 {
        let mut file = whole.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        refused += usize::from(!survives(&file, &format!("bit {bit}")));
    }
    assert!(refused > header_end * 4, "{refused}");
    let mut random = Random(11);
    for round in 0..500 {
        let mut file = whole.clone();
        for _ in 0..1 + random.below(8) {
            let at = header_end + random.below(whole.len() - header_end);
            file[at] = random.below(256) as u8;
        }
        assert!(
            survives(&file, &format!("body, round {round}")),
            "any bits are numbers"
        );
    }
}

#[test]
fn overwritten_and_spliced_bytes_never_panic() {
    let whole = small(Dtype::F32).to_bytes().unwrap();
    let mut random = Random(12);
    for round in 0..5000 {
        let mut file = whole.clone();
        for _ in 0..1 + random.below(6) {
            let at = random.below(file.len().min(420));
            match random.below(4) {
                0 => file[at] = random.below(256) as u8,
                1 => file.insert(at, random.below(256) as u8),
                2 => drop(file.remove(at)),
                _ => {
                    let digits: &[u8] = b"-0123456789,[]{}\":";
                    file[at] = digits[random.below(digits.len())];
                }
            }
        }
        survives(&file, &format!("splice, round {round}"));
    }
}

#[test]
fn random_headers_never_panic() {
    let mut random = Random(13);
    let sizes = [
        "0",
        "1",
        "2",
        "8",
        "3",
        "128",
        "-1",
        "1.5",
        "4294967296",
        "18446744073709551615",
        "null",
        "\"1\"",
    ];
    let dtypes = [
        "F32", "F16", "BF16", "F64", "I8", "BOOL", "U8", "F8_E4M3", "F4", "f32", "",
    ];
    for round in 0..5000 {
        let mut header = String::from("{");
        for name in ["q", "k", "v", "__metadata__"] {
            if random.below(12) == 0 {
                continue;
            }
            let rank = if random.below(4) > 0 {
                4
            } else {
                random.below(7)
            };
            let shape: Vec<&str> = (0..rank)
                .map(|_| {
                    if random.below(3) > 0 {
                        "1"
                    } else {
                        random.pick(&sizes)
                    }
                })
                .collect();
            let dtype = if random.below(3) > 0 {
                "F32"
            } else {
                random.pick(&dtypes)
            };
            write!(
                header,
                r#""{name}":{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{},{}]}},"#,
                shape.join(","),
                random.pick(&sizes),
                random.pick(&sizes),
            )
            .unwrap();
        }
        if random.below(20) > 0 {
            header.pop();
        }
        header.push('}');
        let body_bytes = random.below(64);
        survives(
            &file(&header, body_bytes),
            &format!("round {round}: {header}"),
        );
    }
    for round in 0..2000 {
        let len = random.below(300);
        let mut noise: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
        if let Some(length) = noise.first_chunk_mut::<8>() {
            *length = (random.below(300) as u64).to_le_bytes();
        }
        assert!(!survives(&noise, &format!("noise, round {round}")));
    }
}
