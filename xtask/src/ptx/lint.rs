//! `cargo xtask ptx lint`: does the hardware's own assembler think of the shipped PTX what we think of it?

use super::Project;
use super::census::census;
use super::edit::version;
use super::launch_bounds::LaunchBounds;
use super::ptxas::{Ptxas, Report};
use super::resources::Resources;

/// Assembles every shipped file and compares it with the rules and with the committed table.
pub fn lint(project: &Project) -> Result<(), String> {
    let ptxas = Ptxas::find()?;
    let mut shipped = Vec::new();
    for target in project.targets() {
        shipped.push((target.name(), project.shipped(target)?.1));
    }
    let committed = if shipped.is_empty() {
        Resources::default()
    } else {
        project.resources()?
    };
    let verdict = judge(&shipped, &committed, project.bounds, &ptxas)?;
    print!("{}", verdict.fresh.render());
    for note in &verdict.notes {
        println!("note: {note}");
    }
    fail_on(&verdict.problems)
}

/// What `lint` finds.
pub struct Verdict {
    pub fresh: Resources,
    pub problems: Vec<String>,
    /// What differs only because this is another ptxas than the table's.
    pub notes: Vec<String>,
}

/// Judges `shipped`, pairs of a target's name and its PTX.
pub fn judge(
    shipped: &[(&str, String)],
    committed: &Resources,
    bounds: &[LaunchBounds],
    ptxas: &Ptxas,
) -> Result<Verdict, String> {
    let mut fresh = Resources::new(&ptxas.version);
    let mut found = Vec::new();
    for (target, text) in shipped {
        let (lowest, report) = ptxas.lowest_version(text, target)?;
        let shipped_version = version(text)?;
        if shipped_version != lowest {
            found.push(format!(
                "{target}: .version {shipped_version} where {lowest} is enough"
            ));
        }
        found.extend(problems(target, &report, bounds));
        fresh.add(target, &report, census(text)?);
    }
    for change in committed.census_changes(&fresh) {
        found.push(format!(
            "synchronising instructions are not the committed ones: {change}"
        ));
    }
    let changes = committed.usage_changes(&fresh);
    let mut notes = Vec::new();
    if committed.ptxas == fresh.ptxas {
        found.extend(changes);
    } else if !changes.is_empty() {
        notes.push(format!(
            "the table is of ptxas {}, this is {}:",
            committed.ptxas, fresh.ptxas
        ));
        notes.extend(changes);
    }
    Ok(Verdict {
        fresh,
        problems: found,
        notes,
    })
}

/// What is wrong with a report whatever the committed table says.
pub fn problems(target: &str, report: &Report, bounds: &[LaunchBounds]) -> Vec<String> {
    let mut problems = report.warnings.clone();
    for (name, usage) in &report.functions {
        if usage.spill_bytes > 0 {
            problems.push(format!(
                "{target} {name}: {} bytes of spills",
                usage.spill_bytes
            ));
        }
        let is_hot = bounds.iter().any(|row| row.kernel == name && row.hot);
        if is_hot && usage.stack_bytes > 0 {
            problems.push(format!(
                "{target} {name}: {} bytes of local memory in a hot kernel",
                usage.stack_bytes
            ));
        }
    }
    problems
}

/// One error of many lines, or none.
pub fn fail_on(problems: &[String]) -> Result<(), String> {
    if problems.is_empty() {
        Ok(())
    } else {
        Err(problems.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::launch_bounds::Target;
    use crate::ptx::ptxas::Usage;

    fn found(usage: Usage, hot: bool) -> Vec<String> {
        let bounds = [LaunchBounds {
            kernel: "k",
            targets: &[Target::Sm80],
            threads: 32,
            min_blocks_per_sm: 1,
            hot,
        }];
        let mut report = Report::default();
        report.functions.insert("k".to_owned(), usage);
        problems("sm_80", &report, &bounds)
    }

    #[test]
    fn local_memory_is_an_error_in_hot_kernels_only() {
        let usage = Usage {
            stack_bytes: 64,
            ..Usage::default()
        };
        assert_eq!(
            found(usage, true),
            ["sm_80 k: 64 bytes of local memory in a hot kernel"]
        );
        assert!(found(usage, false).is_empty());
    }

    #[test]
    fn spills_and_warnings_are_errors_in_every_kernel() {
        let usage = Usage {
            spill_bytes: 8,
            ..Usage::default()
        };
        assert_eq!(found(usage, false), ["sm_80 k: 8 bytes of spills"]);
        let report = Report {
            warnings: vec!["(C7508) setmaxnreg ignored".to_owned()],
            ..Report::default()
        };
        assert_eq!(problems("sm_90a", &report, &[]), report.warnings);
    }
}
