//! Progress of a measurement on standard error: which pass, layer and stage.

use indicatif::{ProgressBar, ProgressStyle};
use sample_attention::{Progress, Stage};

/// Counts the layers of all passes.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// A bar of this many layers.
    pub fn new(layers: usize) -> Self {
        let style = ProgressStyle::with_template("{bar:30} {percent:>3} %, {eta} left: {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Bar {
            bar: ProgressBar::new(layers as u64).with_style(style),
        }
    }

    /// The progress of one layer's attention; the layer counts as done when it is dropped.
    pub fn layer(&self, pass: String, layer: usize) -> Box<dyn Progress + '_> {
        Box::new(Layer {
            bar: &self.bar,
            pass,
            layer,
        })
    }

    /// Prints a line to standard output, above the bar.
    pub fn print(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

struct Layer<'a> {
    bar: &'a ProgressBar,
    pass: String,
    layer: usize,
}

impl Progress for Layer<'_> {
    fn advance(&self, stage: Stage, done: usize, total: usize) {
        let (pass, layer, stage) = (&self.pass, self.layer, stage.name());
        self.bar
            .set_message(format!("{pass}, layer {layer}, {stage} {done}/{total}"));
    }
}

impl Drop for Layer<'_> {
    fn drop(&mut self) {
        self.bar.inc(1);
    }
}
