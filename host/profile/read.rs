//! From the text to a profile.

use super::document::Value;
use super::{Budget, HeadPolicy, Window, unstated};
use super::{Calibrated, FORMAT, Fallback, Policy, Profile, ProfileError, ProfilePlace, VERSION};

const WHOLE: &str = "a whole number from 0 on";
const COUNT: &str = "a whole number from 1 on";
const NUMBER: &str = "a number that f32 holds";
const TEXT: &str = "text";
const PRICE: &str = "a finite number from 0 on";

pub(super) fn not_a_count(place: ProfilePlace, field: &'static str) -> ProfileError {
    ProfileError::Value {
        place,
        field,
        expected: COUNT,
    }
}

pub(super) fn not_a_price() -> ProfileError {
    ProfileError::Value {
        place: ProfilePlace::Calibration,
        field: "price",
        expected: PRICE,
    }
}

pub(super) fn profile(text: &str) -> Result<Profile, ProfileError> {
    let document: Value = serde_json::from_str(text).map_err(|error| ProfileError::Json {
        why: error.to_string(),
    })?;
    let Value::Object(fields) = document else {
        return Err(ProfileError::Format);
    };
    // Before anything else, which other formats and versions may have otherwise.
    let named = |name: &str| fields.iter().find(|field| field.0 == name);
    if !matches!(named("format"), Some((_, Value::Text(format))) if format == FORMAT) {
        return Err(ProfileError::Format);
    }
    if let Some(&(_, Value::Whole(given))) = named("version")
        && given != VERSION
    {
        return Err(ProfileError::Version { given });
    }
    let mut fields = Fields::new(fields, ProfilePlace::Profile)?;
    fields.take("format");
    fields.whole("version")?;
    let model = fields.text("model")?;
    let layers = fields.count("layers")?;
    let q_heads = fields.count("q_heads")?;
    let calibration = match fields.take("calibration") {
        None | Some(Value::Null) => None,
        Some(Value::Object(fields)) => Some(calibration(fields)?),
        Some(_) => return Err(fields.wrong("calibration", "an object or null")),
    };
    let lists = match fields.required("heads")? {
        Value::List(lists) => lists,
        _ => return Err(fields.wrong("heads", "a list of layers")),
    };
    fields.end(&[
        "format",
        "version",
        "model",
        "layers",
        "q_heads",
        "calibration",
        "heads",
    ])?;
    if lists.len() != layers {
        return Err(ProfileError::LayerCount {
            given: lists.len(),
            expected: layers,
        });
    }
    let heads = lists
        .into_iter()
        .enumerate()
        .map(|(layer, list)| of_layer(layer, list, q_heads))
        .collect::<Result<_, _>>()?;
    let profile = Profile::new(model, heads)?;
    match calibration {
        Some(calibration) => profile.with_calibration(calibration),
        None => Ok(profile),
    }
}

fn calibration(fields: Vec<(String, Value)>) -> Result<Calibrated, ProfileError> {
    let mut fields = Fields::new(fields, ProfilePlace::Calibration)?;
    let texts = fields.text("texts")?;
    let lengths = match fields.required("lengths")? {
        Value::List(lengths) => lengths.iter().map(whole).collect::<Option<_>>(),
        _ => None,
    };
    let lengths = lengths.ok_or_else(|| fields.wrong("lengths", "a list of whole numbers"))?;
    let price = match fields.required("price")? {
        Value::Whole(price) => price as f64,
        Value::Number(price) => price,
        _ => return Err(not_a_price()),
    };
    fields.end(&["texts", "lengths", "price"])?;
    Ok(Calibrated {
        texts,
        lengths,
        price,
    })
}

fn of_layer(layer: usize, list: Value, q_heads: usize) -> Result<Vec<HeadPolicy>, ProfileError> {
    let Value::List(heads) = list else {
        return Err(ProfileError::Value {
            place: ProfilePlace::Layer(layer),
            field: "heads",
            expected: "a list of heads",
        });
    };
    if heads.len() != q_heads {
        return Err(ProfileError::HeadCount {
            layer,
            given: heads.len(),
            expected: q_heads,
        });
    }
    let heads = heads.into_iter().enumerate();
    heads
        .map(|(head, value)| of_head(layer, head, value))
        .collect()
}

fn of_head(layer: usize, head: usize, value: Value) -> Result<HeadPolicy, ProfileError> {
    let place = ProfilePlace::Head { layer, head };
    let Value::Object(fields) = value else {
        return Err(ProfileError::Value {
            place,
            field: "heads",
            expected: "an object for each head",
        });
    };
    let mut fields = Fields::new(fields, place)?;
    let kind = fields.text("kind")?;
    let budget = match &*kind {
        "dense" => {
            fields.end(&["kind"])?;
            return Ok(HeadPolicy::Dense);
        }
        "local" => {
            let window = fields.window()?;
            let sinks = fields.whole("sinks")?;
            fields.end(&["kind", "window", "window_ratio", "sinks"])?;
            return Ok(HeadPolicy::Local { window, sinks });
        }
        "rows" => Budget::Rows,
        "blocks" => Budget::Blocks,
        "residual" => Budget::Residual,
        "paper" => Budget::Paper,
        _ => {
            let kind = short(&kind);
            return Err(ProfileError::UnknownKind { layer, head, kind });
        }
    };
    of_budget(fields, budget).map(HeadPolicy::Selected)
}

