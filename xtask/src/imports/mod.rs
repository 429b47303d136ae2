//! The arrows between files.
mod circles;
mod modules;
mod resolve;
use modules::Modules;
use std::path::Path;
use std::process::ExitCode;

pub fn run() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |p: &Path| std::fs::read_to_string(root.join(p)).ok();
    let mut m = Modules::default();
    for (n, f) in [
        ("sample_attention", "host/lib.rs"),
        ("sample_attention_device", "device/src/lib.rs"),
        ("testkit", "testkit/src/lib.rs"),
        ("xtask", "xtask/src/main.rs"),
        ("raw_door", "examples/raw_door/main.rs"),
        ("prefill", "examples/prefill/main.rs"),
        ("launches", "examples/launches/main.rs"),
    ] {
        m.add_crate(n, Path::new(f), &read).unwrap();
    }
    let uses = resolve::uses(&m);
    if std::env::args().any(|a| a == "--dump") {
        for u in &uses {
            println!(
                "{}:{} -> {} {}",
                u.from.display(),
                u.line,
                u.to.display(),
                u.path
            );
        }
    }
    for (n, c) in circles::circles(&uses) {
        println!("circle in {n} files");
        for u in c {
            println!(
                "  {}:{} -> {} {}",
                u.from.display(),
                u.line,
                u.to.display(),
                u.path
            );
        }
    }
    ExitCode::SUCCESS
}
