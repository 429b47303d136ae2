//! Attention inputs: captured from a model, in safetensors files, or synthetic.

pub mod capture;
pub mod synthetic;

/// ‖a − b‖ / ‖b‖; 0 where they are the same.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let (off, all) = a.iter().zip(b).fold((0.0, 0.0), |(off, all), (&a, &b)| {
        let (a, b) = (f64::from(a), f64::from(b));
        (off + (a - b).powi(2), all + b.powi(2))
    });
    if off == 0.0 { 0.0 } else { (off / all).sqrt() }
}
