//! Bad input: one line on stderr, exit code 2, and no file left behind.

use std::collections::BTreeSet;
use std::path::Path;

use sample_attention::{Dtype, Problem};

use crate::support::{FILES, Folder, capture, refused, run, run_with};

#[test]
fn bad_options_are_named_and_leave_no_file() {
    let folder = Folder::new();
    for (options, named) in [
        ("--coverage 0", "coverage is 0"),
        ("--coverage 1.01", "coverage is 1.01"),
        ("--coverage -0.5", "coverage is -0.5"),
        ("--coverage NaN", "coverage is NaN"),
        ("--coverage inf", "coverage is inf"),
        ("--coverage much", "--coverage"),
        ("--coverage", "--coverage"),
        ("--window 0", "window has 0 tokens"),
        ("--window -1", "--window"),
        ("--window 1.5", "--window"),
        ("--window 99999999999999999999", "--window"),
        ("--window-ratio 0", "window ratio is 0"),
        ("--window-ratio 1.5", "window ratio is 1.5"),
        ("--window-ratio -1", "window ratio is -1"),
        ("--window-ratio nan", "window ratio is NaN"),
        ("--window-ratio x", "--window-ratio"),
        ("--window 5 --window-ratio 0.1", "--window-ratio"),
        ("--row-stride 0", "row_stride is 0"),
        ("--row-stride -16", "--row-stride"),
        ("--row-stride sixteen", "--row-stride"),
        ("--stride-doubles-from 0", "stride_doubles_from is 0"),
        ("--stride-doubles-from -1", "--stride-doubles-from"),
        ("--stride-doubles-from always", "not `never`"),
        ("--sinks -1", "--sinks"),
        ("--sinks 1e3", "--sinks"),
        ("--budget columns", "--budget"),
        ("--budget", "--budget"),
        ("--fallback always", "--fallback"),
        #[cfg(feature = "emulator")]
        (
            "--backend emulator --head-dim 80",
            "head_dim 80 has no GPU kernel",
        ),
        #[cfg(not(feature = "emulator"))]
        ("--backend emulator", "feature `emulator`"),
        ("--device 0", "only --backend cuda has devices"),
        (
            "--backend emulator --device 0",
            "only --backend cuda has devices",
        ),
        ("--backend cuda --device -1", "--device"),
        ("--backend cuda --device 1024", "--device"),
        ("--backend tpu", "--backend"),
        ("--threads 0", "--threads"),
        ("--threads 4294967296", "--threads"),
        ("--seed -1", "--seed"),
        (
            "--q-heads 3",
            "q_heads (3) is not a multiple of kv_heads (2)",
        ),
        ("--q-heads 0", "--q-heads"),
        ("--kv-heads 0", "--kv-heads"),
        ("--head-dim 12", "head_dim 12"),
        ("--head-dim 264", "--head-dim"),
        ("--structure odd", "--structure"),
        ("--input in", "--input"),
        ("--dense=yes", "--dense"),
        ("--compare", "--compare"),
        ("stray", "stray"),
        ("--coverage 0.9 --coverage 0.8", "--coverage"),
        ("--dense --coverage 7", "coverage is 7"),
        ("--paper --budget blocks", "--paper"),
        ("--layout sbhd", "--layout"),
        ("--heads", "--heads"),
        ("--heads 0,x", "`x` is no number of a head"),
        ("--heads 3-1", "`3-1` ends before it begins"),
        ("--heads 0,", "no number of a head"),
        ("--heads -1", "--heads"),
        ("--heads 0-18446744073709551615", "at most 64"),
        ("--heads 0-64", "at most 64"),
        ("--heads 1,4", "there is no head 4; this input has 4"),
    ] {
        let arguments = format!("--synthetic 200 {options} {FILES} --picture p.png");
        let line = refused(&run(&folder, &arguments), options);
        assert!(
            line.contains(named),
            "{options}: {line:?} does not say {named:?}"
        );
        assert!(folder.names().is_empty(), "{options}: {:?}", folder.names());
    }
    for (arguments, named) in [
        ("--synthetic 0", "--synthetic"),
        ("--synthetic -5", "--synthetic"),
        ("--synthetic many", "--synthetic"),
        ("--synthetic 18446744073709551616", "--synthetic"),
        ("--synthetic", "--synthetic"),
        ("--seed 5", "--synthetic"),
        ("--head-dim 64", "--synthetic"),
        ("--input in --seed 5", "--seed"),
        ("--input", "--input"),
    ] {
        let line = refused(&run(&folder, &format!("{arguments} {FILES}")), arguments);
        assert!(
            line.contains(named),
            "{arguments}: {line:?} does not say {named:?}"
        );
        assert!(folder.names().is_empty());
    }
    // More memory than any machine has: refused, not killed.
    let line = refused(
        &run(
            &folder,
            &format!("--synthetic 1073741824 --q-heads 4096 {FILES}"),
        ),
        "huge",
    );
    assert!(line.contains("memory"), "{line}");
}

/// `SAMPLE_ATTENTION_STAND_IN` says that what is loaded as the driver is `.ci/driver-stand-in`.
#[test]
fn a_gpu_that_cannot_be_had_is_named() {
    let folder = Folder::new();
    let is_stand_in = std::env::var_os("SAMPLE_ATTENTION_STAND_IN").is_some();
    let (device, named) = match (cfg!(feature = "cuda"), is_stand_in) {
        (false, _) => ("", "not compiled with the feature `cuda`"),
        (true, true) => ("", "install NVIDIA's driver"),
        (true, false) => ("--device 1023", "GPU"),
    };
    let arguments = format!("--backend cuda {device} {FILES} --picture p.png");
    let line = refused(&run(&folder, &arguments), &arguments);
    assert!(line.contains(named), "{line:?} does not say {named:?}");
    assert!(folder.names().is_empty(), "{:?}", folder.names());
}

