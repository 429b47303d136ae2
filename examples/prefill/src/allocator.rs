//! Memory that cannot be had ends the program as any other failure does: in one line, with exit code 2 and no file left behind.
//! `memory` refuses what is known to be too much before it starts; this is for what it could not know.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::files;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The system's, except that it never fails.
struct Allocator;

// SAFETY: every call is passed on to the system's allocator as it is, and what that gives is returned unless it is null.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract.
        given(
            unsafe { System.realloc(memory, layout, new_size) },
            new_size,
        )
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        give_up(bytes);
    }
    memory
}

/// Ends the process. Nothing here allocates, except for paths that are too long for the stack.
#[cold]
fn give_up(bytes: usize) -> ! {
    static GIVEN_UP: AtomicBool = AtomicBool::new(false);
    if GIVEN_UP.swap(true, Ordering::SeqCst) {
        // Another thread is at it, or this one came back: then the exit code is what can be said.
        std::thread::sleep(std::time::Duration::from_millis(200));
        exit();
    }
    files::abandon_if_possible();
    let _ = writeln!(
        std::io::stderr(),
        "error: out of memory: {bytes} more bytes cannot be had; use a shorter sequence or fewer heads, or raise the limit"
    );
    exit();
}

/// Ends the process at once: what runs at an ordinary exit may want memory.
fn exit() -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(2);
    #[cfg(not(unix))]
    std::process::abort();
}
