//! What is answered: a plan's memory, and its launches on a device that is somewhere else.

use std::mem::MaybeUninit;

use sample_attention::pipeline::{
    Call, Device, GpuPlan, Launch, Region, Target, TensorMap, TensorMapLayout,
};
use sample_attention_device::reduction::MASS_ONE;
use serde_json::{Map, Value, json};

use crate::lines::{hear, say};
use crate::request::words;

/// The memory that runs of a plan need.
pub fn plan(number: usize, plan: &GpuPlan) -> Value {
    let workspace = plan.workspace();
    let mut regions = Map::new();
    for (name, region) in [
        ("row_lse", region(&workspace.row_lse)),
        ("stats", region(&workspace.stats)),
        ("bases", region(&workspace.bases)),
        ("sink_stats", region(&workspace.sink_stats)),
        ("mass", region(&workspace.mass)),
        ("outside", region(&workspace.outside)),
        ("covered", region(&workspace.covered)),
        ("kept", region(&workspace.kept)),
        ("listed", region(&workspace.listed)),
        ("finite_rows", region(&workspace.finite_rows)),
        ("lists", region(&workspace.lists)),
        ("list_counts", region(&workspace.list_counts)),
        ("stripes", region(&workspace.stripes)),
        ("stripe_counts", region(&workspace.stripe_counts)),
        ("dense", region(&workspace.dense)),
        ("partial_o", region(&workspace.partial_o)),
        ("partial_sums", region(&workspace.partial_sums)),
    ] {
        regions.insert(name.into(), region);
    }
    json!({
        "plan": number,
        "workspace_bytes": plan.workspace_bytes(),
        "regions": regions,
        "selection": plan.sampled_rows().map(|rows| {
            json!({ "rows_by_head": rows, "sinks": plan.sinks(), "mass_one": MASS_ONE })
        }),
        "waves": plan.waves(),
    })
}

fn region<T>(region: &Region<T>) -> Value {
    json!({ "offset_bytes": region.offset_bytes, "len": region.len, "element_bytes": size_of::<T>() })
}

/// Notes launches in place of a device, in the order in which a stream has to run them.
pub struct Recorder {
    target: Target,
    multiprocessors: u32,
    launches: Vec<Value>,
}

impl Recorder {
    /// Of a device with kernels of a target.
    pub fn new(target: Target, multiprocessors: u32) -> Self {
        Recorder {
            target,
            multiprocessors,
            launches: Vec::new(),
        }
    }

    /// What was launched.
    pub fn answer(self) -> Value {
        json!({ "launches": self.launches })
    }
}

impl Device for Recorder {
    type Error = String;

    fn target(&self) -> Target {
        self.target
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn tensor_map(&mut self, layout: &TensorMapLayout) -> Result<TensorMap, String> {
        let rank = layout.rank as usize;
        let question = json!({ "tensor_map": {
            "address": layout.base,
            "element_bytes": layout.element_bytes,
            "dims": layout.dims[..rank],
            "strides_bytes": layout.strides_bytes[..rank - 1],
            "box_dims": layout.box_dims[..rank],
            "swizzle": layout.swizzle as u32,
        }});
        say(&question).map_err(|error| error.to_string())?;
        let line = hear().map_err(|error| error.to_string())?;
        let line = line.ok_or("the input ended where a tensor map was asked for")?;
        Ok(TensorMap::from_words(words(&line)?))
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), String> {
        self.launches.push(json!({
            "stage": launch.stage.name(),
            "kernel": launch.call.name(),
            "grid": launch.shape.grid,
            "block": launch.shape.block,
            "shared_bytes": launch.shape.shared_bytes,
            "params": hexadecimal(&params(&launch.call)),
        }));
        Ok(())
    }
}

/// The bytes that a driver would read.
fn params(call: &Call) -> Vec<u8> {
    let (from, len) = call.params();
    let mut bytes = vec![MaybeUninit::<u8>::uninit(); len];
    // SAFETY: both are `len` bytes, and the copy is of bytes that need not be initialised.
    unsafe { std::ptr::copy_nonoverlapping(from.cast(), bytes.as_mut_ptr(), len) };
    // SAFETY: the assembly does nothing. What the compiler has to assume of it is that it writes the bytes, each with some
    // value: so the padding between the fields, which nobody initialised, may be read like the rest.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags));
    }
    // SAFETY: as the assembly left them, all bytes are initialised.
    bytes
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
