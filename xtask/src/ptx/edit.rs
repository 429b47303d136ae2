//! The edits that turn the compiler's PTX into ours: launch bounds, aligned tensor maps, the `.version`, tidy lines.

use super::launch_bounds::{LaunchBounds, Target};
use super::text::{code_only, functions};

/// Writes every kernel's bounds between its parameters and its body, and cuts out the kernels that the
/// table has for other targets only.
///
/// A kernel without any row is an error, because it would be launched without a register cap; so is a row
/// without a kernel, which would be found missing only at run time.
pub fn with_launch_bounds(
    text: &str,
    table: &[LaunchBounds],
    target: Target,
) -> Result<String, String> {
    let entries: Vec<_> = functions(text)?
        .into_iter()
        .filter(|f| f.is_entry)
        .collect();
    let rows = rows_of(table, target)?;
    for row in &rows {
        if !entries.iter().any(|entry| entry.name == row.kernel) {
            return Err(format!(
                "the launch bounds table has `{}` for {}, but the compiler made no such kernel: \
                 is it `#[unsafe(no_mangle)] extern \"ptx-kernel\"`, and compiled for this target?",
                row.kernel,
                target.name()
            ));
        }
    }
    let mut edited = String::with_capacity(text.len() + 64 * entries.len());
    let mut copied = 0;
    for entry in &entries {
        let Some(row) = rows.iter().find(|row| row.kernel == entry.name) else {
            if table.iter().any(|row| row.kernel == entry.name) {
                edited.push_str(&text[copied..entry.whole.start]);
                copied = entry.whole.end;
                continue;
            }
            return Err(format!(
                "kernel `{}` has no row in the launch bounds table",
                entry.name
            ));
        };
        let already = text[entry.directives.clone()].trim();
        if !already.is_empty() {
            return Err(format!(
                "kernel `{}` already has `{already}`: the table must be the only source of launch bounds",
                entry.name
            ));
        }
        edited.push_str(&text[copied..entry.directives.start]);
        edited.push_str(&format!(
            "\n.maxntid {}, 1, 1\n.minnctapersm {}",
            row.threads, row.min_blocks_per_sm
        ));
        copied = entry.directives.start;
    }
    edited.push_str(&text[copied..]);
    Ok(edited)
}

/// The rows of `target`, checked for what the hardware can never launch.
fn rows_of(table: &[LaunchBounds], target: Target) -> Result<Vec<&LaunchBounds>, String> {
    let rows: Vec<_> = table
        .iter()
        .filter(|row| row.targets.contains(&target))
        .collect();
    for (at, row) in rows.iter().enumerate() {
        if rows[..at].iter().any(|other| other.kernel == row.kernel) {
            return Err(format!(
                "the launch bounds table has two rows for `{}`",
                row.kernel
            ));
        }
        // A block has at most 1024 threads and a multiprocessor holds at most 2048 of them; partial warps
        // would make every `.sync` with a full mask undefined.
        let fits = (32..=1024).contains(&row.threads)
            && row.threads.is_multiple_of(32)
            && row.min_blocks_per_sm >= 1
            && row.min_blocks_per_sm.saturating_mul(row.threads) <= 2048;
        if !fits {
            return Err(format!(
                "the launch bounds of `{}` ({} threads, {} blocks) are not whole warps that fit on a multiprocessor",
                row.kernel, row.threads, row.min_blocks_per_sm
            ));
        }
    }
    Ok(rows)
}

/// Aligns the parameters of kernels that take their address to 64 bytes.
///
/// They hold tensor maps, which copies want there; rustc's calling convention knows no alignment above 16.
pub fn with_aligned_maps(text: &str) -> Result<String, String> {
    let mut edited = String::with_capacity(text.len());
    let mut copied = 0;
    for entry in functions(text)?.iter().filter(|f| f.is_entry) {
        if !text[entry.body.clone()].contains("cvta.param") {
            continue;
        }
        const RUSTC: &str = ".param .align 16 ";
        let parameters = &text[entry.whole.start..entry.directives.start];
        let at = parameters.find(RUSTC).ok_or_else(|| {
            format!(
                "kernel `{}` takes the address of its parameters, which hold no tensor map",
                entry.name
            )
        })?;
        edited.push_str(&text[copied..entry.whole.start + at]);
        edited.push_str(".param .align 64 ");
        copied = entry.whole.start + at + RUSTC.len();
    }
    edited.push_str(&text[copied..]);
    Ok(edited)
}

/// The `.version` of a PTX text, as written: `8.0`.
pub fn version(text: &str) -> Result<&str, String> {
    version_range(text).map(|range| &text[range])
}

/// `text` with another `.version`.
pub fn with_version(text: &str, version: &str) -> Result<String, String> {
    let range = version_range(text)?;
    Ok([&text[..range.start], version, &text[range.end..]].concat())
}

fn version_range(text: &str) -> Result<std::ops::Range<usize>, String> {
    const DIRECTIVE: &str = ".version ";
    let start = code_only(text)
        .find(DIRECTIVE)
        .ok_or("PTX without a `.version`")?
        + DIRECTIVE.len();
    let length = text[start..]
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len() - start);
    Ok(start..start + length)
}

