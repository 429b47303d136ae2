//! `cargo xtask ptx build`: the device crate to the shipped PTX files and the table of their resources.

use std::fs;
use std::path::PathBuf;

use super::Project;
use super::compile::{compile, flags};
use super::digest;
use super::edit::{tidy, with_launch_bounds, with_version};
use super::files::write_all;
use super::header::Header;
use super::lint;
use super::ptxas::{self, Ptxas};
use super::resources::Resources;
use super::rustc::{self, Compiler};

/// What a build makes, before anything is written.
pub struct Built {
    pub files: Vec<(PathBuf, String)>,
    pub resources: Resources,
    /// What `lint` will say about spills, local memory and warnings.
    pub problems: Vec<String>,
}

/// Builds and writes, and says what changed in the census: it should change only where the source did.
pub fn build(project: &Project) -> Result<(), String> {
    let (compiler, ptxas) = tools()?;
    let built = assemble(project, &compiler, &ptxas)?;
    if let Ok(before) = committed_resources(project) {
        for change in before.census_changes(&built.resources) {
            println!("synchronising instructions: {change}");
        }
    }
    write_all(&built.files)?;
    for (path, contents) in &built.files {
        println!("wrote {} ({} bytes)", path.display(), contents.len());
    }
    for problem in &built.problems {
        eprintln!("lint will fail: {problem}");
    }
    Ok(())
}

/// Builds, writes nothing, and fails where the committed files are not what a build makes.
///
/// Another compiler or ptxas than the one that made the committed files may make other bytes; then the
/// fresh PTX must still pass `lint` and hold the synchronising instructions of the committed table.
pub fn verify(project: &Project) -> Result<(), String> {
    let (compiler, ptxas) = tools()?;
    let built = assemble(project, &compiler, &ptxas)?;
    let committed = committed_resources(project)?;
    let mut problems = built.problems;
    let mut same_compiler = true;
    for target in project.targets() {
        let header = project.shipped(target)?.0;
        if header.compiler != compiler.version {
            same_compiler = false;
            println!(
                "{} was made by {}, this is {}: comparing instructions, not bytes",
                target.name(),
                header.compiler,
                compiler.version
            );
        }
    }
    if !same_compiler || committed.ptxas != ptxas.version {
        problems.extend(committed.census_changes(&built.resources));
    }
    for (path, contents) in &built.files {
        let is_ptx = path.extension().is_some_and(|extension| extension == "ptx");
        let comparable = same_compiler && (is_ptx || committed.ptxas == ptxas.version);
        let old = fs::read_to_string(path).unwrap_or_default();
        if comparable && old.replace("\r\n", "\n") != *contents {
            problems.push(format!("{} is not what a build makes", path.display()));
        }
    }
    lint::fail_on(&problems)
}

fn tools() -> Result<(Compiler, Ptxas), String> {
    let compiler =
        Compiler::find().map_err(|why| format!("{why}\ninstall one:\n    {}", rustc::REMEDY))?;
    let ptxas =
        Ptxas::find().map_err(|why| format!("{why}\ninstall it:\n    {}", ptxas::REMEDY))?;
    Ok((compiler, ptxas))
}

fn committed_resources(project: &Project) -> Result<Resources, String> {
    let path = project.resources_file();
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Resources::parse(&text).map_err(|why| format!("{}: {why}", path.display()))
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
        let (version, report) = ptxas.lowest_version(&text, name)?;
        let text = with_version(&text, version)?;
        built
            .problems
            .extend(lint::problems(name, &report, project.bounds));
        built
            .resources
            .add(name, &report, super::census::census(&text)?);
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
