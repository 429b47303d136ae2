//! Ticks and the frame of a plot.

use super::canvas::{Anchor, Area, Canvas, Font};
use super::palette;

/// Distance of ticks over `tokens` tokens: a power of two that gives four to eight of them.
pub fn token_step(tokens: usize) -> usize {
    (tokens / 8 + 1).next_power_of_two()
}

/// 4096 is `4K`.
pub fn token_label(token: usize) -> String {
    if token > 0 && token.is_multiple_of(1024) {
        format!("{}K", token / 1024)
    } else {
        token.to_string()
    }
}

/// Heading and percent axis of a plot, from `floor` at the bottom to 1, with `steps` parts.
pub fn percent_axis(canvas: &mut Canvas, area: Area, heading: &str, floor: f64, steps: usize) {
    canvas.text(
        (area.x, area.y - 14),
        heading,
        Font::Label,
        palette::INK,
        Anchor::Left,
    );
    for step in 0..=steps {
        let share = step as f64 / steps as f64;
        let (_, y) = area.at(0.0, share);
        if (1..steps).contains(&step) {
            canvas.line((area.x, y), (area.right() - 1, y), palette::GRID, 1);
        }
        let percent = 100.0 * (floor + (1.0 - floor) * share);
        let label = format!("{percent:.*} %", usize::from(percent.fract() > 0.01));
        canvas.text(
            (area.x - 8, y),
            &label,
            Font::Label,
            palette::INK,
            Anchor::Right,
        );
    }
}
