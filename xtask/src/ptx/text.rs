//! Reading PTX text: the functions in it, and the statements in their bodies.
//!
//! The compiler's output is never rebuilt from a parse; it is found in, and edited, by byte offset.

use std::ops::Range;

/// A function that is defined in a PTX text. Offsets are into that text.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// `.entry` (a kernel) rather than `.func`.
    pub is_entry: bool,
    /// The whole definition, from the start of the line that names it to behind the body's `}`.
    pub whole: Range<usize>,
    /// From behind the parameter list's `)` to the body's `{`: where performance directives stand.
    pub directives: Range<usize>,
    /// What is between the body's braces.
    pub body: Range<usize>,
}

/// `text` with comments and the insides of strings replaced by spaces, byte for byte, so that offsets agree
/// and no brace or keyword is found where it is only mentioned. Line ends stay.
pub fn code_only(text: &str) -> String {
    let mut code = text.as_bytes().to_vec();
    let mut at = 0;
    while at < code.len() {
        let end = match &code[at..] {
            [b'/', b'/', ..] => find(&code, at, b"\n"),
            [b'/', b'*', ..] => (find(&code, at + 2, b"*/") + 2).min(code.len()),
            [b'"', ..] => (find(&code, at + 1, b"\"") + 1).min(code.len()),
            _ => {
                at += 1;
                continue;
            }
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Blanked ranges start and end at ASCII characters, so no character was cut in half.
    String::from_utf8(code).expect("blanking keeps UTF-8 whole")
}

/// Where `needle` next stands at or after `from`, or the end.
fn find(text: &[u8], from: usize, needle: &[u8]) -> usize {
    text.get(from..)
        .and_then(|rest| rest.windows(needle.len()).position(|w| w == needle))
        .map_or(text.len(), |at| from + at)
}

/// Every function that `text` defines, in order. Declarations without a body are left out.
pub fn functions(text: &str) -> Result<Vec<Function>, String> {
    let code = code_only(text);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((keyword, is_entry)) = next_function(&code, at) {
        let mut cursor = keyword;
        // `.func (.param .b32 result) name(...)`: the result comes before the name.
        if !is_entry && code[cursor..].trim_start().starts_with('(') {
            cursor = closing(&code, cursor, '(', ')')? + 1;
        }
        let rest = &code[cursor..];
        let name_at = cursor + (rest.len() - rest.trim_start().len());
        let name: String = code[name_at..]
            .chars()
            .take_while(|c| is_identifier(*c))
            .collect();
        if name.is_empty() {
            return Err(format!(
                "PTX line {}: a function without a name",
                line_of(text, name_at)
            ));
        }
        cursor = name_at + name.len();
        if code[cursor..].trim_start().starts_with('(') {
            cursor = closing(&code, cursor, '(', ')')? + 1;
        }
        let Some(stop) = code[cursor..].find(['{', ';']).map(|stop| cursor + stop) else {
            return Err(format!("PTX: `{name}` has neither a body nor a `;`"));
        };
        at = stop + 1;
        if code.as_bytes()[stop] == b'{' {
            let end = closing(&code, stop, '{', '}')?;
            found.push(Function {
                name,
                is_entry,
                whole: code[..keyword].rfind('\n').map_or(0, |line| line + 1)..end + 1,
                directives: cursor..stop,
                body: stop + 1..end,
            });
            at = end + 1;
        }
    }
    Ok(found)
}

/// The offset behind the next `.entry` or `.func`, and whether it was `.entry`.
fn next_function(code: &str, from: usize) -> Option<(usize, bool)> {
    let entry = keyword(code, from, ".entry").map(|end| (end, true));
    let func = keyword(code, from, ".func").map(|end| (end, false));
    entry.into_iter().chain(func).min()
}

/// The offset behind the next whole word `word`.
fn keyword(code: &str, from: usize, word: &str) -> Option<usize> {
    code[from..]
        .match_indices(word)
        .map(|(at, _)| from + at + word.len())
        .find(|end| !code[*end..].starts_with(is_identifier))
}

/// The offset of the bracket that closes the first `open` at or after `from`.
fn closing(code: &str, from: usize, open: char, close: char) -> Result<usize, String> {
    let mut depth = 0_usize;
    for (at, c) in code[from..].char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth = depth.checked_sub(1).ok_or_else(|| {
                format!("PTX line {}: a stray `{close}`", line_of(code, from + at))
            })?;
            if depth == 0 {
                return Ok(from + at);
            }
        }
    }
    Err(format!(
        "PTX line {}: `{open}` is never closed",
        line_of(code, from)
    ))
}

