//! What the tests of this chore share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Project;
use super::launch_bounds::{LaunchBounds, Target};

/// A folder of a test's own, removed with it.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("xtask-{name}-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes `name`, a path below this folder, with the folders that it needs.
    pub fn write(&self, name: &str, contents: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder left in the temporary directory is no reason to fail a test.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One kernel, for sm_80 alone.
const BOUNDS: &[LaunchBounds] = &[LaunchBounds {
    kernel: "k",
    targets: &[Target::Sm80],
    threads: 32,
    min_blocks_per_sm: 1,
    hot: false,
}];

/// A project in `scratch` whose table is that one kernel.
pub fn one_kernel_project(scratch: &Scratch) -> Project {
    Project {
        root: scratch.path().to_owned(),
        device: scratch.path().join("device"),
        package: "none",
        target_dir: scratch.path().join("target"),
        bounds: BOUNDS,
    }
}
