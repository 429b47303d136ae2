//! What the colours mean: hue says why a block is kept, lightness how much attention it holds.

use super::canvas::{Anchor, Area, Canvas, Color, Font, mix};

pub const INK: Color = [0x22, 0x22, 0x22];
pub const FAINT: Color = [0x77, 0x77, 0x77];
pub const GRID: Color = [0xe2, 0xe2, 0xe2];
pub const FRAME: Color = [0x99, 0x99, 0x99];
/// Pairs that causality forbids.
pub const FUTURE: Color = [0xff, 0xff, 0xff];
pub const SINK: Color = [0x1b, 0x9e, 0x57];
pub const STRIPE: Color = [0xc2, 0x18, 0x8a];
/// The policy's choice in plots.
pub const CHOICE: Color = [0xc4, 0x4e, 0x06];
/// From the worst to the best row.
pub const SPREAD: Color = [0xf6, 0xcf, 0xae];
/// Rows that keep less than was asked for.
pub const SHORT: Color = [0xc0, 0x10, 0x20];
/// What could be had in plots.
pub const BEST: Color = [0x33, 0x55, 0x88];

/// Why a block is kept.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Window,
    Selected,
    /// Everything is, in a head that ran dense.
    Dense,
    Dropped,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Window, Kind::Selected, Kind::Dense, Kind::Dropped];

    fn name(self) -> &'static str {
        match self {
            Kind::Window => "window, kept",
            Kind::Selected => "selected, kept",
            Kind::Dense => "dense, kept",
            Kind::Dropped => "dropped",
        }
    }

    /// Colours of a block without mass and of one with all of it.
    fn ends(self) -> (Color, Color) {
        match self {
            Kind::Window => ([0xcf, 0xe3, 0xf7], [0x06, 0x2c, 0x66]),
            Kind::Selected => ([0xfd, 0xd9, 0xb0], [0x80, 0x22, 0x00]),
            Kind::Dense => ([0xe4, 0xdc, 0xf2], [0x3a, 0x14, 0x78]),
            Kind::Dropped => ([0xf7, 0xf7, 0xf7], [0x30, 0x30, 0x30]),
        }
    }

    /// Colour of a block that holds `mass` of a row, from 0 to 1.
    pub fn color(self, mass: f64) -> Color {
        let (light, dark) = self.ends();
        mix(light, dark, level(mass))
    }
}

/// Decades of mass from the lightest to the darkest colour.
const DECADES: i32 = 3;

/// Lightness of a mass, from 0 to 1: logarithmic.
fn level(mass: f64) -> f64 {
    (1.0 + mass.max(1e-300).log10() / f64::from(DECADES)).clamp(0.0, 1.0)
}

/// Height of the legend in pixels.
pub const LEGEND_HEIGHT: i32 = 44;

/// Draws the legend.
pub fn legend(canvas: &mut Canvas, left: i32, top: i32) {
    let middle = top + 8;
    let mut x = left;
    for kind in Kind::ALL {
        let ramp = Area {
            x,
            y: top,
            width: 64,
            height: 16,
        };
        for column in 0..ramp.width {
            let decades =
                f64::from(DECADES) * (1.0 - f64::from(column) / f64::from(ramp.width - 1));
            let color = kind.color(10f64.powf(-decades));
            canvas.fill(
                Area {
                    x: ramp.x + column,
                    width: 1,
                    ..ramp
                },
                color,
            );
        }
        canvas.frame(ramp, FRAME);
        canvas.text(
            (ramp.right() + 8, middle),
            kind.name(),
            Font::Label,
            INK,
            Anchor::Left,
        );
        let scale = top + 16 + 10;
        canvas.text(
            (ramp.x, scale),
            &format!("1e-{DECADES}"),
            Font::Label,
            FAINT,
            Anchor::Left,
        );
        canvas.text(
            (ramp.right(), scale),
            "1",
            Font::Label,
            FAINT,
            Anchor::Right,
        );
        x = ramp.right() + 8 + Font::Label.width(kind.name()) + 28;
    }
    let shade = "shade: share of a query's attention (log)";
    canvas.text((x, top + 26), shade, Font::Label, FAINT, Anchor::Left);
    for (color, name) in [(SINK, "sinks, kept"), (STRIPE, "stripes, kept")] {
        let line = Area {
            x,
            y: top,
            width: 3,
            height: 16,
        };
        canvas.fill(line, color);
        canvas.text(
            (line.right() + 8, middle),
            name,
            Font::Label,
            INK,
            Anchor::Left,
        );
        x = line.right() + 8 + Font::Label.width(name) + 28;
    }
}