/// The opcodes of a body in order, modifiers included: `bar.sync`, `shfl.sync.bfly.b32`.
/// Labels, predicates and directives are skipped; one line of inline assembly may hold many statements.
pub fn opcodes(body: &str) -> Vec<String> {
    code_only(body)
        .split(['\n', ';', '{', '}'])
        .filter_map(opcode)
        .collect()
}

fn opcode(statement: &str) -> Option<String> {
    let mut rest = statement.trim();
    while let Some(behind) = behind_label(rest) {
        rest = behind.trim_start();
    }
    if let Some(guarded) = rest.strip_prefix('@') {
        rest = guarded
            .trim_start_matches('!')
            .trim_start_matches(is_identifier)
            .trim_start();
    }
    let op = rest.split_whitespace().next()?;
    // What is left of operand lists starts with a register, a number or a bracket, and directives with a dot.
    op.starts_with(|c: char| c.is_ascii_lowercase())
        .then(|| op.trim_end_matches(',').to_owned())
}

/// What follows a leading `label:`. The `::` inside modifiers (`.shared::cta`) ends no label.
fn behind_label(statement: &str) -> Option<&str> {
    let behind = statement.trim_start_matches(is_identifier);
    if behind.len() == statement.len() || behind.starts_with("::") {
        return None;
    }
    behind.strip_prefix(':')
}

fn is_identifier(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%')
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_KERNELS: &str = r#"
.version 7.0
.extern .func puts (.param .b64 x);
.func  (.param .b32 func_retval0) helper(
	.param .b32 a
)
{
	ret;
}
	// .globl	first // .entry ghost() { }
.visible .entry first(
	.param .u64 .ptr .align 1 p,
	.param .align 8 .b8 launch[16]
)
{
	.reg .b32 	%r<8>; /* } */
	{ .reg .pred p; LW: mbarrier.try_wait.parity.shared::cta.b64 p, [a], ph; @p bra LD; bra LW; LD: }
	.pragma "no }";
	ret;
}
.visible .entry second()
.maxntid 32, 1, 1
{
	ret;
}
"#;

    #[test]
    fn functions_are_found_whatever_stands_in_comments_and_strings() {
        let functions = functions(TWO_KERNELS).unwrap();
        let names: Vec<_> = functions
            .iter()
            .map(|f| (f.name.as_str(), f.is_entry))
            .collect();
        assert_eq!(
            names,
            [("helper", false), ("first", true), ("second", true)]
        );
        assert_eq!(
            TWO_KERNELS[functions[2].directives.clone()].trim(),
            ".maxntid 32, 1, 1"
        );
        assert!(TWO_KERNELS[functions[1].body.clone()].ends_with("ret;\n"));
        let whole = &TWO_KERNELS[functions[2].whole.clone()];
        assert!(whole.starts_with(".visible .entry second()") && whole.ends_with("ret;\n}"));
    }

    #[test]
    fn an_unclosed_body_is_an_error_that_names_the_line() {
        let error = functions(".version 7.0\n.entry k()\n{ ret;").unwrap_err();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn opcodes_survive_labels_predicates_braces_and_many_statements_on_a_line() {
        let body = "
	@%p1 bra 	$L__BB0_2;
	// begin inline asm
	{ .reg .pred q; setp.ne.b32 q, %r1, 0; @!q bar.sync 1, 64; }
	// end inline asm
$L__BB0_2:
	LW: mbarrier.try_wait.parity.shared::cta.b64 p, [a], ph; @p bra LD; bra LW; LD:
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1, %f2}, {%r1}, {%r2}, {%f3};
	ret;";
        let opcodes = opcodes(body);
        assert_eq!(
            opcodes,
            [
                "bra",
                "setp.ne.b32",
                "bar.sync",
                "mbarrier.try_wait.parity.shared::cta.b64",
                "bra",
                "bra",
                "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
                "ret",
            ]
        );
    }

    #[test]
    fn blanking_comments_keeps_every_offset() {
        let code = code_only(TWO_KERNELS);
        assert_eq!(code.len(), TWO_KERNELS.len());
        assert_eq!(code.lines().count(), TWO_KERNELS.lines().count());
        assert!(!code.contains("ghost"));
    }
}
