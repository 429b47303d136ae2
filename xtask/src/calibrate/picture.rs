//! The picture: heads × layers, what each became.

use std::fmt::Write;

use sample_attention::profile::Profile;
use sample_attention::{HeadPolicy, Policy, Window};

const CELL_WIDTH: usize = 132;
const CELL_HEIGHT: usize = 46;
const LEFT: usize = 76;
const TOP: usize = 64;

/// An SVG of the profile; `costs` are those of each layer's heads.
pub fn svg(profile: &Profile, costs: &[Vec<f64>]) -> String {
    let width = LEFT + profile.q_heads() * CELL_WIDTH + 20;
    let height = TOP + profile.layers() * CELL_HEIGHT + 20;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"15\">{}</text>\n",
        escaped(&format!("What each head became: {}", profile.model())),
    );
    let mut label = |x: usize, y: usize, words: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{y}\" fill=\"#666\">{words}</text>"
        );
    };
    for head in 0..profile.q_heads() {
        label(
            LEFT + head * CELL_WIDTH + 4,
            TOP - 8,
            &format!("head {head}"),
        );
    }
    for layer in 0..profile.layers() {
        label(
            16,
            TOP + layer * CELL_HEIGHT + 26,
            &format!("layer {layer}"),
        );
    }
    for (layer, costs) in costs.iter().enumerate() {
        let heads = profile.layer(layer).unwrap_or_default();
        for (head, (policy, cost)) in heads.iter().zip(costs).enumerate() {
            let (x, y) = (LEFT + head * CELL_WIDTH, TOP + layer * CELL_HEIGHT);
            let _ = writeln!(
                text,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"4\" fill=\"{}\" fill-opacity=\"{:.2}\" stroke=\"#999\"/>\
                 <text x=\"{tx}\" y=\"{}\">{}</text><text x=\"{tx}\" y=\"{}\" fill=\"#444\">cost {cost:.3}</text>",
                CELL_WIDTH - 6,
                CELL_HEIGHT - 6,
                color(policy),
                0.15 + 0.75 * cost.clamp(0.0, 1.0).sqrt(),
                y + 17,
                escaped(&in_words(policy)),
                y + 34,
                tx = x + 8,
            );
        }
    }
    text + "</svg>\n"
}

fn color(policy: &HeadPolicy) -> &'static str {
    match policy.kind() {
        "dense" => "#7b5cc4",
        "local" => "#4a90d9",
        "rows" => "#f0913a",
        "blocks" => "#d9c04a",
        _ => "#c2188a",
    }
}

/// What a head became, in a few words.
pub fn in_words(policy: &HeadPolicy) -> String {
    let window = |window: &Window| match window {
        Window::Tokens(tokens) => tokens.to_string(),
        Window::Ratio(ratio) => format!("{} %", 100.0 * ratio),
    };
    match policy {
        HeadPolicy::Local { window: size, .. } => format!("local {}", window(size)),
        HeadPolicy::Selected(Policy {
            coverage,
            row_stride,
            ..
        }) => format!("{} {coverage}, 1 in {row_stride}", policy.kind()),
        _ => policy.kind().to_owned(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_head_has_a_cell_with_its_kind_and_cost() {
        let local = HeadPolicy::Local {
            window: Window::Tokens(256),
            sinks: 16,
        };
        let rows = HeadPolicy::Selected(Policy::default());
        let heads = vec![vec![local, rows], vec![HeadPolicy::Dense, rows]];
        let profile = Profile::new("a <b> & c", heads).unwrap();
        let svg = svg(&profile, &[vec![0.03, 0.25], vec![1.0, 0.5]]);
        assert_eq!(svg.matches("<rect").count(), 1 + 4);
        for words in [
            "local 256",
            "rows 0.73, 1 in 8",
            "dense",
            "cost 0.250",
            "&lt;b&gt; &amp;",
        ] {
            assert!(svg.contains(words), "{words} in {svg}");
        }
    }
}
