//! Lengths and page numbers, which are tensors too.

use candle_core::{DType, Result, Tensor, bail};

/// The values of a tensor of u32 or i32, in order.
fn integers(name: &str, tensor: &Tensor) -> Result<Vec<usize>> {
    if !tensor.device().is_cpu() {
        bail!("{name} must be on the device of q, which is the CPU")
    }
    let flat = tensor.flatten_all()?;
    match tensor.dtype() {
        DType::U32 => counts(name, &flat.to_vec1::<u32>()?),
        DType::I32 => counts(name, &flat.to_vec1::<i32>()?),
        other => bail!("{name} must be u32 or i32, and is {other:?}"),
    }
}

fn counts<T: Copy + TryInto<usize> + std::fmt::Display>(
    name: &str,
    values: &[T],
) -> Result<Vec<usize>> {
    let mut counts = Vec::with_capacity(values.len());
    for &value in values {
        let Ok(count) = value.try_into() else {
            bail!("{name} holds {value}: lengths and page numbers are not negative")
        };
        counts.push(count);
    }
    Ok(counts)
}

/// Cumulative lengths: ascending, none longer than `max`.
///
/// # Errors
/// Any other.
pub(super) fn cumulative(
    name: &str,
    tensor: &Tensor,
    (max_name, max): (&str, usize),
) -> Result<Vec<usize>> {
    let [count] = *tensor.dims() else {
        bail!(
            "{name} has shape {:?}: it must be [sequences + 1], cumulative",
            tensor.dims()
        )
    };
    if count < 2 {
        bail!("{name} has {count} entries: it must have one more than there are sequences")
    }
    let ends = integers(name, tensor)?;
    for (sequence, pair) in ends.windows(2).enumerate() {
        let Some(len) = pair[1].checked_sub(pair[0]) else {
            bail!(
                "{name} falls from {} to {} at sequence {sequence}: it must hold cumulative lengths, not one length a sequence",
                pair[0],
                pair[1]
            )
        };
        if len > max {
            bail!("sequence {sequence} has {len} tokens by {name}, more than {max_name} = {max}")
        }
    }
    Ok(ends)
}

/// The page numbers of all sequences, and how many each has.
pub(super) struct PageNumbers {
    numbers: Vec<usize>,
    of_each: usize,
}

impl PageNumbers {
    pub(super) fn new(block_table: &Tensor, sequences: usize) -> Result<Self> {
        let &[rows, of_each] = block_table.dims() else {
            bail!(
                "block_table has shape {:?}: it must be [sequences, most pages of one]",
                block_table.dims()
            )
        };
        if rows != sequences {
            bail!("block_table has {rows} rows for {sequences} sequences")
        }
        Ok(PageNumbers {
            numbers: integers("block_table", block_table)?,
            of_each,
        })
    }

    /// The pages that hold a sequence's `len` tokens. Entries beyond are not looked at.
    pub(super) fn of_sequence(
        &self,
        sequence: usize,
        (len, page_tokens, pages): (usize, usize, usize),
    ) -> Result<&[usize]> {
        let needed = len.div_ceil(page_tokens);
        if needed > self.of_each {
            bail!(
                "sequence {sequence} has {len} keys, but block_table has room for {} pages of {page_tokens}",
                self.of_each
            )
        }
        let row = &self.numbers[sequence * self.of_each..][..needed];
        if let Some(page) = row.iter().find(|&&page| page >= pages) {
            bail!("block_table names page {page} for sequence {sequence}, and there are {pages}")
        }
        Ok(row)
    }
}
