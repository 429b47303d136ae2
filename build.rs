//! With feature `rust-cuda`: compiles the kernels with rust-cuda and names the PTX to `host/ptx.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "rust-cuda")]
    rust_cuda::build();
}

#[cfg(feature = "rust-cuda")]
mod rust_cuda {
    use std::env;
    use std::path::PathBuf;

    use cuda_builder::{CudaBuilder, NvvmArch};

    pub fn build() {
        // What the build script of the device crate says, which is a package of its own.
        let device = folder("DEP_SAMPLE_ATTENTION_DEVICE_FOLDER");
        let ptx = folder("OUT_DIR").join("rust-cuda.ptx");
        // One text for every GPU: the published `cuda_builder` knows no architecture after 8.0.
        CudaBuilder::new(device)
            .arch(NvvmArch::Compute80)
            .build_args(&["--features", "rust-cuda", "--ignore-rust-version"])
            .copy_to(&ptx)
            .build()
            .expect("rust-cuda compiles the kernels");
        println!("cargo::rustc-env=SAMPLE_ATTENTION_PTX={}", ptx.display());
    }

    fn folder(variable: &str) -> PathBuf {
        env::var_os(variable)
            .unwrap_or_else(|| panic!("cargo sets {variable}"))
            .into()
    }
}
