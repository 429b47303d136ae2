//! What is asked: a line of JSON as a plan, or as the operands of one.

use sample_attention::pipeline::{DeviceMemory, DeviceTensor, GpuPlan, Operands, Rescale, Target};
use sample_attention::{Budget, Dtype, Fallback, Policy, Problem, Window};
use serde_json::{Map, Value};

/// A line of the input.
pub enum Request {
    /// The kernels of a target.
    Ptx(Target),
    /// A new plan.
    Plan(Box<GpuPlan>),
    /// The launches of a plan that was made before, on these operands.
    Launches {
        /// Its number.
        plan: usize,
        target: Target,
        multiprocessors: u32,
        operands: Box<Operands>,
    },
}

/// Reads the 16 words of a tensor map.
pub fn words(line: &str) -> Result<[u64; 16], String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let answer = Fields::of("the tensor map", &value)?;
    answer.only(&["words"])?;
    answer.integers("words")
}

/// Reads a request.
pub fn parse(line: &str) -> Result<Request, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let request = Fields::of("the request", &value)?;
    request.only(&["ptx", "plan", "launches"])?;
    if let Some(target) = request.find("ptx") {
        Ok(Request::Ptx(target_of(target)?))
    } else if let Some(plan) = request.find("plan") {
        let plan = plan_of(&Fields::of("plan", plan)?)?;
        Ok(Request::Plan(Box::new(plan)))
    } else {
        launches_of(&Fields::of("launches", request.get("launches")?)?)
    }
}

fn plan_of(fields: &Fields<'_>) -> Result<GpuPlan, String> {
    fields.only(&["problem", "work", "rescale"])?;
    let problem = problem_of(&Fields::of("problem", fields.get("problem")?)?)?;
    let work = fields.get("work")?;
    let plan = if work == "dense" {
        GpuPlan::dense(problem)
    } else {
        let work = Fields::of("work", work)?;
        work.only(&["given", "policy"])?;
        match work.find("given") {
            Some(given) => {
                let given = Fields::of("given", given)?;
                given.only(&["sinks"])?;
                GpuPlan::given(problem, given.integer_or("sinks", 0)?)
            }
            None => GpuPlan::new(
                problem,
                policy_of(&Fields::of("policy", work.get("policy")?)?)?,
            ),
        }
    };
    let plan = plan.map_err(|error| error.to_string())?;
    match fields.word_or("rescale", "threshold")? {
        "threshold" => Ok(plan.with_rescale(Rescale::Threshold)),
        "always" => Ok(plan.with_rescale(Rescale::Always)),
        other => Err(format!("there is no rescale {other}: threshold or always")),
    }
}

fn problem_of(fields: &Fields<'_>) -> Result<Problem, String> {
    fields.only(&[
        "batch",
        "q_heads",
        "kv_heads",
        "q_len",
        "k_len",
        "head_dim",
        "softmax_scale",
        "causal",
        "dtype",
    ])?;
    let head_dim = fields.integer("head_dim")?;
    let mut problem = Problem::causal(fields.integer("k_len")?, head_dim.max(1), fields.dtype()?);
    problem.head_dim = head_dim;
    problem.batch = fields.integer_or("batch", 1)?;
    problem.q_heads = fields.integer("q_heads")?;
    problem.kv_heads = fields.integer("kv_heads")?;
    problem.q_len = fields.integer("q_len")?;
    problem.softmax_scale = fields.number_or("softmax_scale", problem.softmax_scale)?;
    if let Some(causal) = fields.find("causal") {
        problem.causal = causal.as_bool().ok_or("causal is true or false")?;
    }
    Ok(problem)
}

fn policy_of(fields: &Fields<'_>) -> Result<Policy, String> {
    fields.only(&[
        "budget",
        "coverage",
        "row_stride",
        "stride_doubles_from",
        "row_offset",
        "tail",
        "tail_stride",
        "window",
        "window_ratio",
        "sinks",
        "fallback",
    ])?;
    let defaults = match fields.word_or("budget", "rows")? {
        "rows" => Policy::default(),
        "blocks" => Policy::of(Budget::Blocks),
        "residual" => Policy::of(Budget::Residual),
        "paper" => Policy::paper(),
        other => {
            return Err(format!(
                "there is no budget {other}: rows, blocks, residual or paper"
            ));
        }
    };
    let window = match (fields.find("window"), fields.find("window_ratio")) {
        (None, None) => defaults.window,
        (Some(_), None) => Window::Tokens(fields.integer("window")?),
        (None, Some(_)) => Window::Ratio(fields.number_or("window_ratio", 0.0)?),
        (Some(_), Some(_)) => return Err("window or window_ratio, not both".into()),
    };
    Ok(defaults
        .with_coverage(fields.number_or("coverage", defaults.coverage)?)
        .with_row_stride(fields.integer_or("row_stride", defaults.row_stride)?)
        .with_stride_doubles_from(
            fields.integer_or("stride_doubles_from", defaults.stride_doubles_from)?,
        )
        .with_row_offset(fields.integer_or("row_offset", defaults.row_offset)?)
        .with_tail(
            fields.integer_or("tail", defaults.tail)?,
            fields.integer_or("tail_stride", defaults.tail_stride)?,
        )
        .with_window(window)
        .with_sinks(fields.integer_or("sinks", defaults.sinks)?)
        .with_fallback(match fields.word_or("fallback", "auto")? {
            "auto" => Fallback::Auto,
            "never" => Fallback::Never,
            other => return Err(format!("there is no fallback {other}: auto or never")),
        }))
}

