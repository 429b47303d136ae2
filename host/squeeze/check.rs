//! What the keys and values of a fixed context must be.

use super::error::{Error, Result};
use super::rows::read;
use crate::dtype::Dtype;
use crate::problem::Problem;
use crate::tensor::TensorView;

/// Refuses keys and values that no index holds.
pub(super) fn check_fixed(k: &TensorView<'_>, v: &TensorView<'_>) -> Result<()> {
    let [batch, heads, len, dim] = k.shape();
    if batch != 1 {
        return Err(Error::Batch { given: batch });
    }
    if v.shape() != k.shape() {
        return Err(Error::Shape {
            tensor: "v",
            expected: k.shape(),
            given: v.shape(),
        });
    }
    check_dtype("v", k.dtype(), v.dtype())?;
    Problem::causal(len, dim, k.dtype())
        .with_heads(heads, heads)
        .validate()?;
    Ok(())
}

/// Refuses another element type.
pub(super) fn check_dtype(tensor: &'static str, expected: Dtype, given: Dtype) -> Result<()> {
    if given == expected {
        return Ok(());
    }
    Err(Error::Dtype {
        tensor,
        expected,
        given,
    })
}

/// Refuses rows that are not finite; `first` is the position of the tensor's first token.
pub(super) fn check_finite(
    tensor: &'static str,
    view: &TensorView<'_>,
    tokens: impl Iterator<Item = usize> + Clone,
    first: usize,
) -> Result<()> {
    let [_, heads, _, dim] = view.shape();
    let mut row = vec![0.0; dim];
    for head in 0..heads {
        for token in tokens.clone() {
            read(view, (0, head, token), &mut row);
            if row.iter().any(|x| !x.is_finite()) {
                return Err(Error::NonFinite {
                    tensor,
                    head,
                    position: first + token,
                });
            }
        }
    }
    Ok(())
}
