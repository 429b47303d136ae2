//! Output files come to be all together or not at all, and nothing else is left beside them.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sample_attention::{Dtype, Problem};
use sample_attention_inputs::capture::Tensor;

use crate::support::{Folder, capture, command, ended, prefill, refused, run, succeeds};

const SMALL: &str = "--synthetic 100 --head-dim 8";

/// Sends a signal by its name.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// Waits for a run to end, for a minute at most.
fn wait(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("it goes on");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A signal while a file is being written: the picture of many heads takes a while.
#[test]
fn signals_leave_nothing_behind() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1), ("QUIT", 3)] {
        // Where this test was started with a signal ignored, so is its child, and that is respected.
        if ignored & (1 << (number - 1)) != 0 {
            continue;
        }
        let folder = Folder::new();
        fs::write(folder.file("r.json"), "old").unwrap();
        let arguments = "--synthetic 1500 --head-dim 64 --q-heads 64 --kv-heads 1 --fallback never \
                         --heads 0-63 --report r.json --picture p.png";
        let mut child = command(&folder)
            .args(arguments.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while folder.names().len() < 3 {
            assert!(child.try_wait().unwrap().is_none(), "ended too early");
            std::thread::sleep(Duration::from_millis(1));
        }
        signal(&child, name);
        let status = wait(&mut child);
        assert_eq!(status.signal(), Some(number), "{name}: {status}");
        assert_eq!(folder.names().into_iter().collect::<Vec<_>>(), ["r.json"]);
        assert_eq!(fs::read(folder.file("r.json")).unwrap(), b"old");
    }
}

/// `nohup` starts programs with SIGHUP ignored.
#[test]
fn signals_that_are_ignored_stay_ignored() {
    let folder = Folder::new();
    let arguments = "--synthetic 1500 --head-dim 64 --fallback never --picture p.png";
    let mut child = Command::new("sh")
        .args(["-c", &format!("trap '' HUP; exec \"$0\" {arguments}")])
        .arg(prefill())
        .current_dir(&folder.0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while folder.names().is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "ended too early");
        std::thread::sleep(Duration::from_millis(1));
    }
    signal(&child, "HUP");
    assert!(wait(&mut child).success());
    assert_eq!(folder.names().into_iter().collect::<Vec<_>>(), ["p.png"]);
}

/// In a container every run may have the same process id.
#[test]
fn what_a_killed_run_left_is_in_nobodys_way() {
    let folder = Folder::new();
    let script = format!(
        "for n in 0 1; do : > .prefill-$$-$n.tmp; done; exec \"$0\" {SMALL} --output o --report r.json"
    );
    let run = ended(
        Command::new("sh")
            .args(["-c", &script])
            .arg(prefill())
            .current_dir(&folder.0),
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(folder.names().len(), 4, "{:?}", folder.names());
}

/// Starts a run, and interferes when it has checked its arguments: it warns about its input after that. Gives its exit code and
/// what it wrote to stderr after the warning.
fn interfered(folder: &Folder, files: &str, interfere: impl FnOnce()) -> (Option<i32>, String) {
    let mut input = capture(Problem::causal(2000, 64, Dtype::F32).with_heads(4, 1));
    if let Tensor::F32(v) = &mut input.v {
        v[0] = f32::NAN;
    }
    input.write(folder.file("in")).unwrap();
    let arguments = format!("--input in --fallback never --compare-dense {files}");
    let mut child = command(folder)
        .args(arguments.split_whitespace())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.starts_with("warning: v"), "{line}");
    interfere();
    line.clear();
    while stderr.read_line(&mut line).unwrap() > 0 {}
    (child.wait().unwrap().code(), line)
}

#[test]
fn files_that_cannot_all_be_moved_leave_the_old_ones() {
    let folder = Folder::new();
    fs::write(folder.file("o"), "old").unwrap();
    fs::write(folder.file("unrelated"), "kept").unwrap();
    let files = "--output o --report r.json --picture p.png";
    let (code, line) = interfered(&folder, files, || {
        fs::create_dir(folder.file("p.png")).unwrap();
    });
    assert_eq!(code, Some(2));
    assert!(
        line.contains("--picture p.png: it is a directory"),
        "{line}"
    );
    assert_eq!(fs::read(folder.file("o")).unwrap(), b"old");
    let names: Vec<String> = folder.names().into_iter().collect();
    assert_eq!(names, ["in", "o", "p.png", "unrelated"]);
}