#[test]
fn bad_paths_are_named_and_leave_no_file() {
    let folder = Folder::new();
    std::fs::create_dir(folder.file("folder")).unwrap();
    capture(Problem::causal(40, 8, Dtype::F32))
        .write(folder.file("in"))
        .unwrap();
    std::fs::write(folder.file("kept"), "kept").unwrap();
    let before = folder.names();
    for (arguments, named) in [
        ("--input missing --output o", "--input missing"),
        (
            "--input folder --output o",
            "--input folder: it is not a regular file",
        ),
        (
            "--input kept --output o",
            "--input kept: it is not a safetensors file",
        ),
        ("--input in/x --output o", "--input in/x"),
        (
            "--input in --output folder",
            "--output folder: it is a directory",
        ),
        (
            "--input in --report none/r.json",
            "--report none/r.json: its directory",
        ),
        ("--input in --picture in/p.png", "--picture in/p.png"),
        ("--input in --output o/", "--output o/"),
        ("--input in --output ..", "--output .."),
        (
            "--input in --output in",
            "--output in: it would replace the input",
        ),
        (
            "--input in --output ./folder/../in",
            "it would replace the input",
        ),
        (
            "--input in --output o --report ./o",
            "--report ./o: --output names the same file",
        ),
        (
            "--input in --output o --report r --picture folder",
            "--picture folder",
        ),
        ("--input missing --output kept", "--input missing"),
    ] {
        let line = refused(&run(&folder, arguments), arguments);
        assert!(
            line.contains(named),
            "{arguments}: {line:?} does not say {named:?}"
        );
        assert_eq!(folder.names(), before, "{arguments}");
    }
    let empty = refused(
        &run_with(&folder, &["--input", "in", "--output", ""]),
        "empty name",
    );
    assert!(empty.contains("--output"), "{empty}");
    let long = "x".repeat(300);
    refused(
        &run_with(&folder, &["--input", "in", "--output", &long]),
        "long name",
    );
    #[cfg(unix)]
    for device in ["/dev/null", "/dev/full"] {
        let line = refused(
            &run_with(&folder, &["--input", "in", "--output", device]),
            device,
        );
        assert!(line.contains("not a regular file"), "{line}");
        assert!(Path::new(device).exists());
    }
    assert_eq!(folder.names(), before);
    assert_eq!(
        std::fs::read(folder.file("kept")).unwrap(),
        b"kept",
        "what was there stays there"
    );
}

/// A name that would break the line it is reported on.
#[test]
fn control_characters_stay_out_of_the_line() {
    let folder = Folder::new();
    let line = refused(
        &run_with(&folder, &["--input", "no\nsuch\u{1b}[31m\u{2028}file"]),
        "name",
    );
    assert!(line.contains("no\\nsuch\\u{1b}"), "{line}");
    let header = r#"{"a\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&[0; 4]);
    std::fs::write(folder.file("in"), file).unwrap();
    let line = refused(&run(&folder, "--input in"), "tensor name");
    assert!(line.contains("no tensor `q`"), "{line}");
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x ^ (x >> 31)) % bound as u64) as usize
    }
}

/// The tests of the parser throw thousands of files at it; these few go through the whole program.
#[test]
fn corrupt_files_end_in_one_line() {
    let folder = Folder::new();
    let whole = capture(Problem::causal(20, 8, Dtype::Bf16).with_heads(2, 1))
        .to_bytes()
        .unwrap();
    let header_end = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let mut random = Random(5);
    let mut accepted = 0;
    let mut rejected = 0;
    for round in 0..60 {
        let mut file = whole.clone();
        match round % 6 {
            0 => file.truncate(random.below(whole.len())),
            1 => file[random.below(8)] ^= 1 << random.below(8),
            2 => {
                let digits: Vec<usize> = (8..header_end)
                    .filter(|&at| file[at].is_ascii_digit())
                    .collect();
                file[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8;
            }
            3 => file[8 + random.below(header_end - 8)] = random.below(256) as u8,
            4 => file[header_end + random.below(whole.len() - header_end)] ^= 1 << random.below(8),
            _ => file.extend((0..1 + random.below(9)).map(|_| 0)),
        }
        std::fs::write(folder.file("in"), &file).unwrap();
        let run = run(&folder, &format!("--input in {FILES} --picture p.png"));
        let what = format!("round {round}");
        if run.code == Some(0) {
            // Some bits make a number infinite.
            let mut lines = run.stderr.lines();
            assert!(lines.all(|line| line.starts_with("warning: ")), "{what}");
            accepted += 1;
            for name in ["o.safetensors", "r.json", "p.png"] {
                std::fs::remove_file(folder.file(name)).unwrap();
            }
        } else {
            let line = refused(&run, &what);
            assert!(line.contains("--input in"), "{what}: {line}");
            rejected += 1;
        }
        assert_eq!(folder.names(), BTreeSet::from(["in".to_owned()]), "{what}");
    }
    assert!(
        accepted >= 10 && rejected >= 30,
        "{accepted} accepted, {rejected} rejected"
    );
}
