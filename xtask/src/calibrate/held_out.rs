//! The check on text that the calibration did not see.

use sample_attention::{HeadPolicy, Policy};

use super::texts::held_out_from;
use crate::quality::attention::{By, RowCoverage};
use crate::quality::measure::{Comparison, Measurement, Reference, Stretch, answered};
use crate::quality::model::Model;
use crate::quality::progress::Bar;
use crate::quality::retrieval::{Case, Place, share_right};

/// Plain stretches, beside the texts with questions.
const STRETCHES: usize = 2;

/// A line for dense attention, one for the default policy and one for the profile: answers, cost, area and divergence.
pub fn check(
    model: &Model,
    text: &[u8],
    len: usize,
    cases: u64,
    profile: &[Vec<HeadPolicy>],
) -> Result<String, String> {
    let from = held_out_from(text);
    let spare = (text.len() - from).checked_sub(len + 1);
    let spare = spare.ok_or_else(|| {
        format!(
            "{len} bytes do not fit into the {} that are held out",
            text.len() - from
        )
    })?;
    let offsets: Vec<usize> = match spare >= len {
        true => (0..STRETCHES)
            .map(|at| from + spare * at / (STRETCHES - 1))
            .collect(),
        false => vec![from + spare],
    };
    let half = &text[from..];
    let cases = (0..cases)
        .flat_map(|seed| Place::ALL.map(|place| Case::new(half, len, seed, place)))
        .collect::<Result<Vec<_>, _>>()?;
    let bar = Bar::new(3 * model.config().layers * (offsets.len() + cases.len()));
    let references = offsets
        .iter()
        .map(|&offset| Reference::measure(model, Stretch::of(text, offset, len)?, &bar))
        .collect::<Result<Vec<_>, String>>()?;
    let answers = |by: By<'_>| {
        let answers = cases.iter().map(|case| answered(model, by, case, &bar));
        answers.collect::<Result<Vec<_>, String>>()
    };
    let asked = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{share:.3}"));
    let dense = answers(By::Dense)?;
    let mut table = format!(
        "held out, {len} bytes: {} texts each way with twelve questions, made of the bytes from {from} on; KL on stretches at {offsets:?}\n\
         heads          cost   area   asked at the end  in the middle  KL, bits\n\
         dense          1.000  1.000  {:>16}  {:>13}  0",
        cases.len() / 2,
        asked(share_right(&dense, Place::End)),
        asked(share_right(&dense, Place::Middle)),
    );
    for (name, by) in [
        ("the default", By::Policy(Policy::default())),
        ("the profile", By::Profile(profile)),
    ] {
        let stretches = references
            .iter()
            .map(|dense| Comparison::measure(model, by, dense, RowCoverage::Skipped, &bar))
            .collect::<Result<Vec<_>, _>>()?;
        let measurement = Measurement {
            by,
            stretches,
            answers: answers(by)?,
        };
        table += &format!(
            "\n{name:13}  {:.3}  {:.3}  {:>16}  {:>13}  {:.5}",
            measurement.cost(),
            measurement.mean(Comparison::density),
            asked(measurement.share_right(Place::End)),
            asked(measurement.share_right(Place::Middle)),
            measurement.mean(|stretch| stretch.divergence),
        );
    }
    bar.finish();
    Ok(table)
}
