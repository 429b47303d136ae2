//! `cargo xtask ptx build`: the device crate to the shipped PTX files and the table of their resources.

use std::fs;
use std::path::PathBuf;

use super::Project;
use super::census::census;
use super::compile::{compile, flags};
use super::digest;
use super::edit::{tidy, with_aligned_maps, with_launch_bounds, with_version};
use super::files::write_all;
use super::header::Header;
use super::lint;
use super::ptxas::Ptxas;
use super::resources::Resources;
use super::rustc::Compiler;

/// What a build makes, before anything is written.
pub struct Built {
    pub files: Vec<(PathBuf, String)>,
    pub resources: Resources,
    /// What `lint` will say about spills, local memory and warnings.
    pub problems: Vec<String>,
}

/// Builds and writes, and says what changed in the census: it should change only where the source did.
pub fn build(project: &Project) -> Result<(), String> {
    let built = assemble(project, &Compiler::find()?, &Ptxas::find()?)?;
    if let Ok(before) = project.resources() {
        for change in before.census_changes(&built.resources) {
            println!("synchronising instructions: {change}");
        }
    }
    write_all(&built.files)?;
    for (path, contents) in &built.files {
        println!("wrote {} ({} bytes)", project.shown(path), contents.len());
    }
    for problem in &built.problems {
        eprintln!("lint will fail: {problem}");
    }
    Ok(())
}

/// Builds, writes nothing, and fails where the committed files are not what a build makes.
pub fn verify(project: &Project) -> Result<(), String> {
    let compiler = Compiler::find()?;
    let built = assemble(project, &compiler, &Ptxas::find()?)?;
    let verdict = compare(project, &built, &compiler.version)?;
    for note in &verdict.notes {
        println!("note: {note}");
    }
    lint::fail_on(&verdict.problems)
}

/// What `verify` finds.
struct Comparison {
    problems: Vec<String>,
    notes: Vec<String>,
}

/// Compares the committed files with a build that was not written.
///
/// Another compiler or ptxas than the one that made the committed files may make other bytes; then the
/// fresh PTX must still keep the rules of `lint` and have the synchronising instructions of the committed table.
fn compare(project: &Project, built: &Built, compiler: &str) -> Result<Comparison, String> {
    let committed = project.resources()?;
    let mut problems = built.problems.clone();
    let mut notes = Vec::new();
    for target in project.targets() {
        let made_by = project.shipped(target)?.0.compiler;
        if made_by != compiler {
            notes.push(format!(
                "{} was made by {made_by}, this is {compiler}: bytes may differ",
                target.name()
            ));
        }
    }
    let same_compiler = notes.is_empty();
    let same_ptxas = committed.ptxas == built.resources.ptxas;
    for (path, fresh) in &built.files {
        let is_table = *path == project.resources_file();
        if same_compiler && (same_ptxas || !is_table) {
            let committed = fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", project.shown(path)))?;
            if committed.replace("\r\n", "\n") != *fresh {
                problems.push(format!("{} is not what a build makes", project.shown(path)));
            }
        }
    }
    for change in committed.census_changes(&built.resources) {
        problems.push(format!(
            "synchronising instructions are not the committed ones: {change}"
        ));
    }
    Ok(Comparison { problems, notes })
}

/// Compiles, edits and measures every target.
pub fn assemble(project: &Project, compiler: &Compiler, ptxas: &Ptxas) -> Result<Built, String> {
    if project.bounds.is_empty() {
        return Err("the launch bounds table has no kernels: there is nothing to build".to_owned());
    }
    let sources = digest::sources(&project.device)?;
    let mut built = Built {
        files: Vec::new(),
        resources: Resources::new(&ptxas.version),
        problems: Vec::new(),
    };
    for target in project.targets() {
        let name = target.name();
        let text = compile(project, compiler, target)?;
        let text = with_launch_bounds(&tidy(&text), project.bounds, target)?;
        let text = with_aligned_maps(&text)?;
        let (version, report) = ptxas.lowest_version(&text, name)?;
        let text = with_version(&text, version)?;
        built
            .problems
            .extend(lint::problems(name, &report, project.bounds));
        built.resources.add(name, &report, census(&text)?);
        let header = Header {
            compiler: compiler.version.clone(),
            flags: flags(target),
            sources: sources.clone(),
        };
        built
            .files
            .push((project.ptx_file(target), header.with_body(&text)));
    }
    if digest::sources(&project.device)? != sources {
        return Err("the sources changed during the build; nothing was written".to_owned());
    }
    built
        .files
        .push((project.resources_file(), built.resources.render()));
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptx::launch_bounds::Target;
    use crate::ptx::ptxas::Report;
    use crate::ptx::testing::{Scratch, one_kernel_project};

    /// What a build makes of a kernel with this body.
    fn built(project: &Project, body: &str, compiler: &str, ptxas: &str) -> Built {
        let text = format!(".version 7.0\n.entry k()\n{{\n{body}\n}}\n");
        let header = Header {
            compiler: compiler.to_owned(),
            flags: String::new(),
            sources: String::new(),
        };
        let mut resources = Resources::new(ptxas);
        resources.add("sm_80", &Report::default(), census(&text).unwrap());
        Built {
            files: vec![
                (project.ptx_file(Target::Sm80), header.with_body(&text)),
                (project.resources_file(), resources.render()),
            ],
            resources,
            problems: Vec::new(),
        }
    }

    #[test]
    fn the_same_build_agrees_with_what_it_wrote() {
        let scratch = Scratch::new("verify");
        let project = one_kernel_project(&scratch);
        let built = built(&project, "bar.sync 0; ret;", "rustc 1", "13");
        assert!(
            compare(&project, &built, "rustc 1").is_err(),
            "not yet written"
        );
        write_all(&built.files).unwrap();
        let comparison = compare(&project, &built, "rustc 1").unwrap();
        assert_eq!(comparison.problems, [""; 0]);
        assert_eq!(comparison.notes, [""; 0]);
    }

    #[test]
    fn the_same_compiler_must_make_the_same_bytes() {
        let scratch = Scratch::new("verify");
        let project = one_kernel_project(&scratch);
        write_all(&built(&project, "bar.sync 0; ret;", "rustc 1", "13").files).unwrap();
        // Another ptxas measures otherwise, which says nothing about the PTX.
        for ptxas in ["13", "14"] {
            let other = built(&project, "bar.sync 0; exit;", "rustc 1", ptxas);
            let problems = compare(&project, &other, "rustc 1").unwrap().problems;
            assert_eq!(problems, ["device/ptx/sm_80.ptx is not what a build makes"]);
        }
    }

    #[test]
    fn another_compiler_may_make_other_bytes_but_not_other_barriers() {
        let scratch = Scratch::new("verify");
        let project = one_kernel_project(&scratch);
        write_all(&built(&project, "bar.sync 0; ret;", "rustc 1", "13").files).unwrap();
        let reordered = built(&project, "exit; bar.sync 0;", "rustc 2", "13");
        let comparison = compare(&project, &reordered, "rustc 2").unwrap();
        assert_eq!(comparison.problems, [""; 0]);
        assert_eq!(comparison.notes.len(), 1);
        let cloned = built(&project, "bar.sync 0; bar.sync 0;", "rustc 2", "13");
        let problems = compare(&project, &cloned, "rustc 2").unwrap().problems;
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].contains("sm_80 k bar.sync: 1 -> 2"),
            "{problems:?}"
        );
    }
}
