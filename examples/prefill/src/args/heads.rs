//! A choice of heads: `0,5,8-11`.

use std::ops::RangeInclusive;

use crate::failure::Failure;

/// Heads that are drawn at most: a picture of more is too large to look at.
const MAX_CHOSEN: usize = 64;

/// Heads by number, in the order of the list.
#[derive(Clone, Debug)]
pub struct Heads(Vec<RangeInclusive<usize>>);

impl Heads {
    /// Reads numbers and ranges between commas.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number = |text: &str| -> Result<usize, String> {
            let number = text.trim().parse();
            number.map_err(|_| format!("`{text}` is no number of a head; write 0,5,8-11"))
        };
        let mut chosen = 0usize;
        let ranges: Vec<RangeInclusive<usize>> = text
            .split(',')
            .map(|part| {
                let range = match part.split_once('-') {
                    Some((first, last)) => number(first)?..=number(last)?,
                    None => number(part).map(|head| head..=head)?,
                };
                if range.is_empty() {
                    return Err(format!("`{part}` ends before it begins"));
                }
                let count = (range.end() - range.start()).saturating_add(1);
                chosen = chosen.saturating_add(count);
                Ok(range)
            })
            .collect::<Result<_, String>>()?;
        if chosen > MAX_CHOSEN {
            return Err(format!(
                "{chosen} heads; at most {MAX_CHOSEN} are drawn in one picture"
            ));
        }
        Ok(Heads(ranges))
    }

    /// The numbers, if an input of `count` heads has them all.
    pub fn among(&self, count: usize) -> Result<Vec<usize>, Failure> {
        let heads: Vec<usize> = self.0.iter().cloned().flatten().collect();
        match heads.iter().find(|&&head| head >= count) {
            None => Ok(heads),
            Some(head) => Err(Failure::of(
                "--heads",
                format_args!("there is no head {head}; this input has {count}, counted from 0"),
            )),
        }
    }
}