#[test]
fn what_came_to_lie_there_meanwhile_comes_back_too() {
    let folder = Folder::new();
    let files = "--output o --report r.json --picture p.png";
    let (code, _) = interfered(&folder, files, || {
        fs::write(folder.file("r.json"), "newer").unwrap();
        fs::create_dir(folder.file("p.png")).unwrap();
    });
    assert_eq!(code, Some(2));
    assert_eq!(fs::read(folder.file("r.json")).unwrap(), b"newer");
    let names: Vec<String> = folder.names().into_iter().collect();
    assert_eq!(names, ["in", "p.png", "r.json"]);
}

#[test]
fn read_only_files_and_dangling_links_are_refused() {
    let folder = Folder::new();
    fs::write(folder.file("old"), "old").unwrap();
    fs::set_permissions(folder.file("old"), Permissions::from_mode(0o444)).unwrap();
    symlink("nowhere", folder.file("dangling")).unwrap();
    symlink("old", folder.file("linked")).unwrap();
    symlink("loop", folder.file("loop")).unwrap();
    let before = folder.names();
    for (name, named) in [
        ("old", "--output old: the file that is there is read-only"),
        (
            "linked",
            "--output linked: the file that is there is read-only",
        ),
        (
            "dangling",
            "--output dangling: it is a link to nowhere, which does not exist",
        ),
        ("loop", "--output loop"),
    ] {
        let arguments = format!("{SMALL} --report r.json --output {name}");
        let line = refused(&run(&folder, &arguments), name);
        assert!(line.contains(named), "{line}");
        assert_eq!(folder.names(), before);
        assert_eq!(fs::read(folder.file("old")).unwrap(), b"old");
    }
}

#[test]
fn links_are_followed_and_permissions_stay() {
    let folder = Folder::new();
    fs::write(folder.file("old"), "old").unwrap();
    fs::set_permissions(folder.file("old"), Permissions::from_mode(0o640)).unwrap();
    symlink("old", folder.file("r.json")).unwrap();
    succeeds(&folder, &format!("{SMALL} --report r.json --output o"));
    assert!(folder.file("r.json").is_symlink());
    let mode = |name: &str| {
        let mode = fs::metadata(folder.file(name))
            .unwrap()
            .permissions()
            .mode();
        mode & 0o777
    };
    assert_eq!(mode("old"), 0o640);
    assert!(
        fs::read_to_string(folder.file("old"))
            .unwrap()
            .starts_with('{')
    );
    // A new file has those of any new file.
    File::create(folder.file("any")).unwrap();
    assert_eq!(mode("o"), mode("any"));
}

/// The table is an output too.
#[cfg(target_os = "linux")]
#[test]
fn a_table_that_is_lost_is_a_failure() {
    let folder = Folder::new();
    fs::write(folder.file("o"), "old").unwrap();
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for arguments in [
        "--synthetic 100 --head-dim 8 --output o --report r.json",
        "--help",
        "--version",
    ] {
        let mut command = command(&folder);
        command.args(arguments.split_whitespace()).stdout(full());
        let line = refused(&ended(&mut command), arguments);
        assert!(line.contains("stdout: "), "{line}");
        assert_eq!(folder.names().into_iter().collect::<Vec<_>>(), ["o"]);
        assert_eq!(fs::read(folder.file("o")).unwrap(), b"old");
    }
    // Nobody reads stderr: the exit code is what is left.
    for (arguments, code) in [("--coverage 7", 2), (SMALL, 0)] {
        let mut command = command(&folder);
        command.args(arguments.split_whitespace()).stderr(full());
        assert_eq!(ended(&mut command).code, Some(code), "{arguments}");
    }
    let mut command = command(&folder);
    command.arg("--help").stdout(full()).stderr(full());
    assert_eq!(ended(&mut command).code, Some(2));
}
