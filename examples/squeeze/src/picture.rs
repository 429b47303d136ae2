//! The picture: for each key/value head the clusters by position, and what each query block looked up.

use std::io::Write;

use sample_attention::squeeze::Index;
use sample_attention_prefill::canvas::{Anchor, Area, Canvas, Color, Font, mix};
use sample_attention_prefill::failure::Failure;

use crate::compute::Outcome;
use crate::input::Input;

/// Heads that are drawn.
const MAX_HEADS: usize = 8;

const WIDTH: i32 = 1120;
const MARGIN: i32 = 60;
const MAP_WIDTH: i32 = WIDTH - 2 * MARGIN;
const TITLE_HEIGHT: i32 = 70;
const HEAD_TITLE_HEIGHT: i32 = 40;
/// Clusters by position: one line for each of so many classes of clusters, so that neighbours are told apart.
const STRIP_HEIGHT: i32 = 48;
const GAP: i32 = 8;
const MAX_MAP_HEIGHT: usize = 320;
const AXIS_HEIGHT: i32 = 36;

const BLACK: Color = [30, 30, 30];
const GREY: Color = [110, 110, 110];
const EMPTY: Color = [238, 238, 238];
const OUTSIDE: Color = [120, 160, 220];
const KEPT: Color = [225, 110, 20];
/// Colours that clusters take turns with.
const CLUSTERS: [Color; 6] = [
    [68, 119, 170],
    [102, 204, 238],
    [34, 136, 51],
    [204, 187, 68],
    [238, 102, 119],
    [170, 51, 119],
];

/// Draws the heads and writes a PNG.
pub fn write(to: &mut dyn Write, input: &Input, outcome: &Outcome) -> Result<(), Failure> {
    let heads = outcome.report.heads.len().min(MAX_HEADS);
    let blocks = outcome.report.heads[0].kept.len();
    let map_height = blocks.clamp(24, MAX_MAP_HEIGHT) as i32;
    let head_height = HEAD_TITLE_HEIGHT + STRIP_HEIGHT + GAP + map_height + AXIS_HEIGHT;
    let mut canvas = Canvas::new(WIDTH, TITLE_HEIGHT + heads as i32 * head_height);
    let title = format!(
        "Squeezed Attention: {} fixed positions, {} queries",
        input.fixed,
        input.questions()
    );
    canvas.text((MARGIN, 24), &title, Font::Title, BLACK, Anchor::Left);
    let legend = "above: clusters by position, neighbours in other colours. below, a row for each list: orange looked up, blue sinks and window";
    canvas.text((MARGIN, 50), legend, Font::Label, GREY, Anchor::Left);
    for head in 0..heads {
        let top = TITLE_HEIGHT + head as i32 * head_height;
        draw_head(&mut canvas, outcome, head, top, map_height);
    }
    canvas.write(to)
}

fn draw_head(canvas: &mut Canvas, outcome: &Outcome, head: usize, top: i32, map_height: i32) {
    let (index, report) = (&outcome.index, &outcome.report.heads[head]);
    let title = format!(
        "key/value head {head}: {} clusters, {:.2} % of their keys looked up",
        index.clusters(head),
        100.0 * report.share
    );
    canvas.text((MARGIN, top + 20), &title, Font::Body, BLACK, Anchor::Left);
    let strip = Area {
        x: MARGIN,
        y: top + HEAD_TITLE_HEIGHT,
        width: MAP_WIDTH,
        height: STRIP_HEIGHT,
    };
    draw_clusters(canvas, index, head, strip);
    let map = Area {
        y: strip.bottom() + GAP,
        height: map_height,
        ..strip
    };
    draw_kept(canvas, index, head, &report.kept, map);
    let y = map.bottom() + 14;
    canvas.text((map.x, y), "0", Font::Label, GREY, Anchor::Left);
    let end = index.len().to_string();
    canvas.text((map.right(), y), &end, Font::Label, GREY, Anchor::Right);
    let middle = map.x + map.width / 2;
    canvas.text((middle, y), "position", Font::Label, GREY, Anchor::Center);
}

/// Pixel column of a position.
fn column(index: &Index, area: Area, position: u32) -> i32 {
    area.x + (u64::from(position) * area.width as u64 / index.len() as u64) as i32
}

/// Each cluster's positions in its colour, on one of as many lines as there are colours.
fn draw_clusters(canvas: &mut Canvas, index: &Index, head: usize, area: Area) {
    canvas.fill(area, EMPTY);
    canvas.frame(area, GREY);
    let line = area.height / CLUSTERS.len() as i32;
    for cluster in 0..index.clusters(head) {
        let which = cluster % CLUSTERS.len();
        for &position in index.positions(head, cluster) {
            let x = column(index, area, position);
            let top = area.y + which as i32 * line;
            for y in top..top + line {
                canvas.set(x, y, CLUSTERS[which]);
            }
        }
    }
}

/// A row of pixels for one or more lists; the more of a pixel's lists and positions are kept, the stronger its colour.
fn draw_kept(canvas: &mut Canvas, index: &Index, head: usize, kept: &[Vec<u32>], area: Area) {
    canvas.fill(area, EMPTY);
    canvas.frame(area, GREY);
    let width = area.width as usize;
    let mut counts = vec![0f64; width * area.height as usize];
    for (list, clusters) in kept.iter().enumerate() {
        let first = list * area.height as usize / kept.len();
        let end = ((list + 1) * area.height as usize / kept.len()).max(first + 1);
        for &cluster in clusters {
            for &position in index.positions(head, cluster as usize) {
                let x = (column(index, area, position) - area.x) as usize;
                for y in first..end {
                    counts[y * width + x] += 1.0;
                }
            }
        }
    }
    let lists = (kept.len() as f64 / f64::from(area.height)).max(1.0);
    let whole = lists * (index.len() as f64 / f64::from(area.width)).max(1.0);
    for (at, count) in counts.into_iter().enumerate() {
        if count > 0.0 {
            // A single key is still seen.
            let strength = 0.35 + 0.65 * count / whole;
            let (x, y) = ((at % width) as i32, (at / width) as i32);
            canvas.set(area.x + x, area.y + y, mix(EMPTY, KEPT, strength));
        }
    }
    let (len, window) = (index.len() as u32, index.window() as u32);
    let sinks = (index.outside() - index.window()) as u32;
    for (start, end) in [(0, sinks), (len - window, len)] {
        if start < end {
            let x = column(index, area, start);
            let width = (column(index, area, end) - x).max(1);
            canvas.fill(Area { x, width, ..area }, OUTSIDE);
        }
    }
}
