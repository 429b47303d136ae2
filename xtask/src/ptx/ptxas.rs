//! Finding ptxas, running it, and reading what it says about each kernel.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::edit::with_version;

/// Names a ptxas to use in place of the search.
const PTXAS_VARIABLE: &str = "PTXAS";

/// What to do where ptxas was not found.
const REMEDY: &str = "Any one of these will do:
    pip install nvidia-cuda-nvcc
    a CUDA toolkit in PATH, CUDA_HOME or /usr/local/cuda
    PTXAS=/path/to/ptxas";

/// PTX versions from the first that knows sm_80. One that is missing here only makes `.version` higher than it need be.
const VERSIONS: [&str; 24] = [
    "7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0", "8.1", "8.2", "8.3",
    "8.4", "8.5", "8.6", "8.7", "8.8", "9.0", "9.1", "9.2", "9.3", "9.4", "9.5",
];

/// NVIDIA's assembler.
#[derive(Debug)]
pub struct Ptxas {
    pub path: PathBuf,
    /// `13.0.88`
    pub version: String,
}

/// What ptxas says about one PTX file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By function; device functions that were not inlined are there too.
    pub functions: BTreeMap<String, Usage>,
    /// Every warning, and every `(C75xx)` remark, which ptxas calls `info`.
    pub warnings: Vec<String>,
}

/// What one function takes of a multiprocessor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub is_entry: bool,
    pub registers: u32,
    /// Static shared memory; what a launch adds dynamically is not known here.
    pub shared_bytes: u32,
    /// Local memory: the frame, and those of the functions it calls.
    pub stack_bytes: u32,
    /// Stores and loads together.
    pub spill_bytes: u32,
    pub barriers: u32,
}

impl Ptxas {
    /// The one that `PTXAS` names, or the first in `PATH`, a CUDA toolkit, or Python's site-packages.
    pub fn find() -> Result<Self, String> {
        if let Some(named) = env::var_os(PTXAS_VARIABLE) {
            return Self::at(Path::new(&named))
                .map_err(|why| format!("{PTXAS_VARIABLE}={}: {why}\n{REMEDY}", named.display()));
        }
        let mut folders: Vec<PathBuf> = env::var_os("PATH")
            .map(|path| env::split_paths(&path).collect())
            .unwrap_or_default();
        for variable in ["CUDA_HOME", "CUDA_PATH"] {
            folders.extend(env::var_os(variable).map(|home| Path::new(&home).join("bin")));
        }
        folders.push(PathBuf::from("/usr/local/cuda/bin"));
        for site in site_packages() {
            folders.extend(pip_folders(&site));
        }
        folders
            .iter()
            .map(|folder| folder.join("ptxas"))
            .filter(|path| path.is_file())
            .find_map(|path| Self::at(&path).ok())
            .ok_or_else(|| {
                format!("no ptxas in PATH, a CUDA toolkit or Python's site-packages\n{REMEDY}")
            })
    }

    fn at(path: &Path) -> Result<Self, String> {
        let output = Command::new(path)
            .arg("--version")
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = version_in(&said).ok_or("it does not tell its version")?;
        Ok(Self {
            path: path.to_owned(),
            version: version.to_owned(),
        })
    }

    /// Assembles `text` and throws the machine code away.
    pub fn assemble(&self, text: &str, arch: &str) -> Result<Report, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let stem = format!("xtask-ptxas-{}-{number}", std::process::id());
        let input = env::temp_dir().join(format!("{stem}.ptx"));
        let machine_code = env::temp_dir().join(format!("{stem}.cubin"));
        fs::write(&input, text).map_err(|error| format!("{}: {error}", input.display()))?;
        let output = Command::new(&self.path)
            .arg(format!("-arch={arch}"))
            .arg("-v")
            .arg(&input)
            .arg("-o")
            .arg(&machine_code)
            .output();
        // Only files in the temporary directory, which may already be gone.
        let _ = fs::remove_file(&input);
        let _ = fs::remove_file(&machine_code);
        let output = output.map_err(|error| format!("{}: {error}", self.path.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).replace(&*input.to_string_lossy(), arch);
        if output.status.success() {
            Ok(report(&said))
        } else {
            Err(said.trim().to_owned())
        }
    }

    /// The lowest `.version` that holds every instruction of `text`, and the report on it.
    ///
    /// A driver refuses PTX that is newer than itself, so every version too many costs users.
    pub fn lowest_version(&self, text: &str, arch: &str) -> Result<(&'static str, Report), String> {
        let mut refusal = String::new();
        for version in VERSIONS {
            match self.assemble(&with_version(text, version)?, arch) {
                Ok(report) => return Ok((version, report)),
                // Newer than this ptxas: the refusal before it is the one that matters.
                Err(why) if why.contains("Unsupported .version") && !refusal.is_empty() => break,
                Err(why) => refusal = why,
            }
        }
        Err(format!(
            "ptxas {} refuses the PTX:\n{refusal}",
            self.version
        ))
    }
}

/// `13.0.88` in `Cuda compilation tools, release 13.0, V13.0.88`.
fn version_in(said: &str) -> Option<&str> {
    said.split_whitespace()
        .rev()
        .filter_map(|word| word.strip_prefix('V'))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
}

