//! Random problems against the oracle: a few seconds of them in every run of the tests, and as many as one likes with
//! `cargo xtask fuzz`.

use std::time::{Duration, Instant};

use rayon::prelude::*;
use testkit::fuzz::check_seed;

#[test]
fn random_problems_agree_with_the_oracle() {
    let wrong: Vec<String> = (0..250u64)
        .into_par_iter()
        .filter_map(|seed| check_seed(seed).err())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A number that `cargo xtask fuzz` hands over.
fn number(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => otherwise,
    }
}

#[test]
#[ignore = "as long as it is told to: cargo xtask fuzz"]
fn random_problems_for_some_time() {
    const BATCH: u64 = 256;
    let seconds = Duration::from_secs(number("FUZZ_SECONDS", 60));
    let first = number("FUZZ_SEED", 1_000_000);
    let started = Instant::now();
    let mut seed = first;
    let mut told = started;
    while started.elapsed() < seconds {
        let wrong: Vec<String> = (seed..seed + BATCH)
            .into_par_iter()
            .filter_map(|seed| check_seed(seed).err())
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        seed += BATCH;
        if told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            let left = seconds.saturating_sub(started.elapsed()).as_secs();
            eprintln!("{} problems agree, {left} s left", seed - first);
        }
    }
    eprintln!("{} problems agree, seeds {first}..{seed}", seed - first);
}
