//! How much attention a share of the area covers, and how the rows fare.

use sample_attention::BLOCK;

use super::axis::{percent_axis, token_label, token_step};
use super::canvas::{Anchor, Area, Canvas, Font};
use super::mass::Mass;
use super::palette;

/// Mass covered over area kept: the heaviest blocks first, and where the policy stands.
pub fn coverage_curve(canvas: &mut Canvas, area: Area, mass: &Mass, kept: f64, covered: f64) {
    percent_axis(
        canvas,
        area,
        "attention covered by the heaviest blocks",
        0.0,
        4,
    );
    for quarter in 0..=4 {
        let share = f64::from(quarter) / 4.0;
        let (x, _) = area.at(share, 0.0);
        if (1..4).contains(&quarter) {
            canvas.line((x, area.y), (x, area.bottom() - 1), palette::GRID, 1);
        }
        let label = format!("{} %", 25 * quarter);
        canvas.text(
            (x, area.bottom() + 14),
            &label,
            Font::Label,
            palette::INK,
            Anchor::Center,
        );
    }
    let center = area.x + area.width / 2;
    canvas.text(
        (center, area.bottom() + 31),
        "share of the causal area",
        Font::Label,
        palette::FAINT,
        Anchor::Center,
    );
    let curve = mass.best_curve(4 * area.width as usize);
    for pair in curve.windows(2) {
        canvas.line(
            area.at(pair[0].0, pair[0].1),
            area.at(pair[1].0, pair[1].1),
            palette::BEST,
            2,
        );
    }
    canvas.frame(area, palette::FRAME);
    let choice = area.at(kept, covered);
    for y in (choice.1..area.bottom()).filter(|y| (y - choice.1) % 6 < 3) {
        canvas.set(choice.0, y, palette::CHOICE);
    }
    canvas.dot(choice, palette::CHOICE);
    // The curve is concave and leaves the room at the bottom.
    let (x, anchor) = if kept < 0.5 {
        (choice.0 + 10, Anchor::Left)
    } else {
        (choice.0 - 10, Anchor::Right)
    };
    for (line, text) in [("kept", kept), ("covers", covered)]
        .into_iter()
        .enumerate()
    {
        let text = format!("{} {:.1} %", text.0, 100.0 * text.1);
        let y = area.bottom() - 34 + 16 * line as i32;
        canvas.text((x, y), &text, Font::Label, palette::CHOICE, anchor);
    }
}

/// Coverage of the rows along the sequence: mean, and the span from the worst to the best row.
pub fn row_coverage(
    canvas: &mut Canvas,
    area: Area,
    mass: &Mass,
    first: usize,
    end: usize,
    goal: Option<f64>,
) {
    let tokens = (end - first).max(1);
    // As wide as the blocks, whose rows share a list, and never narrower than a pixel.
    let bin_tokens = BLOCK * tokens.div_ceil(BLOCK * area.width as usize);
    let bin_of = |position: usize| position / bin_tokens - first / bin_tokens;
    let mut bins = vec![Bin::EMPTY; bin_of(end - 1) + 1];
    for &(position, covered) in &mass.coverage {
        bins[bin_of(position)].add(covered);
    }
    let worst = mass.coverage.iter().map(|row| row.1).fold(1.0, f64::min);
    let floor = [0.9, 0.8, 0.5]
        .into_iter()
        .find(|&floor| worst >= floor)
        .unwrap_or(0.0);
    percent_axis(
        canvas,
        area,
        "attention kept: mean, span, goal of rows",
        floor,
        2,
    );
    let height = |share: f64| (share - floor) / (1.0 - floor);
    let mut last = None;
    for (at, bin) in bins.iter().enumerate().filter(|(_, bin)| bin.rows > 0) {
        let column = |position: usize| {
            let share = (position.clamp(first, end) - first) as f64 / tokens as f64;
            area.x + (share * f64::from(area.width)).round() as i32
        };
        let start = (first / bin_tokens + at) * bin_tokens;
        let columns = column(start)..column(start + bin_tokens);
        let [low, high, mean] = [bin.low, bin.high, bin.sum / f64::from(bin.rows)]
            .map(|share| area.at(0.0, height(share)).1);
        for x in columns.clone() {
            for y in high..=low {
                canvas.set(x, y, palette::SPREAD);
            }
        }
        let from = (columns.start, mean);
        canvas.line(last.unwrap_or(from), from, palette::CHOICE, 2);
        let to = (columns.end - 1, mean);
        canvas.line(from, to, palette::CHOICE, 2);
        last = Some(to);
    }
    if let Some(goal) = goal.filter(|&goal| goal > floor) {
        let (x, y) = area.at(0.0, height(goal));
        canvas.dashes((x, y), area.width, palette::INK);
    }
    rows_that_fall_short(canvas, area, mass, (first, end), goal);
    canvas.frame(area, palette::FRAME);
    for token in (first.next_multiple_of(token_step(tokens))..=end).step_by(token_step(tokens)) {
        let x = area.x + ((token - first) as u64 * area.width as u64 / tokens as u64) as i32;
        canvas.text(
            (x, area.bottom() + 14),
            &token_label(token),
            Font::Label,
            palette::INK,
            Anchor::Center,
        );
    }
    let center = area.x + area.width / 2;
    canvas.text(
        (center, area.bottom() + 31),
        "query (tokens)",
        Font::Label,
        palette::FAINT,
        Anchor::Center,
    );
}

/// A mark at the bottom for each read row that keeps less than the goal, and how many there are.
fn rows_that_fall_short(
    canvas: &mut Canvas,
    area: Area,
    mass: &Mass,
    (first, end): (usize, usize),
    goal: Option<f64>,
) {
    // Coverage is summed in other orders than it was asked for in.
    let is_short = |covered: f64| goal.is_some_and(|goal| covered < goal - 1e-4);
    let short = mass.coverage.iter().filter(|row| is_short(row.1));
    let mut count = 0;
    for &(position, _) in short {
        count += 1;
        let share = (position - first) as f64 / (end - first).max(1) as f64;
        let x = area.x + (share * f64::from(area.width)) as i32;
        for y in area.bottom() - SHORT_HEIGHT..area.bottom() {
            canvas.set(x.min(area.right() - 1), y, palette::SHORT);
        }
    }
    if count > 0 {
        let share = 100.0 * f64::from(count) / mass.coverage.len() as f64;
        canvas.text(
            (area.right() - 4, area.bottom() - SHORT_HEIGHT - 9),
            &format!("{share:.1} % of the rows fall short"),
            Font::Label,
            palette::SHORT,
            Anchor::Right,
        );
    }
}

/// Height of the mark of a row that falls short, in pixels.
const SHORT_HEIGHT: i32 = 12;

/// The rows of a stretch of the sequence.
#[derive(Clone, Copy)]
struct Bin {
    low: f64,
    high: f64,
    sum: f64,
    rows: u32,
}

impl Bin {
    const EMPTY: Bin = Bin {
        low: 1.0,
        high: 0.0,
        sum: 0.0,
        rows: 0,
    };

    fn add(&mut self, covered: f64) {
        self.low = self.low.min(covered);
        self.high = self.high.max(covered);
        self.sum += covered;
        self.rows += 1;
    }
}
