//! One head's mask over its attention mass.

use sample_attention::{BLOCK, HeadSelection, Problem};

use super::axis::{token_label, token_step};
use super::canvas::{Anchor, Area, Canvas, Color, Font};
use super::mass::Mass;
use super::palette::{self, Kind};

/// What is drawn.
pub struct Map<'a> {
    pub problem: &'a Problem,
    pub mass: &'a Mass,
    /// `None` where everything is kept.
    pub mask: Option<HeadSelection<'a>>,
    pub window_blocks: usize,
    pub sinks: usize,
    /// Coverage that rows were asked to reach; `None` where none was.
    pub goal: Option<f64>,
}

impl Map<'_> {
    /// First query position, which is the top of the picture.
    fn top(&self) -> usize {
        self.problem.k_len.saturating_sub(self.problem.q_len)
    }

    /// Height for a width, so that a token is as high as wide, within reason.
    pub fn height(problem: &Problem, width: i32) -> i32 {
        let rows = problem.q_len.min(problem.k_len) as f64 / problem.k_len as f64;
        ((f64::from(width) * rows).round() as i32).clamp(120, width)
    }

    /// Draws map and axes.
    pub fn draw(&self, canvas: &mut Canvas, area: Area) {
        let keys = |x: i32| x as usize * self.problem.k_len / area.width as usize;
        let rows = self.problem.k_len - self.top();
        let queries = |y: i32| self.top() + y as usize * rows / area.height as usize;
        for y in 0..area.height {
            let query = queries(y);
            let query_blocks = query / BLOCK..=(queries(y + 1).max(query + 1) - 1) / BLOCK;
            for x in 0..area.width {
                let key = keys(x);
                let end = keys(x + 1).max(key + 1);
                let key_blocks = key / BLOCK..=(end - 1) / BLOCK;
                let color = if key > query {
                    palette::FUTURE
                } else {
                    self.mean_color(query_blocks.clone(), key_blocks)
                };
                canvas.set(area.x + x, area.y + y, color);
            }
        }
        self.single_keys(canvas, area, queries);
        self.rows_that_fall_short(canvas, area);
        canvas.frame(area, palette::FRAME);
        self.axes(canvas, area);
    }

    /// Long inputs have several blocks in a pixel.
    fn mean_color(
        &self,
        query_blocks: std::ops::RangeInclusive<usize>,
        key_blocks: std::ops::RangeInclusive<usize>,
    ) -> Color {
        let mut sums = [0u32; 3];
        let mut count = 0;
        for query_block in query_blocks {
            for key_block in key_blocks
                .clone()
                .filter(|&key_block| key_block <= query_block)
            {
                let kind = self.kind(query_block, key_block);
                let share = match kind {
                    Kind::Dropped => self.mass.dropped_share(query_block, key_block),
                    Kind::Window | Kind::Selected | Kind::Dense => {
                        self.mass.share(query_block, key_block)
                    }
                };
                let color = kind.color(share);
                for (sum, channel) in sums.iter_mut().zip(color) {
                    *sum += u32::from(channel);
                }
                count += 1;
            }
        }
        sums.map(|sum| (sum / count.max(1)) as u8)
    }

    fn kind(&self, query_block: usize, key_block: usize) -> Kind {
        match &self.mask {
            None => Kind::Dense,
            Some(mask) if !mask.keeps_block(query_block, key_block) => Kind::Dropped,
            Some(_) if key_block + self.window_blocks > query_block => Kind::Window,
            Some(_) => Kind::Selected,
        }
    }

    /// Sinks and stripes: lines over what no block keeps, at least wide enough to be seen.
    fn single_keys(&self, canvas: &mut Canvas, area: Area, queries: impl Fn(i32) -> usize) {
        let Some(mask) = self.mask else {
            return;
        };
        let column = |key: usize| (key * area.width as usize / self.problem.k_len) as i32;
        let mut line = |key: usize, columns: std::ops::Range<i32>, color: Color, opacity: f64| {
            for y in 0..area.height {
                let query = queries(y);
                if key <= query && !mask.keeps_block(query / BLOCK, key / BLOCK) {
                    for x in columns.clone() {
                        canvas.blend(area.x + x, area.y + y, color, opacity);
                    }
                }
            }
        };
        // Long inputs have several keys in a column, and not all of them need be stripes.
        let keys_of_column = self.problem.k_len.div_ceil(area.width as usize);
        for stripes in mask
            .stripes()
            .chunk_by(|&a, &b| column(a as usize) == column(b as usize))
        {
            let x = column(stripes[0] as usize);
            let share = stripes.len() as f64 / keys_of_column as f64;
            line(
                stripes[0] as usize,
                x..x + 1,
                palette::STRIPE,
                0.4 + 0.5 * share.min(1.0),
            );
        }
        if self.sinks > 0 {
            let width = column(self.sinks.min(self.problem.k_len)).clamp(3, area.width);
            line(0, 0..width, palette::SINK, 1.0);
        }
    }

    /// Beside the map, a mark for each read row that keeps less than the goal.
    fn rows_that_fall_short(&self, canvas: &mut Canvas, area: Area) {
        let Some(goal) = self.goal else { return };
        let rows = self.problem.k_len - self.top();
        for &(position, covered) in &self.mass.coverage {
            // Coverage is summed in other orders than it was asked for in.
            if covered < goal - 1e-4 {
                let y = ((position - self.top()) * area.height as usize / rows) as i32;
                for x in area.right() + 3..area.right() + 9 {
                    canvas.set(x, area.y + y, palette::SHORT);
                }
            }
        }
    }

    fn axes(&self, canvas: &mut Canvas, area: Area) {
        let k_len = self.problem.k_len;
        let step = token_step(k_len);
        for token in (0..=k_len).step_by(step) {
            let x = area.x + (token as u64 * area.width as u64 / k_len as u64) as i32;
            canvas.line(
                (x, area.bottom()),
                (x, area.bottom() + 5),
                palette::FRAME,
                1,
            );
            canvas.text(
                (x, area.bottom() + 15),
                &token_label(token),
                Font::Label,
                palette::INK,
                Anchor::Center,
            );
        }
        let rows = k_len - self.top();
        let step = token_step(rows);
        let first = self.top().next_multiple_of(step);
        for token in (first..=k_len).step_by(step) {
            let y =
                area.y + ((token - self.top()) as u64 * area.height as u64 / rows as u64) as i32;
            canvas.line((area.x - 6, y), (area.x - 1, y), palette::FRAME, 1);
            canvas.text(
                (area.x - 10, y),
                &token_label(token),
                Font::Label,
                palette::INK,
                Anchor::Right,
            );
        }
        let center = area.x + area.width / 2;
        canvas.text(
            (center, area.bottom() + 33),
            "key (tokens)",
            Font::Label,
            palette::FAINT,
            Anchor::Center,
        );
        canvas.text(
            (area.x - 10, area.y - 14),
            "query",
            Font::Label,
            palette::FAINT,
            Anchor::Right,
        );
    }
}
