//! Memory that cannot be had: said in a line, not by the death of the process.

use std::process::Command;

use crate::support::{Folder, ended, prefill, refused};

/// From limits that leave nothing to those that leave enough.
#[cfg(target_os = "linux")]
#[test]
fn limits_of_the_address_space_are_respected() {
    let folder = Folder::new();
    let arguments = "--synthetic 2000 --head-dim 64 --q-heads 8 --threads 2 --fallback never --compare-dense \
                     --output o --report r.json --picture p.png";
    let mut codes = Vec::new();
    for mebibytes in [16, 32, 48, 64, 80, 96, 128, 192, 256, 320] {
        let script = format!("ulimit -v {}; exec \"$0\" {arguments}", mebibytes << 10);
        let run = ended(
            Command::new("sh")
                .args(["-c", &script])
                .arg(prefill())
                .current_dir(&folder.0),
        );
        if run.code == Some(0) {
            for name in folder.names() {
                std::fs::remove_file(folder.file(&name)).unwrap();
            }
        } else {
            refused(&run, &format!("{mebibytes} MiB"));
        }
        assert!(
            folder.names().is_empty(),
            "{mebibytes} MiB: {:?}",
            folder.names()
        );
        codes.push(run.code);
    }
    assert!(
        codes.contains(&Some(0)) && codes.contains(&Some(2)),
        "{codes:?}"
    );
}
