//! Circles in a graph of files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use super::resolve::Use;

/// A shortest circle for every set of files that reach each other: the uses along it, the last one back to the first file. And
/// how many files the set has.
pub fn circles(uses: &[Use]) -> Vec<(usize, Vec<&Use>)> {
    let mut edges: BTreeMap<&Path, Vec<&Use>> = BTreeMap::new();
    for link in uses {
        edges.entry(&link.from).or_default().push(link);
    }
    let mut left: BTreeSet<&Path> = edges.keys().copied().collect();
    let mut found = Vec::new();
    while let Some(file) = left.pop_first() {
        let ahead = reached(file, &edges);
        if !ahead.contains(file) {
            continue;
        }
        let together: BTreeSet<&Path> = ahead
            .into_iter()
            .filter(|other| reached(other, &edges).contains(file))
            .collect();
        let shortest = together
            .iter()
            .filter_map(|start| shortest_circle(start, &edges))
            .min_by_key(Vec::len);
        found.extend(shortest.map(|circle| (together.len(), circle)));
        left.retain(|file| !together.contains(file));
    }
    found
}

/// The files that one or more uses lead to.
fn reached<'a>(start: &Path, edges: &BTreeMap<&'a Path, Vec<&'a Use>>) -> BTreeSet<&'a Path> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(file) = open.pop() {
        for link in edges.get(file).into_iter().flatten() {
            if seen.insert(link.to.as_path()) {
                open.push(&link.to);
            }
        }
    }
    seen
}

fn shortest_circle<'a>(
    start: &Path,
    edges: &BTreeMap<&'a Path, Vec<&'a Use>>,
) -> Option<Vec<&'a Use>> {
    let mut came_by: BTreeMap<&Path, &Use> = BTreeMap::new();
    let mut open = VecDeque::from([start]);
    while let Some(file) = open.pop_front() {
        for &link in edges.get(file).into_iter().flatten() {
            let to = link.to.as_path();
            if came_by.contains_key(to) {
                continue;
            }
            came_by.insert(to, link);
            if to == start {
                let mut circle = vec![link];
                while circle[circle.len() - 1].from != start {
                    circle.push(came_by[circle[circle.len() - 1].from.as_path()]);
                }
                circle.reverse();
                return Some(circle);
            }
            open.push_back(to);
        }
    }
    None
}