fn of_budget(mut fields: Fields, budget: Budget) -> Result<Policy, ProfileError> {
    let default = unstated();
    let mut known = vec![
        "kind",
        "coverage",
        "row_stride",
        "window",
        "window_ratio",
        "sinks",
        "fallback",
    ];
    let mut policy = Policy {
        budget,
        coverage: fields.number("coverage")?,
        row_stride: fields.whole("row_stride")?,
        window: fields.window()?,
        sinks: fields.whole("sinks")?,
        fallback: match fields.take("fallback") {
            None => default.fallback,
            Some(Value::Text(name)) if name == Fallback::Auto.name() => Fallback::Auto,
            Some(Value::Text(name)) if name == Fallback::Never.name() => Fallback::Never,
            Some(_) => return Err(fields.wrong("fallback", "\"auto\" or \"never\"")),
        },
        ..default
    };
    match budget {
        Budget::Rows => {
            known.extend(["row_offset", "tail", "tail_stride"]);
            policy.row_offset = fields.whole_or("row_offset", default.row_offset)?;
            policy.tail = fields.whole_or("tail", default.tail)?;
            policy.tail_stride = fields.whole_or("tail_stride", default.tail_stride)?;
        }
        Budget::Blocks => {
            known.push("stride_doubles_from");
            policy.stride_doubles_from =
                fields.whole_or("stride_doubles_from", default.stride_doubles_from)?;
        }
        Budget::Residual | Budget::Paper => {}
    }
    fields.end(&known)?;
    Ok(policy)
}

/// As much of a name as fits a line, whatever a hostile file makes of it.
fn short(name: &str) -> String {
    name.chars().take(60).collect()
}

fn whole(value: &Value) -> Option<usize> {
    match value {
        Value::Whole(number) => usize::try_from(*number).ok(),
        _ => None,
    }
}

/// The fields of an object that have not been taken yet.
struct Fields {
    fields: Vec<(String, Value)>,
    place: ProfilePlace,
}

impl Fields {
    fn new(fields: Vec<(String, Value)>, place: ProfilePlace) -> Result<Self, ProfileError> {
        let mut names: Vec<&str> = fields.iter().map(|field| &*field.0).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ProfileError::DuplicateField {
                place,
                field: short(pair[0]),
            });
        }
        Ok(Fields { fields, place })
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.fields.iter().position(|field| field.0 == name)?;
        Some(self.fields.swap_remove(at).1)
    }

    fn required(&mut self, field: &'static str) -> Result<Value, ProfileError> {
        let place = self.place;
        self.take(field)
            .ok_or(ProfileError::MissingField { place, field })
    }

    fn wrong(&self, field: &'static str, expected: &'static str) -> ProfileError {
        ProfileError::Value {
            place: self.place,
            field,
            expected,
        }
    }

    fn text(&mut self, field: &'static str) -> Result<String, ProfileError> {
        match self.required(field)? {
            Value::Text(text) => Ok(text),
            _ => Err(self.wrong(field, TEXT)),
        }
    }

    fn whole(&mut self, field: &'static str) -> Result<usize, ProfileError> {
        whole(&self.required(field)?).ok_or_else(|| self.wrong(field, WHOLE))
    }

    fn count(&mut self, field: &'static str) -> Result<usize, ProfileError> {
        match self.whole(field) {
            Ok(0) | Err(ProfileError::Value { .. }) => Err(not_a_count(self.place, field)),
            other => other,
        }
    }

    /// Null is the default too.
    fn whole_or(&mut self, field: &'static str, default: usize) -> Result<usize, ProfileError> {
        match self.take(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => whole(&value).ok_or_else(|| self.wrong(field, WHOLE)),
        }
    }

    fn number(&mut self, field: &'static str) -> Result<f32, ProfileError> {
        let number = match self.required(field)? {
            Value::Whole(number) => number as f32,
            Value::Number(number) => number as f32,
            _ => f32::INFINITY,
        };
        match number.is_finite() {
            true => Ok(number),
            false => Err(self.wrong(field, NUMBER)),
        }
    }

    fn window(&mut self) -> Result<Window, ProfileError> {
        let has = |name: &str| self.fields.iter().any(|field| field.0 == name);
        match (has("window"), has("window_ratio")) {
            (true, true) => {
                Err(self.wrong("window", "alone: `window_ratio` is another way to say it"))
            }
            (false, true) => self.number("window_ratio").map(Window::Ratio),
            (_, false) => self.whole("window").map(Window::Tokens),
        }
    }

    /// Refuses what is left.
    fn end(self, known: &[&str]) -> Result<(), ProfileError> {
        match self.fields.into_iter().next() {
            None => Ok(()),
            Some((field, _)) => Err(ProfileError::UnknownField {
                place: self.place,
                field: short(&field),
                known: known.join(", "),
            }),
        }
    }
}
