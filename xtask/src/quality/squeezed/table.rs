//! What was measured, as a table.

use super::super::divergence::Predictions;
use super::super::retrieval::Answered;
use super::context::{Context, Read};

/// A rule over all texts.
pub struct Row {
    name: String,
    text: Means,
    questions: Means,
    right: usize,
    dense_right: usize,
    asked: usize,
}

/// Sums, of which the means are shown.
#[derive(Default)]
struct Means {
    texts: f64,
    share: f64,
    fixed_share: f64,
    coverage: f64,
    scored: f64,
    divergence: f64,
}

impl Row {
    pub fn new(name: &str) -> Self {
        Row {
            name: name.to_owned(),
            text: Means::default(),
            questions: Means::default(),
            right: 0,
            dense_right: 0,
            asked: 0,
        }
    }

    pub fn add(
        &mut self,
        context: &Context,
        read: &Read,
        answered: Option<Answered>,
        dense: Option<Answered>,
    ) {
        let means = match answered {
            Some(_) => &mut self.questions,
            None => &mut self.text,
        };
        means.texts += 1.0;
        means.share += read.share;
        means.fixed_share += read.fixed_share;
        means.coverage += read.coverage;
        means.scored += read.scored;
        let predictions = Predictions::new(&read.logits);
        means.divergence += context.predictions.divergence_of(&predictions);
        if let (Some(answered), Some(dense)) = (answered, dense) {
            self.right += answered.right;
            self.dense_right += dense.right;
            self.asked += answered.asked;
        }
    }

    /// As a row of the table.
    pub fn line(&self) -> String {
        format!(
            "| {} | {} | {} | {} |",
            self.name,
            self.text.cells(),
            self.questions.cells(),
            if self.asked == 0 {
                "–".to_owned()
            } else {
                format!(
                    "{} of {} ({} dense)",
                    self.right, self.asked, self.dense_right
                )
            }
        )
    }
}

impl Means {
    fn cells(&self) -> String {
        if self.texts == 0.0 {
            return "– | – | – | –".to_owned();
        }
        let mean = |sum: f64| sum / self.texts;
        format!(
            "{:.4} | {:.4} | {:.2} | **{:.5}**",
            mean(self.share),
            mean(self.fixed_share),
            mean(self.scored),
            mean(self.divergence)
        )
    }
}

/// All rows.
pub fn markdown(rows: &[Row], fixed: usize, input: usize) -> String {
    let mut table = format!(
        "{fixed} fixed bytes, then {input} of input. Share: of the clustered keys, and of all fixed keys with sinks and window; scored: of the clusters. KL in bits over the input.\n\n\
         | rule | text: share | of all fixed | scored | KL | questions: share | of all fixed | scored | KL | answers |\n\
         |---|---|---|---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        table.push_str(&row.line());
        table.push('\n');
    }
    table
}