fn target_of(value: &Value) -> Result<Target, String> {
    let found = Target::ALL
        .into_iter()
        .find(|target| value == target.name());
    found.ok_or_else(|| format!("there are no kernels for {value}"))
}

fn launches_of(fields: &Fields<'_>) -> Result<Request, String> {
    fields.only(&[
        "plan",
        "target",
        "multiprocessors",
        "q",
        "k",
        "v",
        "o",
        "lse",
        "workspace",
    ])?;
    let tensor = |name| tensor_of(&Fields::of(name, fields.get(name)?)?);
    let memory = |name| memory_of(&Fields::of(name, fields.get(name)?)?);
    Ok(Request::Launches {
        plan: fields.integer("plan")?,
        target: target_of(fields.get("target")?)?,
        multiprocessors: fields
            .integer("multiprocessors")?
            .try_into()
            .map_err(|_| "there is no GPU of so many multiprocessors")?,
        operands: Box::new(Operands::new(
            tensor("q")?,
            tensor("k")?,
            tensor("v")?,
            tensor("o")?,
            memory("lse")?,
            memory("workspace")?,
        )),
    })
}

fn tensor_of(fields: &Fields<'_>) -> Result<DeviceTensor, String> {
    fields.only(&["address", "bytes", "dtype", "shape", "strides"])?;
    let memory = DeviceMemory {
        address: fields.integer("address")? as u64,
        bytes: fields.integer("bytes")? as u64,
    };
    let [shape, strides] = [fields.integers("shape")?, fields.integers("strides")?]
        .map(|integers| integers.map(|integer| integer as usize));
    DeviceTensor::new(memory, fields.dtype()?, shape, strides)
        .map_err(|error| format!("{}: {error}", fields.name))
}

fn memory_of(fields: &Fields<'_>) -> Result<DeviceMemory, String> {
    fields.only(&["address", "bytes"])?;
    Ok(DeviceMemory {
        address: fields.integer("address")? as u64,
        bytes: fields.integer("bytes")? as u64,
    })
}

/// The fields of one object, which has a name in messages.
struct Fields<'a> {
    name: &'a str,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(name: &'a str, value: &'a Value) -> Result<Self, String> {
        let fields = value
            .as_object()
            .ok_or_else(|| format!("{name} is an object, not {value}"))?;
        Ok(Fields { name, fields })
    }

    fn only(&self, known: &[&str]) -> Result<(), String> {
        let name = self.name;
        match self
            .fields
            .keys()
            .find(|field| !known.contains(&field.as_str()))
        {
            Some(field) => Err(format!(
                "{name} has no field {field}: it has {}",
                known.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn find(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field)
    }

    fn get(&self, field: &str) -> Result<&'a Value, String> {
        self.find(field)
            .ok_or_else(|| format!("{} lacks the field {field}", self.name))
    }

    fn integer(&self, field: &str) -> Result<usize, String> {
        let value = self.get(field)?;
        let integer = value.as_u64().and_then(|value| usize::try_from(value).ok());
        integer.ok_or_else(|| format!("{}.{field} is a whole number, not {value}", self.name))
    }

    fn integer_or(&self, field: &str, default: usize) -> Result<usize, String> {
        self.find(field)
            .map_or(Ok(default), |_| self.integer(field))
    }

    fn number_or(&self, field: &str, default: f32) -> Result<f32, String> {
        let Some(value) = self.find(field) else {
            return Ok(default);
        };
        let number = value.as_f64().map(|number| number as f32);
        number.ok_or_else(|| format!("{}.{field} is a number, not {value}", self.name))
    }

    fn word_or(&self, field: &str, default: &'a str) -> Result<&'a str, String> {
        let Some(value) = self.find(field) else {
            return Ok(default);
        };
        value
            .as_str()
            .ok_or_else(|| format!("{}.{field} is a word, not {value}", self.name))
    }

    fn dtype(&self) -> Result<Dtype, String> {
        let value = self.get("dtype")?;
        [Dtype::F32, Dtype::F16, Dtype::Bf16]
            .into_iter()
            .find(|dtype| *value == dtype.to_string())
            .ok_or_else(|| format!("{}.dtype is f32, f16 or bf16, not {value}", self.name))
    }

    fn integers<const N: usize>(&self, field: &str) -> Result<[u64; N], String> {
        let value = self.get(field)?;
        let elements = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let integers: Option<Vec<u64>> = elements.iter().map(Value::as_u64).collect();
        integers
            .and_then(|integers| integers.try_into().ok())
            .ok_or_else(|| format!("{}.{field} is {N} whole numbers, not {value}", self.name))
    }
}
