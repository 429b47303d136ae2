//! A progress bar on stderr, for people who wait: nothing where stderr is no terminal or the run is short.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sample_attention::{Progress, Stage};

/// Runs that end before this show nothing.
const QUIET: Duration = Duration::from_secs(1);

/// Redrawing more often costs time and shows no more.
const REDRAW_MS: u64 = 50;

/// Watches a run.
pub struct Bar {
    started: Instant,
    bar: OnceLock<ProgressBar>,
    /// Milliseconds since the start.
    drawn_at: AtomicU64,
    label: &'static str,
}

impl Bar {
    /// `label` says which run it is.
    pub fn new(label: &'static str) -> Self {
        Bar {
            started: Instant::now(),
            bar: OnceLock::new(),
            drawn_at: AtomicU64::new(0),
            label,
        }
    }
}

impl Progress for Bar {
    fn advance(&self, stage: Stage, done: usize, total: usize) {
        let elapsed = self.started.elapsed();
        let now = elapsed.as_millis() as u64;
        let drawn_at = self.drawn_at.load(Ordering::Relaxed);
        if elapsed < QUIET || now < drawn_at + REDRAW_MS {
            return;
        }
        // Of the threads that come here at once, one draws.
        let mine =
            self.drawn_at
                .compare_exchange(drawn_at, now, Ordering::Relaxed, Ordering::Relaxed);
        if mine.is_err() {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let template = "{prefix} {msg:12} [{bar:40}] {percent:>3} %  {elapsed}";
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style)
                .with_prefix(self.label)
                .with_elapsed(elapsed)
        });
        bar.set_length(total as u64);
        bar.set_message(stage.name());
        bar.set_position(done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
