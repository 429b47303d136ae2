//! The README of the repository shows this crate's own example, which is compiled and run as documentation.

/// The first block of Rust behind a heading.
fn block<'a>(readme: &'a str, heading: &str) -> &'a str {
    let (_, section) = readme.split_once(heading).expect("there is such a heading");
    let (_, block) = section.split_once("```rust").expect("there is a block");
    let (_, lines) = block.split_once('\n').expect("the fence ends its line");
    lines.split_once("```").expect("the block ends").0
}

#[test]
fn the_repositorys_readme_shows_this_crates_example() {
    let whole = include_str!("../../../README.md");
    let own = include_str!("../../README.md");
    assert_eq!(
        block(whole, "## Use it from candle"),
        block(own, "# candle-sample-attention")
    );
}
