//! The program as a process: where it is, runs of it, and what it left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::SafeTensors;
use sample_attention::Problem;
use sample_attention_inputs::capture::Capture;
use sample_attention_inputs::synthetic::{Structure, Synthetic};

pub fn prefill() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_prefill"))
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

/// Runs the program in `folder` with arguments separated by spaces.
pub fn run(folder: &Folder, arguments: &str) -> Run {
    run_with(folder, &arguments.split_whitespace().collect::<Vec<_>>())
}

pub fn run_with(folder: &Folder, arguments: &[&str]) -> Run {
    ended(command(folder).args(arguments))
}

/// The program, to be started in `folder`.
pub fn command(folder: &Folder) -> Command {
    let mut command = Command::new(prefill());
    command.current_dir(&folder.0);
    command
}

/// Runs a command to its end.
pub fn ended(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let run = Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(
        !run.stderr.contains("panicked"),
        "{command:?}: {}",
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
