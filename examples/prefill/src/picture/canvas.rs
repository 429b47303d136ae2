//! A picture in memory: boxes, lines and text in fonts that are part of the program.

use std::convert::Infallible;
use std::io::Write;
use std::path::Path;

use embedded_graphics::mono_font::{MonoFont, MonoTextStyle, iso_8859_1 as fonts};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, Line, PrimitiveStyle, PrimitiveStyleBuilder};
use embedded_graphics::text::{Alignment, Baseline, Text, TextStyleBuilder};

use crate::failure::Failure;

/// Red, green and blue.
pub type Color = [u8; 3];

/// A rectangle in pixels.
#[derive(Clone, Copy)]
pub struct Area {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

impl Area {
    pub fn right(&self) -> i32 {
        self.x + self.width
    }

    pub fn bottom(&self) -> i32 {
        self.y + self.height
    }

    /// Where the point (`x`, `y`) of the unit square lies, y upwards.
    pub fn at(&self, x: f64, y: f64) -> (i32, i32) {
        let along = |share: f64, pixels: i32| {
            (share.clamp(0.0, 1.0) * f64::from(pixels - 1)).round() as i32
        };
        (
            self.x + along(x, self.width),
            self.bottom() - 1 - along(y, self.height),
        )
    }
}

/// Sizes of text.
#[derive(Clone, Copy)]
pub enum Font {
    /// 20 pixels high: titles.
    Title,
    /// 15 pixels high: what belongs to a title.
    Body,
    /// 13 pixels high: axes and legends.
    Label,
}

impl Font {
    fn glyphs(self) -> &'static MonoFont<'static> {
        match self {
            Font::Title => &fonts::FONT_10X20,
            Font::Body => &fonts::FONT_9X15,
            Font::Label => &fonts::FONT_8X13,
        }
    }

    /// Width of a line of text in pixels.
    pub fn width(self, text: &str) -> i32 {
        text.chars().count() as i32 * self.glyphs().character_size.width as i32
    }
}

/// Which end of the text is given.
#[derive(Clone, Copy)]
pub enum Anchor {
    Left,
    Center,
    Right,
}

/// Pixels.
pub struct Canvas {
    width: i32,
    height: i32,
    pixels: Vec<Color>,
}

impl Canvas {
    /// All white.
    pub fn new(width: i32, height: i32) -> Self {
        Canvas {
            width,
            height,
            pixels: vec![[255; 3]; width as usize * height as usize],
        }
    }

    /// Sets a pixel; what lies outside is dropped.
    pub fn set(&mut self, x: i32, y: i32, color: Color) {
        if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
            self.pixels[y as usize * self.width as usize + x as usize] = color;
        }
    }

    /// The colour of a pixel inside.
    fn get(&self, x: i32, y: i32) -> Option<Color> {
        let inside = (0..self.width).contains(&x) && (0..self.height).contains(&y);
        inside.then(|| self.pixels[y as usize * self.width as usize + x as usize])
    }

    /// Paints over a pixel with this much of a colour.
    pub fn blend(&mut self, x: i32, y: i32, color: Color, opacity: f64) {
        if let Some(below) = self.get(x, y) {
            self.set(x, y, mix(below, color, opacity));
        }
    }

    pub fn fill(&mut self, area: Area, color: Color) {
        for y in area.y..area.bottom() {
            for x in area.x..area.right() {
                self.set(x, y, color);
            }
        }
    }

    /// A frame one pixel outside `area`.
    pub fn frame(&mut self, area: Area, color: Color) {
        for x in area.x - 1..=area.right() {
            self.set(x, area.y - 1, color);
            self.set(x, area.bottom(), color);
        }
        for y in area.y - 1..=area.bottom() {
            self.set(area.x - 1, y, color);
            self.set(area.right(), y, color);
        }
    }

    /// A straight line of `thickness` pixels.
    pub fn line(&mut self, from: (i32, i32), to: (i32, i32), color: Color, thickness: u32) {
        let style = PrimitiveStyle::with_stroke(rgb(color), thickness);
        let line = Line::new(Point::new(from.0, from.1), Point::new(to.0, to.1));
        let Ok(()) = line.into_styled(style).draw(self);
    }

    /// A horizontal line of dashes.
    pub fn dashes(&mut self, from: (i32, i32), length: i32, color: Color) {
        for x in (from.0..from.0 + length).filter(|x| (x - from.0) % 6 < 3) {
            self.set(x, from.1, color);
        }
    }

    /// A disc with a white rim.
    pub fn dot(&mut self, center: (i32, i32), color: Color) {
        let style = PrimitiveStyleBuilder::new()
            .fill_color(rgb(color))
            .stroke_color(Rgb888::WHITE)
            .stroke_width(2)
            .build();
        let circle = Circle::with_center(Point::new(center.0, center.1), 13);
        let Ok(()) = circle.into_styled(style).draw(self);
    }

    /// A line of text, its middle at `y`.
    pub fn text(
        &mut self,
        (x, y): (i32, i32),
        text: &str,
        font: Font,
        color: Color,
        anchor: Anchor,
    ) {
        let style = TextStyleBuilder::new()
            .baseline(Baseline::Middle)
            .alignment(match anchor {
                Anchor::Left => Alignment::Left,
                Anchor::Center => Alignment::Center,
                Anchor::Right => Alignment::Right,
            })
            .build();
        let glyphs = MonoTextStyle::new(font.glyphs(), rgb(color));
        let text = Text::with_text_style(text, Point::new(x, y), glyphs, style);
        let Ok(_) = text.draw(self);
    }

    /// Writes a PNG.
    pub fn write(&self, to: &mut dyn Write) -> Result<(), Failure> {
        let mut encoder = png::Encoder::new(to, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        let mut writer = encoder.write_header().map_err(Failure::new)?;
        writer
            .write_image_data(self.pixels.as_flattened())
            .and_then(|()| writer.finish())
            .map_err(Failure::new)
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(point, color) in pixels {
            self.set(point.x, point.y, [color.r(), color.g(), color.b()]);
        }
        Ok(())
    }
}

fn rgb([r, g, b]: Color) -> Rgb888 {
    Rgb888::new(r, g, b)
}

/// `share` of `over`, the rest of `under`.
pub fn mix(under: Color, over: Color, share: f64) -> Color {
    std::array::from_fn(|channel| {
        let (under, over) = (f64::from(under[channel]), f64::from(over[channel]));
        (under + (over - under) * share.clamp(0.0, 1.0)).round() as u8
    })
}

/// The picture is a PNG whatever its name, so the name of `--picture` must say so.
pub fn png_name(path: &Path) -> Result<(), Failure> {
    let is_png = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    if is_png {
        return Ok(());
    }
    Err(Failure::of(
        format_args!("--picture {}", path.display()),
        "pictures are PNG files: give a name that ends in .png",
    ))
}