/// Where the pip packages put their programs, newest first: `cu13/bin` since CUDA 13, `cuda_nvcc/bin` before.
fn pip_folders(site: &Path) -> Vec<PathBuf> {
    let mut releases: Vec<(u32, PathBuf)> = fs::read_dir(site.join("nvidia"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|package| {
            let name = package.file_name().to_string_lossy().into_owned();
            let release = name.strip_prefix("cu").and_then(|r| r.parse().ok());
            (release.unwrap_or(0), package.path().join("bin"))
        })
        .filter(|(_, bin)| bin.join("ptxas").exists())
        .collect();
    releases.sort();
    releases.into_iter().rev().map(|(_, bin)| bin).collect()
}

/// Every folder that the `python3` in `PATH` imports from.
fn site_packages() -> Vec<PathBuf> {
    Command::new("python3")
        .args(["-c", "import sys; print('\\n'.join(sys.path))"])
        .output()
        .map(|output| {
            String::from_utf8_lossy(&output.stdout)
                .lines()
                .filter(|line| !line.is_empty())
                .map(PathBuf::from)
                .collect()
        })
        .unwrap_or_default()
}

/// Reads the output of `ptxas -v`.
fn report(said: &str) -> Report {
    let mut report = Report::default();
    // ptxas names the kernel, then each function's properties, the kernel's own included, then what the kernel uses.
    let mut kernel = String::new();
    let mut function = String::new();
    for line in said.lines() {
        if line.contains("warning") || line.contains("(C7") {
            report.warnings.push(line.trim().to_owned());
        } else if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            report.functions.entry(kernel.clone()).or_default().is_entry = true;
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim().to_owned();
        } else if line.contains("bytes stack frame") {
            let usage = report.functions.entry(function.clone()).or_default();
            usage.stack_bytes = usage.stack_bytes.max(before(line, "bytes stack frame"));
            usage.spill_bytes =
                before(line, "bytes spill stores") + before(line, "bytes spill loads");
        } else if let Some((_, used)) = line.split_once("Used ") {
            let usage = report.functions.entry(kernel.clone()).or_default();
            usage.registers = before(used, "registers");
            usage.barriers = before(used, "barriers");
            usage.shared_bytes = before(used, "bytes smem");
            usage.stack_bytes = usage
                .stack_bytes
                .max(before(used, "bytes cumulative stack size"));
        }
    }
    report
}

/// The number that stands before `what`, or 0 where ptxas leaves it out.
fn before(line: &str, what: &str) -> u32 {
    line.find(what)
        .and_then(|at| line[..at].split_whitespace().next_back())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::testing::Scratch;

    const SAID: &str = "\
ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored; unable to determine register count at entry.
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'local' for 'sm_90a'
ptxas info    : Function properties for local
    384 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 400 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Compile time = 6.131 ms
ptxas info    : Function properties for helper
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'good' for 'sm_90a'
ptxas info    : Function properties for good
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 4 barriers, 1024 bytes smem, 364 bytes cmem[0]
ptxas sm_90a, line 9; warning : something is deprecated
";

    #[test]
    fn usage_is_read_by_function_and_remarks_are_warnings() {
        let report = report(SAID);
        assert_eq!(
            report.functions["good"],
            Usage {
                is_entry: true,
                registers: 168,
                shared_bytes: 1024,
                stack_bytes: 0,
                spill_bytes: 0,
                barriers: 4
            }
        );
        assert_eq!(
            report.functions["local"],
            Usage {
                is_entry: true,
                registers: 24,
                shared_bytes: 0,
                stack_bytes: 400,
                spill_bytes: 20,
                barriers: 0
            }
        );
        assert!(!report.functions["helper"].is_entry);
        assert_eq!(report.functions["helper"].stack_bytes, 16);
        assert_eq!(report.warnings.len(), 2);
        assert!(report.warnings[0].contains("C7508"));
        assert!(report.warnings[1].contains("deprecated"));
    }

    #[test]
    fn the_version_is_the_full_release() {
        let said = "ptxas: NVIDIA (R) Ptx optimizing assembler\nCuda compilation tools, release 13.5, V13.5.37\n\
            Build cuda_13.5.r13.5/compiler.39125733_0\n";
        assert_eq!(version_in(said), Some("13.5.37"));
        assert_eq!(version_in("rustc 1.96"), None);
    }

    #[test]
    fn both_layouts_of_the_pip_package_are_found_newest_first() {
        let scratch = Scratch::new("site");
        scratch.write("nvidia/cuda_nvcc/bin/ptxas", "");
        scratch.write("nvidia/cu13/bin/ptxas", "");
        scratch.write("nvidia/cublas/bin/other", "");
        let nvidia = scratch.path().join("nvidia");
        assert_eq!(
            pip_folders(scratch.path()),
            [nvidia.join("cu13/bin"), nvidia.join("cuda_nvcc/bin")]
        );
        assert!(pip_folders(&nvidia).is_empty());
    }

    #[test]
    fn versions_ascend() {
        let number = |version: &str| -> u32 { version.replace('.', "").parse().unwrap() };
        assert!(VERSIONS.is_sorted_by_key(|version| number(version)));
    }
}
