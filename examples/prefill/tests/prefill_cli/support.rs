//! The example as a process: where it is, runs of it, and what it left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::SafeTensors;
use sample_attention::Problem;
use testkit::capture::Capture;
use testkit::synthetic::{Structure, Synthetic};

/// The example beside this test's own executable. Cargo builds it with the tests, but not when one test file is asked for: then
/// it may be missing, or of other features. Started without cargo, the tests take what is there.
pub fn prefill() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let profile_folder = own.parent().unwrap().parent().unwrap();
        let path = profile_folder.join(format!("examples/prefill{}", std::env::consts::EXE_SUFFIX));
        if !path.exists() || std::env::var_os("CARGO").is_some() {
            let profile = match profile_folder.file_name().unwrap().to_str().unwrap() {
                "debug" => "test",
                other => other,
            };
            let built = Command::new(env!("CARGO"))
                .args([
                    "build",
                    "--example",
                    "prefill",
                    "--profile",
                    profile,
                    "--target-dir",
                ])
                .arg(profile_folder.parent().unwrap())
                .args(cfg!(feature = "cuda").then_some("--features=cuda"))
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status();
            assert!(built.unwrap().success(), "the example does not build");
        }
        path
    })
}

/// A folder that goes away.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "prefill-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the example in `folder` with arguments separated by spaces.
pub fn run(folder: &Folder, arguments: &str) -> Run {
    run_with(folder, &arguments.split_whitespace().collect::<Vec<_>>())
}

pub fn run_with(folder: &Folder, arguments: &[&str]) -> Run {
    let output = Command::new(prefill())
        .args(arguments)
        .current_dir(&folder.0)
        .output()
        .unwrap();
    let run = Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(
        !run.stderr.contains("panicked"),
        "{arguments:?}: {}",
        run.stderr
    );
    run
}

pub fn succeeds(folder: &Folder, arguments: &str) -> String {
    let run = run(folder, arguments);
    assert_eq!(
        (run.code, run.stderr.as_str()),
        (Some(0), ""),
        "{arguments}"
    );
    run.stdout
}

/// Refused as bad input must be; gives the line that says why.
pub fn refused(run: &Run, what: &str) -> String {
    assert_eq!(run.code, Some(2), "{what}: {}", run.stderr);
    assert_eq!(run.stdout, "", "{what}");
    let line = run
        .stderr
        .strip_suffix('\n')
        .unwrap_or_else(|| panic!("{what}: no line"));
    assert!(!line.contains('\n'), "{what}: {line}");
    assert!(
        line.starts_with("error: ") && line.len() > 12,
        "{what}: {line}"
    );
    line.to_owned()
}

pub fn capture(problem: Problem) -> Capture {
    let recipe = Synthetic {
        problem,
        structure: Structure::HARD,
        seed: 3,
    };
    recipe.generate().unwrap()
}

pub fn numbers<const BYTES: usize, T>(
    file: &SafeTensors<'_>,
    name: &str,
    read: fn([u8; BYTES]) -> T,
) -> Vec<T> {
    let tensor = file.tensor(name).unwrap();
    tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .copied()
        .map(read)
        .collect()
}

pub const FILES: &str = "--output o.safetensors --report r.json";

/// Size and pixels of a PNG.
pub fn pixels(path: &Path) -> (u32, u32, Vec<[u8; 3]>) {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(path).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    assert_eq!(bytes.len(), (info.width * info.height * 3) as usize);
    (info.width, info.height, bytes.as_chunks().0.to_vec())
}