/// Without the compiler's comment lines, without spaces at line ends, with one newline at the end.
pub fn tidy(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(str::trim_end)
        .collect();
    lines.join("\n").trim().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "//\n// .version 1.0\n//\n\n.version 8.0\n.target sm_90a\n\n\
        .visible .entry first(\n\t.param .u64 first_param_0\n)\n{\n\tret;\n}\n\
        .visible .entry second()\n{\n\tret;\n}\n";

    const fn row(kernel: &'static str, threads: u32, min_blocks_per_sm: u32) -> LaunchBounds {
        LaunchBounds {
            kernel,
            targets: &[Target::Sm90a],
            threads,
            min_blocks_per_sm,
            hot: true,
        }
    }

    #[test]
    fn every_kernel_gets_its_own_bounds_before_its_body() {
        let table = [row("second", 128, 4), row("first", 384, 1)];
        let edited = with_launch_bounds(PTX, &table, Target::Sm90a).unwrap();
        assert!(
            edited.contains("first_param_0\n)\n.maxntid 384, 1, 1\n.minnctapersm 1\n{"),
            "{edited}"
        );
        assert!(
            edited.contains("second()\n.maxntid 128, 1, 1\n.minnctapersm 4\n{"),
            "{edited}"
        );
        let removed = edited
            .replace("\n.maxntid 384, 1, 1\n.minnctapersm 1", "")
            .replace("\n.maxntid 128, 1, 1\n.minnctapersm 4", "");
        assert_eq!(removed, PTX, "nothing else may change");
    }

    #[test]
    fn table_and_ptx_must_name_the_same_kernels() {
        let unbounded = with_launch_bounds(PTX, &[row("first", 32, 1)], Target::Sm90a).unwrap_err();
        assert!(unbounded.contains("`second` has no row"), "{unbounded}");
        let table = [
            row("first", 32, 1),
            row("second", 32, 1),
            row("third", 32, 1),
        ];
        let missing = with_launch_bounds(PTX, &table, Target::Sm90a).unwrap_err();
        assert!(missing.contains("`third`"), "{missing}");
    }

    #[test]
    fn kernels_of_other_targets_are_cut_out_whole() {
        let both = LaunchBounds {
            targets: &Target::ALL,
            ..row("second", 64, 1)
        };
        let edited = with_launch_bounds(PTX, &[row("first", 32, 1), both], Target::Sm80).unwrap();
        let left: Vec<_> = functions(&edited).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].name, "second");
        assert!(!edited.contains("first"), "{edited}");
        assert!(edited.starts_with("//\n// .version 1.0"), "{edited}");
    }

    #[test]
    fn bounds_that_no_launch_can_meet_are_refused() {
        for (threads, blocks) in [(0, 1), (48, 1), (2048, 1), (1024, 3), (128, 0)] {
            let table = [row("first", threads, blocks), row("second", 32, 1)];
            let error = with_launch_bounds(PTX, &table, Target::Sm90a).unwrap_err();
            assert!(error.contains("`first`"), "{threads} × {blocks}: {error}");
        }
        let twice = [row("first", 32, 1), row("first", 64, 1)];
        assert!(with_launch_bounds(PTX, &twice, Target::Sm90a).is_err());
    }

    #[test]
    fn bounds_are_written_once() {
        let table = [row("first", 32, 1), row("second", 32, 1)];
        let once = with_launch_bounds(PTX, &table, Target::Sm90a).unwrap();
        assert!(with_launch_bounds(&once, &table, Target::Sm90a).is_err());
    }

    #[test]
    fn only_parameters_whose_address_is_taken_are_aligned() {
        let ptx = "\n.visible .entry first(\n\t.param .align 16 .b8 first_param_0[400]\n)\n{\n\
            mov.b64 t, first_param_0; cvta.param.u64 %rd1, t;\n}\n\
            .visible .entry second(\n\t.param .align 16 .b8 second_param_0[16]\n)\n{\n\tret;\n}\n";
        let edited = with_aligned_maps(ptx).unwrap();
        assert!(edited.contains(".align 64 .b8 first_param_0"), "{edited}");
        assert_eq!(edited.replace(".align 64", ".align 16"), ptx);
        assert!(edited.contains(".align 16 .b8 second_param_0"), "{edited}");
        assert!(with_aligned_maps(&ptx.replace("align 16", "align 8")).is_err());
    }

    #[test]
    fn the_version_directive_is_replaced_and_a_comment_is_not() {
        assert_eq!(version(PTX), Ok("8.0"));
        let edited = with_version(PTX, "7.8").unwrap();
        assert_eq!(version(&edited), Ok("7.8"));
        assert!(edited.contains("// .version 1.0"));
        assert!(with_version(".target sm_80\n", "7.0").is_err());
    }

    #[test]
    fn tidy_text_has_no_comment_lines_and_no_trailing_space() {
        let text = "//\n// by LLVM\n\na \t\n\n\t// begin inline asm\n\tb // c\r\n\n";
        assert_eq!(tidy(text), "a\n\n\tb // c\n");
    }
}
