//! The picture: per head, the mask over the attention mass, the coverage curve and the coverage of the rows.

mod axis;
#[doc(hidden)]
pub mod canvas;
mod curve;
mod map;
mod mass;
mod palette;

use std::io::Write;

use sample_attention::{HeadPath, HeadPolicy, Problem};

use crate::Asked;
use crate::args::Request;
use crate::compute::Outcome;
use crate::failure::Failure;
use crate::input::Input;
use crate::table::{path_name, sampling_cost};
use crate::treatment::{head_text, window_blocks};
use canvas::{Anchor, Area, Canvas, Font};
use map::Map;

/// Heads that are drawn unless others are chosen; the report has the numbers of all.
const FIRST_HEADS: usize = 8;

const WIDTH: i32 = 1120;
const MARGIN: i32 = 28;
const HEADER_HEIGHT: i32 = 100;
const MAP_LEFT: i32 = 84;
const MAP_WIDTH: i32 = 520;
const PLOT_LEFT: i32 = 700;
const PLOT_WIDTH: i32 = 388;
/// Title and statistics above a head's plots.
const HEAD_TITLE_HEIGHT: i32 = 84;
/// Axes below them, and space to the next head.
const HEAD_AXES_HEIGHT: i32 = 64;
const PLOTS_MIN_HEIGHT: i32 = 420;

/// Heads that the request wants drawn, counted from 0 over all sequences; none where it wants no picture.
pub fn drawn_heads(request: &Request, input: &Input) -> Result<Vec<usize>, Failure> {
    let problem = input.problem();
    let all = problem.batch * problem.q_heads;
    match (&request.picture, &request.heads) {
        (None, _) => Ok(Vec::new()),
        (Some(_), Some(chosen)) => chosen.among(all),
        (Some(_), None) => Ok((0..all.min(FIRST_HEADS)).collect()),
    }
}

/// Memory of the picture of so many heads, before it is compressed.
pub fn bytes(problem: &Problem, heads: usize) -> u128 {
    3 * WIDTH as u128 * height(problem, heads) as u128
}

fn height(problem: &Problem, heads: usize) -> i32 {
    HEADER_HEIGHT + palette::LEGEND_HEIGHT + heads as i32 * head_height(problem) + 8
}

fn head_height(problem: &Problem) -> i32 {
    let plots = Map::height(problem, MAP_WIDTH).max(PLOTS_MIN_HEIGHT);
    HEAD_TITLE_HEIGHT + plots + HEAD_AXES_HEIGHT
}

/// Draws the heads and writes a PNG.
pub fn write(
    to: &mut dyn Write,
    asked: &Asked<'_>,
    outcome: &Outcome,
    heads: &[usize],
) -> Result<(), Failure> {
    let input = asked.input;
    let problem = input.problem();
    let map_height = Map::height(problem, MAP_WIDTH);
    let top = HEADER_HEIGHT + palette::LEGEND_HEIGHT;
    let mut canvas = Canvas::new(WIDTH, height(problem, heads.len()));
    header(&mut canvas, asked, heads);
    palette::legend(&mut canvas, MARGIN, HEADER_HEIGHT);

    let q = input.capture.q.to_f32();
    let k = input.capture.k.to_f32();
    for (place, &head) in heads.iter().enumerate() {
        let panel = Panel {
            asked,
            outcome,
            head,
            top: top + place as i32 * head_height(problem),
            map_height,
        };
        panel.draw(&mut canvas, &q, &k);
    }
    canvas.write(to)
}

fn header(canvas: &mut Canvas, asked: &Asked<'_>, heads: &[usize]) {
    let (request, input) = (asked.request, asked.input);
    let problem = input.problem();
    let layer = input
        .note("layer")
        .map_or(String::new(), |layer| format!(", layer {layer}"));
    let all = problem.batch * problem.q_heads;
    let shown = match (heads.len(), &request.heads) {
        (drawn, None) if drawn < all => {
            format!(", the first {drawn} of {all} heads (--heads chooses)")
        }
        (drawn, _) if drawn < all => format!(", {drawn} of {all} heads"),
        _ => String::new(),
    };
    let title = format!("SampleAttention: {}{layer}", input.title);
    canvas.text(
        (MARGIN, 28),
        &fitted(&title, Font::Title),
        Font::Title,
        palette::INK,
        Anchor::Left,
    );
    let shape = format!(
        "{} queries, {} keys, head_dim {}, {}{shown}",
        problem.q_len, problem.k_len, problem.head_dim, problem.dtype
    );
    canvas.text(
        (MARGIN, 52),
        &fitted(&shape, Font::Body),
        Font::Body,
        palette::FAINT,
        Anchor::Left,
    );
    let policy = asked.treatment.in_words();
    canvas.text(
        (MARGIN, 72),
        &fitted(&policy, Font::Body),
        Font::Body,
        palette::FAINT,
        Anchor::Left,
    );
}

