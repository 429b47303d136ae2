//! From Rust source to linted PTX, on a crate of small kernels. Runs where a compiler and ptxas are installed;
//! elsewhere it says that it was skipped, or fails if `PTX_TOOLS_REQUIRED` is set, as in CI.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::Project;
use super::build::{Built, assemble};
use super::check::check;
use super::edit::version;
use super::files::write_all;
use super::header::Header;
use super::launch_bounds::{LaunchBounds, Target};
use super::lint::judge;
use super::ptxas::Ptxas;
use super::rustc::Compiler;

const BOTH: &[Target] = &Target::ALL;

const fn row(kernel: &'static str, targets: &'static [Target]) -> LaunchBounds {
    LaunchBounds {
        kernel,
        targets,
        threads: 128,
        min_blocks_per_sm: 1,
        hot: true,
    }
}

const BOUNDS: &[LaunchBounds] = &[
    row("good", BOTH),
    LaunchBounds {
        hot: false,
        ..row("stack", BOTH)
    },
    LaunchBounds {
        threads: 1024,
        min_blocks_per_sm: 2,
        ..row("spills", BOTH)
    },
    LaunchBounds {
        threads: 384,
        ..row("hopper", &[Target::Sm90a])
    },
];

/// The rows of `BOUNDS` that sm_80 has, for tests that need no second target.
const SM_80_BOUNDS: &[LaunchBounds] = &[
    row("good", &[Target::Sm80]),
    LaunchBounds {
        hot: false,
        ..row("stack", &[Target::Sm80])
    },
    LaunchBounds {
        threads: 1024,
        min_blocks_per_sm: 2,
        ..row("spills", &[Target::Sm80])
    },
    // A row, for no target: the kernel is compiled and cut out.
    row("hopper", &[]),
];

fn tools() -> Option<(Compiler, Ptxas)> {
    let missing = match (Compiler::find(), Ptxas::find()) {
        (Ok(compiler), Ok(ptxas)) => return Some((compiler, ptxas)),
        (Err(why), _) | (_, Err(why)) => why,
    };
    assert!(
        env::var_os("PTX_TOOLS_REQUIRED").is_none(),
        "PTX_TOOLS_REQUIRED is set, but: {missing}"
    );
    // Not `eprintln!`, whose output a passing test keeps to itself.
    writeln!(
        io::stderr(),
        "SKIPPED, see `cargo xtask ptx doctor`: {missing}"
    )
    .unwrap();
    None
}

/// A copy of the fixture crate with its source edited. Copies share compiled `core`, in the target folder.
fn copy(name: &str, bounds: &'static [LaunchBounds], edit: impl Fn(String) -> String) -> Project {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kernels");
    // target/debug/deps/xtask-… is this test.
    let executable = env::current_exe().unwrap();
    let target_dir: PathBuf = executable.ancestors().nth(3).unwrap().join("ptx-fixtures");
    let root = target_dir.join(name);
    fs::create_dir_all(root.join("src")).unwrap();
    fs::copy(fixture.join("Cargo.toml"), root.join("Cargo.toml")).unwrap();
    let source = fs::read_to_string(fixture.join("src/lib.rs")).unwrap();
    fs::write(root.join("src/lib.rs"), edit(source)).unwrap();
    Project {
        device: root.clone(),
        root,
        package: "fixture-kernels",
        target_dir,
        bounds,
    }
}

/// The fixture as it is, compiled once for all tests.
fn built() -> Option<&'static (Project, Built, Ptxas)> {
    static BUILT: OnceLock<Option<(Project, Built, Ptxas)>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let (compiler, ptxas) = tools()?;
            let project = copy("plain", BOUNDS, |source| source);
            let built = assemble(&project, &compiler, &ptxas).unwrap();
            Some((project, built, ptxas))
        })
        .as_ref()
}

/// The PTX of a build, as `lint` takes it.
fn shipped(built: &Built, bounds: &[LaunchBounds]) -> Vec<(&'static str, String)> {
    let targets = Target::ALL.into_iter();
    let targets = targets.filter(|t| bounds.iter().any(|row| row.targets.contains(t)));
    targets
        .zip(&built.files)
        .map(|(target, (_, file))| (target.name(), Header::parse(file).unwrap().1))
        .collect()
}

#[test]
fn each_target_gets_its_kernels_bounds_and_lowest_version() {
    let Some((_, built, _)) = built() else { return };
    let [(_, sm_80), (_, sm_90a)] = &shipped(built, BOUNDS)[..] else {
        panic!("two targets")
    };
    assert_eq!(version(sm_80), Ok("7.0"));
    assert_eq!(version(sm_90a), Ok("8.0"));
    assert!(!sm_80.contains("hopper"));
    assert!(sm_90a.contains(".maxntid 384, 1, 1\n.minnctapersm 1\n{"));
    assert!(sm_80.contains(".maxntid 1024, 1, 1\n.minnctapersm 2\n{"));
}

