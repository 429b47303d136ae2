//! One run of the compiler: the device crate to PTX text for one target.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::Project;
use super::digest;
use super::launch_bounds::Target;
use super::rustc::Compiler;

/// The flags of every crate, `core` included, but for the target's and the machine's own.
const FLAGS: [&str; 10] = [
    "-Zunstable-options",
    // A panic is a trap. With any other strategy undefined panic functions stay in the PTX.
    "-Cpanic=immediate-abort",
    // There is nothing to link: fat LTO has merged `core`, and the assembly is the product.
    "-Clinker=true",
    // `asm!` is not convergent: these passes would clone a barrier into both sides of a branch.
    "-Zmir-enable-passes=-JumpThreading",
    "-Cllvm-args=-jump-threading-threshold=0",
    "-Cllvm-args=-simplifycfg-max-small-block-size=0",
    // Loops over register arrays must unroll whole, or the array goes to local memory.
    "-Cllvm-args=-unroll-threshold=100000",
    "-Cllvm-args=-unroll-full-max-count=64",
    "-Cdebuginfo=0",
    // One scheme whatever the release's default, for the names of functions that are not inlined.
    "-Csymbol-mangling-version=v0",
];

/// Given on the command line, because that outranks the workspace's manifest, configuration files and the environment.
const PROFILE: [&str; 8] = [
    "profile.release.opt-level=3",
    "profile.release.lto=\"fat\"",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.debug=false",
    "profile.release.incremental=false",
    "profile.release.debug-assertions=false",
    "profile.release.overflow-checks=false",
];

/// Everything about a build that can change its output, for the header of the PTX: the same on every machine.
pub fn flags(target: Target) -> String {
    let cpu = target_cpu(target);
    let rustc = FLAGS.iter().copied().chain([cpu.as_str()]);
    let all: Vec<_> = rustc.chain(PROFILE).collect();
    all.join(" ")
}

/// Also sets `cfg(target_feature = "sm_90a")`, for sources that must differ between targets.
fn target_cpu(target: Target) -> String {
    format!("-Ctarget-cpu={}", target.name())
}

/// Compiles the kernels for `target`. The text is the compiler's own: no launch bounds, its choice of `.version`.
pub fn compile(project: &Project, compiler: &Compiler, target: Target) -> Result<String, String> {
    // A folder for each target, because other flags would rebuild `core`; in it a name for each checkout,
    // because several may share the folder and build at the same time.
    let folder = project.target_dir.join("ptx").join(target.name());
    let checkout = digest::text(&project.root.to_string_lossy());
    let assembly = folder.join(format!("{}.s", &checkout[..16]));
    // What is read below is then of this run. cargo always runs the compiler, because the library that it
    // expects is never linked.
    match fs::remove_file(&assembly) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("{}: {error}", assembly.display()));
        }
        _ => {}
    }
    let status = command(project, compiler, target, &folder, &assembly)
        .status()
        .map_err(|error| format!("{}: {error}", compiler.cargo.display()))?;
    if !status.success() {
        return Err(format!(
            "compiling `{}` for {} failed",
            project.package,
            target.name()
        ));
    }
    let text = fs::read_to_string(&assembly)
        .map_err(|error| format!("{}: {error}", assembly.display()))?;
    for (what, path) in [
        ("checkout", &project.root),
        ("compiler", &compiler.sysroot.join("lib")),
    ] {
        if text.contains(&*path.to_string_lossy()) {
            return Err(format!(
                "the PTX for {} names the path of the {what}: it would differ on another machine",
                target.name()
            ));
        }
    }
    Ok(text)
}

fn command(
    project: &Project,
    compiler: &Compiler,
    target: Target,
    folder: &Path,
    assembly: &Path,
) -> Command {
    let sources = compiler.sysroot.join("lib/rustlib/src/rust");
    let mut flags: Vec<String> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    flags.push(target_cpu(target));
    flags.push(format!("--remap-path-prefix={}=/rustc", sources.display()));
    let mut command = Command::new(&compiler.cargo);
    command
        .current_dir(&project.root)
        // A wrapper or a setting that the caller's cargo has would reach this one through the environment.
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args(["rustc", "--lib", "--crate-type", "cdylib", "--release"])
        .args(["--package", project.package])
        .args(["--target", "nvptx64-nvidia-cuda", "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(folder);
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    command
        .arg("--")
        .arg(format!("--emit=asm={}", assembly.display()));
    command
}