/// As much of `text` as a line holds.
fn fitted(text: &str, font: Font) -> String {
    let most = ((WIDTH - 2 * MARGIN) / font.width("x")) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let cut: String = text.chars().take(most - 3).collect();
    cut + "..."
}

/// One head's part of the picture.
struct Panel<'a> {
    asked: &'a Asked<'a>,
    outcome: &'a Outcome,
    head: usize,
    top: i32,
    map_height: i32,
}

impl Panel<'_> {
    fn draw(&self, canvas: &mut Canvas, q: &[f32], k: &[f32]) {
        let problem = self.asked.input.problem();
        let (batch, q_head) = (self.head / problem.q_heads, self.head % problem.q_heads);
        let policy = self.asked.treatment.head(q_head);
        let kv_head = batch * problem.kv_heads + q_head / problem.group_size();
        let of = |data: &'_ [f32], head: usize, len: usize| {
            let elements = len * problem.head_dim;
            head * elements..((head + 1) * elements).min(data.len())
        };
        let mask = self
            .outcome
            .selection
            .as_ref()
            .map(|selection| selection.head(batch, q_head))
            .filter(|mask| !mask.is_dense());
        let sinks = self
            .outcome
            .selection
            .as_ref()
            .map_or(0, |selection| selection.sinks());
        let mass = mass::of_head(
            problem,
            &q[of(q, self.head, problem.q_len)],
            &k[of(k, kv_head, problem.k_len)],
            mask,
            sinks,
        );
        let comparison = self.outcome.comparison.as_ref();
        let covered =
            comparison.map_or_else(|| mass.mean_coverage(), |c| c.coverage[self.head].mean);
        self.title(canvas, covered, mass.stride);

        let plots_top = self.top + HEAD_TITLE_HEIGHT;
        // A head that is not sampled asks for no coverage.
        let goal = match policy {
            HeadPolicy::Selected(policy) => Some(f64::from(policy.coverage)),
            _ => None,
        };
        let map = Map {
            problem,
            mass: &mass,
            mask,
            window_blocks: window_blocks(&policy, problem),
            sinks,
            goal,
        };
        map.draw(
            canvas,
            Area {
                x: MAP_LEFT,
                y: plots_top,
                width: MAP_WIDTH,
                height: self.map_height,
            },
        );
        let height = self.map_height.max(PLOTS_MIN_HEIGHT);
        let lower = height / 3;
        let upper = Area {
            x: PLOT_LEFT,
            y: plots_top,
            width: PLOT_WIDTH,
            height: height - lower - 84,
        };
        curve::coverage_curve(
            canvas,
            upper,
            &mass,
            self.outcome.report.heads[self.head].density,
            covered,
        );
        let lower = Area {
            y: plots_top + height - lower,
            height: lower,
            ..upper
        };
        let first = problem.k_len.saturating_sub(problem.q_len);
        curve::row_coverage(canvas, lower, &mass, first, problem.k_len, goal);
    }

    fn title(&self, canvas: &mut Canvas, covered: f64, stride: usize) {
        let report = &self.outcome.report.heads[self.head];
        let name = self.asked.input.head_name(report.q_head);
        let sequence = if self.asked.input.problem().batch > 1 {
            format!("sequence {}, ", report.batch)
        } else {
            String::new()
        };
        let y = self.top + 16;
        canvas.line(
            (MARGIN, self.top),
            (WIDTH - MARGIN, self.top),
            palette::GRID,
            1,
        );
        let how = match report.path {
            HeadPath::Sparse => String::new(),
            path => format!(" ({})", path_name(path)),
        };
        let title = format!(
            "{sequence}query head {name}{how}: keeps {:.1} % of the causal area, {:.1} % of the attention",
            100.0 * report.density,
            100.0 * covered
        );
        canvas.text((MARGIN, y), &title, Font::Title, palette::INK, Anchor::Left);
        let policy = self.asked.treatment.head(report.q_head);
        let cost = report.density + sampling_cost(self.asked, report);
        let mut facts = vec![head_text(&policy), format!("cost {cost:.3}")];
        if let Some(sampled) = report.sampled_coverage {
            facts.push(format!("sampled {:.1} %", 100.0 * sampled));
        }
        if let Some(comparison) = &self.outcome.comparison {
            let coverage = &comparison.coverage[self.head];
            facts.push(format!(
                "rows: p1 {:.1} %, min {:.1} %",
                100.0 * coverage.percentile_1,
                100.0 * coverage.min
            ));
            facts.push(format!(
                "error of O {:.4}",
                comparison.head_errors[self.head]
            ));
        }
        if stride > 1 {
            facts.push(format!("drawn from 1 row in {stride}"));
        }
        canvas.text(
            (MARGIN, y + 22),
            &fitted(&facts.join(", "), Font::Body),
            Font::Body,
            palette::FAINT,
            Anchor::Left,
        );
    }
}
