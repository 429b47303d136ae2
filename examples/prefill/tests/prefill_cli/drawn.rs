//! Pictures.

use sample_attention::{Dtype, Problem};

use crate::support::{Folder, capture, pixels, succeeds};

#[test]
fn pictures_show_what_is_kept() {
    let folder = Folder::new();
    let small = "--synthetic 1200 --head-dim 32 --q-heads 1 --kv-heads 1 --structure hard";
    let draw = |options: &str| {
        succeeds(&folder, &format!("{small} --picture p.png {options}"));
        pixels(&folder.file("p.png"))
    };
    let count = |pixels: &[[u8; 3]], has: fn([i32; 3]) -> bool| {
        pixels
            .iter()
            .filter(|pixel| has(pixel.map(i32::from)))
            .count()
    };
    let blue: fn([i32; 3]) -> bool = |[r, _, b]| b > r + 40;
    let orange: fn([i32; 3]) -> bool = |[r, g, b]| r > b + 50 && g > b;
    let green: fn([i32; 3]) -> bool = |[r, g, b]| g > r + 60 && g > b + 30;
    let magenta: fn([i32; 3]) -> bool = |[r, g, b]| r > g + 60 && b > g + 40;
    let (width, height, blocks) = draw("--fallback never");
    assert!(width > 800 && height > 500, "{width} x {height}");
    let (_, _, stripes) = draw("--fallback never --budget residual");
    let (_, _, dense) = draw("--dense");
    // Legends have every colour; the maps add much more of what they show.
    assert!(count(&blocks, blue) > 5_000);
    assert!(count(&blocks, orange) > 20_000);
    assert!(count(&stripes, magenta) > 2_000 && count(&blocks, magenta) < 100);
    assert!(count(&blocks, green) > 200 && count(&dense, green) < 100);
    // What ran dense was not selected.
    let violet: fn([i32; 3]) -> bool = |[r, g, b]| b > r && r > g + 5;
    assert!(count(&dense, violet) > 100_000 && count(&blocks, violet) < 5_000);
    assert!(count(&dense, orange) < 5_000);
}

#[test]
fn pictures_of_odd_shapes_are_drawn() {
    let folder = Folder::new();
    let tiny = Problem::causal(1, 8, Dtype::F32);
    let long = tiny.with_k_len(40_000);
    for (problem, options) in [
        (tiny, ""),
        (long, ""),
        (tiny.with_q_len(300), ""),
        (tiny.with_q_len(5).with_k_len(1000), "--budget paper"),
        (
            tiny.with_batch(3)
                .with_heads(6, 3)
                .with_q_len(70)
                .with_k_len(129),
            "--sinks 0",
        ),
        (
            tiny.with_q_len(5000).with_k_len(5000),
            "--budget residual --sinks 500",
        ),
    ] {
        capture(problem).write(folder.file("in")).unwrap();
        succeeds(
            &folder,
            &format!("--input in --fallback never --compare-dense --picture p.png {options}"),
        );
        let (width, height, pixels) = pixels(&folder.file("p.png"));
        assert_eq!(pixels.len(), (width * height) as usize, "{problem:?}");
    }
}

#[test]
fn the_heads_that_are_named_are_drawn() {
    let folder = Folder::new();
    let draw = |options: &str| {
        let small = "--synthetic 200 --head-dim 8 --q-heads 12 --kv-heads 3 --fallback never";
        succeeds(&folder, &format!("{small} --picture p.PNG {options}"));
        pixels(&folder.file("p.PNG"))
    };
    let (_, first, _) = draw("");
    let (_, three, chosen) = draw("--heads 9,0-1");
    let (_, _, other) = draw("--heads 0-1,9");
    let (_, all, _) = draw("--heads 0-11");
    // Each head takes the same height below the heading.
    let head = (all - first) / 4;
    assert_eq!(first - 8 * head, three - 3 * head);
    assert!(head > 400 && chosen != other);
}
