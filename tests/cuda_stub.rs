//! What the module `cuda` says on a machine, or in a build, that has no GPU to open.

use sample_attention::cuda::Device;
use sample_attention::pipeline::Target;
use sample_attention::{CudaError, Error};

fn refusals() -> [Error; 2] {
    [
        Device::new(0).map(drop).unwrap_err(),
        Device::with_target(0, Target::Sm80).map(drop).unwrap_err(),
    ]
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_the_feature_names_it() {
    let count = Device::count().unwrap_err();
    assert_eq!(count, CudaError::NotCompiled.into());
    for error in refusals() {
        assert_eq!(error, CudaError::NotCompiled.into());
        assert!(error.to_string().contains("the feature `cuda`"), "{error}");
    }
}

/// `SAMPLE_ATTENTION_STAND_IN` says that what is loaded as the driver is `.ci/driver-stand-in`.
#[cfg(feature = "cuda")]
#[test]
fn a_stand_in_for_the_driver_is_recognised() {
    if std::env::var_os("SAMPLE_ATTENTION_STAND_IN").is_none() {
        eprintln!("\n*** SKIPPED: not run on the stand-in for the driver, as .ci/run does. ***\n");
        return;
    }
    for error in refusals() {
        assert!(
            matches!(&error, Error::Cuda(CudaError::NoDriver { .. })),
            "{error}"
        );
        assert!(
            error.to_string().contains("install NVIDIA's driver"),
            "{error}"
        );
    }
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_beyond_the_last_is_named() {
    match Device::count() {
        Ok(count) if count > 0 => {
            let error = Device::new(count).map(drop).unwrap_err();
            let expected = CudaError::NoSuchDevice {
                ordinal: count,
                count,
            };
            assert_eq!(error, expected.into());
        }
        Ok(_) => assert_eq!(
            Device::new(0).map(drop).unwrap_err(),
            CudaError::NoDevice.into()
        ),
        Err(error) => eprintln!("\n*** SKIPPED: {error}. ***\n"),
    }
}
