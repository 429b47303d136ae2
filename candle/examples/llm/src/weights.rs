//! Tensors of a folder of safetensors files, read when they are asked for.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::failure::Failure;

/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// The only file of a model without shards.
const SINGLE: &str = "model.safetensors";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The weights of a folder.
pub struct Weights {
    files: Vec<Shard>,
    /// File of each tensor.
    places: HashMap<String, usize>,
    dtype: DType,
    device: Device,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let file = File::open(&path).map_err(|error| Failure::of(path.display(), error))?;
        // SAFETY: weights are not written while they are read; who does it all the same gets other weights, or a fault of the system's.
        let map = unsafe { Mmap::map(&file) };
        let map = map.map_err(|error| Failure::of(path.display(), error))?;
        Ok(Shard { path, map })
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, Failure> {
        SafeTensors::deserialize(&self.map).map_err(|error| Failure::of(self.path.display(), error))
    }
}

impl Weights {
    /// # Errors
    /// Files that are not there, or are no safetensors.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self, Failure> {
        let files = shards(folder)?
            .into_iter()
            .map(|name| Shard::open(folder.join(name)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut places = HashMap::new();
        for (at, file) in files.iter().enumerate() {
            for name in file.tensors()?.names() {
                places.insert(name.to_owned(), at);
            }
        }
        Ok(Weights {
            files,
            places,
            dtype,
            device: device.clone(),
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// A tensor of this shape.
    ///
    /// # Errors
    /// One that is not there, or has another shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, Failure> {
        let Some(&at) = self.places.get(name) else {
            return Err(Failure::new(format_args!(
                "the model has no tensor {name}, which must be {shape:?}"
            )));
        };
        let file = &self.files[at];
        let tensors = file.tensors()?;
        let view = tensors
            .tensor(name)
            .map_err(|error| Failure::of(file.path.display(), error))?;
        if view.shape() != shape {
            return Err(Failure::new(format_args!(
                "{}: {name} has shape {:?}, but config.json says {shape:?}",
                file.path.display(),
                view.shape()
            )));
        }
        let dtype = DType::try_from(view.dtype())
            .map_err(|error| Failure::of(format_args!("{name}"), error))?;
        if !dtype.is_float() {
            return Err(Failure::new(format_args!(
                "{}: {name} is {dtype:?}; weights must be f32, f16 or bf16",
                file.path.display()
            )));
        }
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, shape, &self.device)?;
        Ok(tensor.to_dtype(self.dtype)?)
    }
}

/// Names of the files that hold a folder's tensors.
fn shards(folder: &Path) -> Result<Vec<String>, Failure> {
    let index = folder.join(INDEX);
    if !index.exists() {
        if folder.join(SINGLE).exists() {
            return Ok(vec![SINGLE.to_owned()]);
        }
        return Err(Failure::of(
            folder.display(),
            format_args!("there is neither {SINGLE} nor {INDEX}"),
        ));
    }
    let text = fs::read_to_string(&index).map_err(|error| Failure::of(index.display(), error))?;
    let parsed: Index =
        serde_json::from_str(&text).map_err(|error| Failure::of(index.display(), error))?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    for name in &names {
        // A file of this folder, and of no other.
        let is_plain = Path::new(name).components().count() == 1 && !name.contains("..");
        if !is_plain {
            return Err(Failure::of(
                index.display(),
                format_args!("{name:?} is no file of the folder"),
            ));
        }
    }
    Ok(names)
}