#[test]
fn a_version_too_high_is_found_and_one_too_low_raised() {
    let Some((_, built, ptxas)) = built() else {
        return;
    };
    let mut files = shipped(built, BOUNDS);
    files[0].1 = files[0].1.replace(".version 7.0", ".version 7.5");
    let verdict = judge(&files, &built.resources, BOUNDS, ptxas).unwrap();
    let problem = "sm_80: .version 7.5 where 7.0 is enough".to_owned();
    assert!(
        verdict.problems.contains(&problem),
        "{:?}",
        verdict.problems
    );
    // An instruction that came with 7.3.
    let newer = files[0].1.replacen(
        "bar.sync 0;",
        "{ .reg .b64 p; alloca.u64 p, 8; } bar.sync 0;",
        1,
    );
    assert_eq!(ptxas.lowest_version(&newer, "sm_80").unwrap().0, "7.3");
    let broken = files[0].1.replace("bar.sync 0;", "bar.snyc 0;");
    let error = ptxas.lowest_version(&broken, "sm_80").unwrap_err();
    assert!(error.contains(".snyc"), "{error}");
}

#[test]
fn lint_names_spills_and_local_memory_and_nothing_else() {
    let Some((_, built, ptxas)) = built() else {
        return;
    };
    let files = shipped(built, BOUNDS);
    let verdict = judge(&files, &built.resources, BOUNDS, ptxas).unwrap();
    assert_eq!(verdict.problems, built.problems);
    assert!(verdict.notes.is_empty());
    // `stack` is not hot, so its frame is allowed; what spills has a frame as well.
    assert_eq!(verdict.problems.len(), 4, "{:?}", verdict.problems);
    for problem in &verdict.problems {
        assert!(problem.contains(" spills: "), "{problem}");
    }
    let all_hot: Vec<_> = BOUNDS
        .iter()
        .map(|row| LaunchBounds { hot: true, ..*row })
        .collect();
    let verdict = judge(&files, &built.resources, &all_hot, ptxas).unwrap();
    let stack: Vec<_> = verdict
        .problems
        .iter()
        .filter(|problem| problem.contains(" stack: "))
        .collect();
    assert_eq!(stack.len(), 2, "{:?}", verdict.problems);
    assert!(stack[0].contains("local memory in a hot kernel"));
}

#[test]
fn registers_left_open_are_an_ignored_setmaxnreg_and_an_error() {
    let Some((_, built, ptxas)) = built() else {
        return;
    };
    let mut files = shipped(built, BOUNDS);
    files[1].1 = files[1]
        .1
        .replace(".maxntid 384, 1, 1\n.minnctapersm 1\n", "");
    let verdict = judge(&files, &built.resources, BOUNDS, ptxas).unwrap();
    assert!(
        verdict.problems.iter().any(|p| p.contains("C7508")),
        "{:?}",
        verdict.problems
    );
}

#[test]
fn a_duplicated_barrier_is_found_by_the_committed_census() {
    let Some((_, first, ptxas)) = built() else {
        return;
    };
    let (compiler, _) = tools().unwrap();
    let barrier = "        barrier();\n        if thread < rows";
    let cloned = "        if sum > 1.0 {
            *values = 1.0;
            barrier();
            *values = sum + 1.0;
        } else {
            *place = 2.0;
            barrier();
            *place = sum * 3.0;
        }
        if thread < rows";
    let project = copy("cloned", SM_80_BOUNDS, |source| {
        assert!(source.contains(barrier));
        source.replace(barrier, cloned)
    });
    let second = assemble(&project, &compiler, ptxas).unwrap();
    let files = shipped(&second, SM_80_BOUNDS);
    let verdict = judge(&files, &first.resources, SM_80_BOUNDS, ptxas).unwrap();
    let problem = "sm_80 good bar.sync: 1 -> 2";
    assert!(
        verdict.problems.iter().any(|p| p.contains(problem)),
        "{:?}",
        verdict.problems
    );
}

#[test]
fn a_build_in_another_folder_gives_the_same_bytes() {
    let Some((_, first, ptxas)) = built() else {
        return;
    };
    let (compiler, _) = tools().unwrap();
    let elsewhere = copy("else/where", SM_80_BOUNDS, |source| source);
    let second = assemble(&elsewhere, &compiler, ptxas).unwrap();
    assert_eq!(second.files[0].1, first.files[0].1);
}

#[test]
fn what_a_build_writes_passes_the_check_until_a_source_changes() {
    let Some((_, built, _)) = built() else { return };
    let project = copy("checked", BOUNDS, |source| source);
    let moved: Vec<_> = built
        .files
        .iter()
        .map(|(path, contents)| {
            let name = path.file_name().unwrap();
            (project.device.join("ptx").join(name), contents.clone())
        })
        .collect();
    write_all(&moved).unwrap();
    check(&project).unwrap();
    copy("checked", BOUNDS, |source| source + "// new\n");
    let why = check(&project).unwrap_err();
    assert!(
        why.contains("sm_80.ptx") && why.contains("sm_90a.ptx"),
        "{why}"
    );
}

#[test]
fn a_crate_that_does_not_compile_makes_nothing() {
    let Some((compiler, ptxas)) = tools() else {
        return;
    };
    let project = copy("broken", SM_80_BOUNDS, |source| source + "fn broken( {}\n");
    let Err(why) = assemble(&project, &compiler, &ptxas) else {
        panic!("it compiled")
    };
    assert!(
        why.contains("compiling `fixture-kernels` for sm_80"),
        "{why}"
    );
}
