//! Dynamic scheduling: each worker owns a scratch and takes the next task from a shared iterator, which hands out disjoint
//! parts of the outputs.

use std::sync::Mutex;

use rayon::prelude::*;

/// Runs `work` once for every task, on as many threads as there are scratches. Tasks are taken in order, so the heavy
/// ones should come first.
pub(crate) fn for_each_task<S: Send, T>(
    scratches: &mut [S],
    tasks: impl Iterator<Item = T> + Send,
    work: impl Fn(&mut S, T) + Sync,
) {
    if let [only] = scratches {
        return tasks.for_each(|task| work(only, task));
    }
    let tasks = Mutex::new(tasks);
    scratches
        .par_iter_mut()
        .with_max_len(1)
        .for_each(|scratch| {
            loop {
                // The guard is dropped before the work begins.
                let task = match tasks.lock() {
                    Ok(mut tasks) => tasks.next(),
                    // Another worker panicked while it took a task; rayon passes its panic on.
                    Err(_) => None,
                };
                match task {
                    Some(task) => work(scratch, task),
                    None => break,
                }
            }
        });
}

/// Takes the first `len` elements off a slice that is handed out piece by piece.
pub(super) fn take<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    rest.split_off_mut(..len)
        .expect("the pieces together are as long as the slice")
}
