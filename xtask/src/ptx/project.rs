//! The crate whose kernels are compiled, and its files.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::header::Header;
use super::launch_bounds::{LAUNCH_BOUNDS, LaunchBounds, Target};
use super::resources::Resources;

/// The crate that is built, and where.
pub struct Project {
    /// The workspace.
    pub root: PathBuf,
    pub device: PathBuf,
    pub package: &'static str,
    pub target_dir: PathBuf,
    pub bounds: &'static [LaunchBounds],
}

impl Project {
    /// This repository.
    pub fn here() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("xtask lies in the workspace")
            .to_owned();
        let target_dir = env::var_os("CARGO_TARGET_DIR")
            .and_then(|folder| std::path::absolute(folder).ok())
            .unwrap_or_else(|| root.join("target"));
        Self {
            device: root.join("device"),
            root,
            package: "sample-attention-device",
            target_dir,
            bounds: LAUNCH_BOUNDS,
        }
    }

    /// The targets that any kernel is for.
    pub fn targets(&self) -> Vec<Target> {
        Target::ALL
            .into_iter()
            .filter(|target| self.bounds.iter().any(|row| row.targets.contains(target)))
            .collect()
    }

    pub fn ptx_file(&self, target: Target) -> PathBuf {
        self.device
            .join("ptx")
            .join(format!("{}.ptx", target.name()))
    }

    pub fn resources_file(&self) -> PathBuf {
        self.device.join("ptx/resources.txt")
    }

    /// The committed table of resources.
    pub fn resources(&self) -> Result<Resources, String> {
        let path = self.resources_file();
        fs::read_to_string(&path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|text| Resources::parse(&text))
            .map_err(|why| format!("{}: {why}", self.shown(&path)))
    }

    /// The shipped PTX of a target: what it says about itself, and the text.
    pub fn shipped(&self, target: Target) -> Result<(Header, String), String> {
        let path = self.ptx_file(target);
        fs::read_to_string(&path)
            .map_err(|error| format!("cannot be read: {error}"))
            .and_then(|file| Header::parse(&file))
            .map_err(|why| format!("{}: {why}", self.shown(&path)))
    }

    /// A path as people write it: from the root of the repository.
    pub fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .display()
            .to_string()
    }
}
