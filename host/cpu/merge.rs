//! Attention over two disjoint sets of keys, from attention over each.

use rayon::prelude::*;

use super::rows::{HeadRows, OutputRows};
use crate::error::{Error, Result};
use crate::problem::MAX_HEAD_DIM;
use crate::tensor::{Outputs, TensorView, check_shape};
use crate::varlen::KvView;

/// Rows of a task: enough to be worth handing out.
const ROWS_PER_TASK: usize = 64;

/// Attention over the keys of `a` and of `b`, which have none in common, from attention over each: a prefix that many prompts share
/// and each prompt's own keys, or parts of a context on several devices.
///
/// ```text
/// m = max(lse_a, lse_b);  O = (e^(lse_a − m)·O_a + e^(lse_b − m)·O_b) / (e^(lse_a − m) + e^(lse_b − m))
/// lse = m + ln(e^(lse_a − m) + e^(lse_b − m))
/// ```
///
/// Tensors are [batch, heads, length, head_dim] (packed ones [1, heads, tokens, head_dim]), each of any element type and strides;
/// log-sum-exps are natural and contiguous [batch, heads, length]. A row whose log-sum-exp is −∞ on one side is the other side's row,
/// whatever O is there; where both are, O = 0 and the log-sum-exp −∞. The arithmetic is f64's, rounded once. Rows are shared out over
/// the current rayon pool.
///
/// ```
/// use sample_attention::{Outputs, TensorView, TensorViewMut, merge};
/// let (o_a, o_b) = ([1f32; 8], [5f32; 8]);
/// let (o_a, o_b) = (TensorView::bhsd(&o_a, [1, 1, 1, 8])?, TensorView::bhsd(&o_b, [1, 1, 1, 8])?);
/// let (mut o, mut lse) = ([0f32; 8], [0f32]);
/// let outputs = Outputs::new(TensorViewMut::bhsd(&mut o, [1, 1, 1, 8])?).with_lse(&mut lse);
/// // b has three times the weight of a.
/// merge((&o_a, &[0.0]), (&o_b, &[3f32.ln()]), outputs)?;
/// assert!((o[0] - 4.0).abs() < 1e-6 && (lse[0] - 4f32.ln()).abs() < 1e-6);
/// # Ok::<(), sample_attention::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`], [`Error::LseLen`] and [`Error::HeadDim`]; nothing has been written then.
pub fn merge(
    a: (&TensorView<'_>, &[f32]),
    b: (&TensorView<'_>, &[f32]),
    outputs: Outputs<'_>,
) -> Result<()> {
    let Outputs { mut o, lse } = outputs;
    let shape = o.shape();
    let [batch, heads, len, head_dim] = shape;
    check_shape("o_a", shape, a.0.shape())?;
    check_shape("o_b", shape, b.0.shape())?;
    if head_dim > MAX_HEAD_DIM {
        return Err(Error::HeadDim { head_dim });
    }
    let rows = batch.saturating_mul(heads).saturating_mul(len);
    let lens = [
        Some(a.1.len()),
        Some(b.1.len()),
        lse.as_ref().map(|lse| lse.len()),
    ];
    if let Some(given) = lens.into_iter().flatten().find(|&given| given != rows) {
        return Err(Error::LseLen {
            expected: rows,
            given,
        });
    }
    if shape.contains(&0) {
        return Ok(());
    }
    let output = OutputRows::new(&mut o, lse);
    let tasks = (0..rows.div_ceil(ROWS_PER_TASK)).into_par_iter();
    tasks.for_each(|task| {
        let mut buffers = [[0f32; MAX_HEAD_DIM]; 2];
        let [of_a, of_b] = &mut buffers;
        let (of_a, of_b) = (&mut of_a[..head_dim], &mut of_b[..head_dim]);
        for row in task * ROWS_PER_TASK..rows.min((task + 1) * ROWS_PER_TASK) {
            let (head, token) = (row / len, row % len);
            let (batch, head) = (head / heads, head % heads);
            HeadRows::new(KvView::strided(*a.0), batch, head).read(token, of_a);
            HeadRows::new(KvView::strided(*b.0), batch, head).read(token, of_b);
            let lse = merge_row((&mut *of_a, a.1[row]), (&*of_b, b.1[row]));
            // SAFETY: each row is in one task.
            unsafe { output.write((batch, head, token), of_a, lse) };
        }
    });
    Ok(())
}

/// Merges a row into `a`. Returns its log-sum-exp.
fn merge_row((a, lse_a): (&mut [f32], f32), (b, lse_b): (&[f32], f32)) -> f32 {
    if lse_b == f32::NEG_INFINITY {
        if lse_a == f32::NEG_INFINITY {
            a.fill(0.0);
        }
        return lse_a;
    }
    if lse_a == f32::NEG_INFINITY {
        a.copy_from_slice(b);
        return lse_b;
    }
    let [lse_a, lse_b] = [lse_a, lse_b].map(f64::from);
    // NaN on either side makes the row NaN.
    let max = lse_a.max(lse_b);
    let [weight_a, weight_b] = [lse_a, lse_b].map(|lse| (lse - max).exp());
    let sum = weight_a + weight_b;
    for (a, &b) in a.iter_mut().zip(b) {
        *a = ((weight_a * f64::from(*a) + weight_b * f64::from(b)) / sum) as f32;
    }
    (max + sum.ln()) as f32
}
