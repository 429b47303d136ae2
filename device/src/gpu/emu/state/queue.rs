//! Queues of work in flight, the oldest first.

use std::collections::VecDeque;

/// Takes the first element, if it is as asked. (`VecDeque::pop_front_if` is of Rust 1.93.)
pub fn pop_front_if<T>(queue: &mut VecDeque<T>, is_due: impl FnOnce(&T) -> bool) -> Option<T> {
    queue
        .front()
        .is_some_and(is_due)
        .then(|| queue.pop_front())?
}
