//! How often each synchronising instruction stands in each function.
//!
//! `asm!` is not convergent for the compiler, so an optimisation may clone a barrier into both sides of a
//! branch. The result looks right, compiles, and hangs or corrupts data on hardware only. Counting is the
//! one check that needs no hardware: a count that moved without the source having moved is such a clone.

use std::collections::BTreeMap;

use super::text::{functions, opcodes};

/// Counts by (function, opcode with its modifiers).
pub type Census = BTreeMap<(String, String), u32>;

/// The census of a PTX text. Device functions that were not inlined are counted under their own names.
pub fn census(text: &str) -> Result<Census, String> {
    let mut census = Census::new();
    for function in functions(text)? {
        for opcode in opcodes(&text[function.body]) {
            if synchronises(&opcode) {
                let name = without_crate_hashes(&function.name);
                *census.entry((name, opcode)).or_default() += 1;
            }
        }
    }
    Ok(census)
}

/// A mangled name without the hashes of the crates in it (`Cs4fqI2P2rA04_13`), which every compiler release
/// makes anew: the census must be comparable across releases. Kernels' names are not mangled.
fn without_crate_hashes(name: &str) -> String {
    if !name.starts_with("_R") {
        return name.to_owned();
    }
    let mut pieces = name.split("Cs");
    let mut kept = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let behind = piece.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
        // The hash ends with `_`, and the length of the crate's name follows.
        match behind.strip_prefix('_') {
            Some(crate_name) if crate_name.starts_with(|c: char| c.is_ascii_digit()) => {
                kept.push('C');
                kept.push_str(crate_name);
            }
            _ => {
                kept.push_str("Cs");
                kept.push_str(piece);
            }
        }
    }
    kept
}

/// Whether an instruction waits for, or is awaited by, other threads or asynchronous agents, or must be
/// executed by a converged warp: barriers, shuffles, votes, every `.sync` matrix instruction, mbarriers,
/// fences, and the commits and waits of asynchronous copies.
fn synchronises(opcode: &str) -> bool {
    let mut parts = opcode.split(['.', ':']).filter(|part| !part.is_empty());
    match parts.next() {
        Some(
            "bar" | "barrier" | "mbarrier" | "fence" | "membar" | "activemask" | "griddepcontrol",
        ) => true,
        Some("cp") => parts.any(|part| {
            matches!(
                part,
                "commit_group" | "wait_group" | "wait_all" | "mbarrier"
            )
        }),
        _ => parts.any(|part| part == "sync"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_of_both_architectures_is_recognised() {
        for opcode in [
            "bar.sync",
            "bar.warp.sync",
            "barrier.cta.sync.aligned",
            "barrier.cluster.arrive.release.aligned",
            "shfl.sync.bfly.b32",
            "vote.sync.ballot.b32",
            "redux.sync.max.u32",
            "elect.sync",
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
            "mbarrier.try_wait.parity.shared::cta.b64",
            "mbarrier.arrive.expect_tx.shared::cta.b64",
            "cp.async.commit_group",
            "cp.async.wait_group",
            "cp.async.wait_all",
            "cp.async.bulk.commit_group",
            "cp.async.bulk.wait_group.read",
            "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes",
            "wgmma.fence.sync.aligned",
            "wgmma.commit_group.sync.aligned",
            "wgmma.wait_group.sync.aligned",
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
            "setmaxnreg.dec.sync.aligned.u32",
            "fence.proxy.async.shared::cta",
            "membar.gl",
        ] {
            assert!(synchronises(opcode), "{opcode}");
        }
        for opcode in [
            "cp.async.cg.shared.global",
            "ld.global.v4.b32",
            "bra",
            "ret",
            "mov.u32",
            "add.f32",
        ] {
            assert!(!synchronises(opcode), "{opcode}");
        }
    }

    #[test]
    fn a_barrier_cloned_into_both_sides_of_a_branch_changes_the_census() {
        let once = ".entry k() { @%p1 bra A; add.s32 %r1, %r1, 1; A: bar.sync 0; ret; }";
        let twice =
            ".entry k() { @%p1 bra A; add.s32 %r1, %r1, 1; bar.sync 0; ret; A: bar.sync 0; ret; }";
        let key = ("k".to_owned(), "bar.sync".to_owned());
        assert_eq!(census(once).unwrap()[&key], 1);
        assert_eq!(census(twice).unwrap()[&key], 2);
    }

    #[test]
    fn functions_are_counted_apart() {
        let text = ".func f() { bar.sync 0; }\n.entry k() { bar.sync 0; // bar.sync 0;\n bar.sync 1; ret; }";
        let counts: Vec<_> = census(text).unwrap().into_iter().collect();
        assert_eq!(
            counts,
            [
                (("f".to_owned(), "bar.sync".to_owned()), 1),
                (("k".to_owned(), "bar.sync".to_owned()), 2),
            ]
        );
    }

    #[test]
    fn a_device_function_keeps_its_name_when_another_compiler_hashes_its_crate_otherwise() {
        let names = ["CsatibOzl42rq_", "Cs4fqI2P2rA04_"].map(|hash| {
            without_crate_hashes(&format!("_RINvN{hash}4core3mem4swapN{hash}6deviceE"))
        });
        assert_eq!(names[0], "_RINvNC4core3mem4swapNC6deviceE");
        assert_eq!(names[0], names[1]);
        for unmangled in ["top_k", "Cs1_2", "kernelCs1_2"] {
            assert_eq!(without_crate_hashes(unmangled), unmangled);
        }
        // A name of the source's own, that only looks like a hash.
        assert_eq!(
            without_crate_hashes("_RNvC6device7forCs_x"),
            "_RNvC6device7forCs_x"
        );
    }
}
