//! From paths as written to the files that define what they name.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::modules::{Import, ModuleId, Modules, Written};

/// File `from` uses something that file `to` defines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    pub from: PathBuf,
    pub to: PathBuf,
    pub line: usize,
    pub path: String,
}

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Named {
    Module(ModuleId),
    /// An item that the module's file defines.
    ItemOf(ModuleId),
}

/// How surely a module defines a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Written,
    /// By a macro, whose tokens hold the name.
    Macro,
}

/// The names that are being looked up, against imports that go round.
type Busy = BTreeSet<(ModuleId, String)>;

/// Every use of one file by another, the first line of each pair of files and path.
pub fn uses(modules: &Modules) -> Vec<Use> {
    let mut found: Vec<Use> = Vec::new();
    for (id, module) in modules.all.iter().enumerate() {
        let imports = module.imports.iter().flat_map(|import| {
            let defining = modules.defining(id, &import.path).into_iter();
            // A parent that hands on what its children define does not stand above them.
            let hands_on = move |&to: &ModuleId| import.is_reexport && modules.is_inside(to, id);
            let used = defining.filter(move |to| !hands_on(to));
            used.map(|to| (to, &import.path))
        });
        let paths = module.paths.iter().flat_map(|path| {
            let defining = modules.defining(id, path).into_iter();
            defining.map(move |to| (to, path))
        });
        for (to, path) in imports.chain(paths) {
            let to = &modules.all[to].file;
            if *to != module.file {
                found.push(Use {
                    from: module.file.clone(),
                    to: to.clone(),
                    line: path.line,
                    path: path.segments.join("::"),
                });
            }
        }
    }
    found.sort();
    found.dedup_by(|a, b| a.from == b.from && a.to == b.to && a.line == b.line);
    found
}

impl Modules {
    /// The modules that define what the path names: several where a `cfg` chooses. Empty for modules themselves and for what is
    /// not ours.
    fn defining(&self, from: ModuleId, path: &Written) -> Vec<ModuleId> {
        let named = self.resolve(from, &path.segments, &mut BTreeSet::new());
        let items = named.into_iter().filter_map(|named| match named {
            Named::ItemOf(module) => Some(module),
            Named::Module(_) => None,
        });
        items.collect()
    }

    /// Whether `inner` is a descendant of `outer`.
    fn is_inside(&self, inner: ModuleId, outer: ModuleId) -> bool {
        let mut at = self.all[inner].parent;
        while let Some(module) = at {
            if module == outer {
                return true;
            }
            at = self.all[module].parent;
        }
        false
    }

    fn resolve(&self, from: ModuleId, segments: &[String], busy: &mut Busy) -> BTreeSet<Named> {
        let Some((first, rest)) = segments.split_first() else {
            return BTreeSet::new();
        };
        let module = |id: Option<ModuleId>| id.map(Named::Module).into_iter().collect();
        let mut named: BTreeSet<Named> = match first.as_str() {
            "crate" => module(Some(self.all[from].root)),
            "self" => module(Some(from)),
            "super" => module(self.all[from].parent),
            name => {
                let found = self.lookup(from, name, busy);
                if found.is_empty() {
                    module(self.crates.get(name).copied())
                } else {
                    found
                }
            }
        };
        for segment in rest {
            // What has something inside it is a module, if there is one of that name, and not a function.
            if named.iter().any(|named| matches!(named, Named::Module(_))) {
                named.retain(|named| matches!(named, Named::Module(_)));
            }
            named = named
                .into_iter()
                .flat_map(|named| match named {
                    // Variants and associated items are defined where their type is.
                    Named::ItemOf(_) => BTreeSet::from([named]),
                    Named::Module(id) if segment == "super" => module(self.all[id].parent),
                    // A macro's variable: some item of the module.
                    Named::Module(id) if segment == "$" => BTreeSet::from([Named::ItemOf(id)]),
                    Named::Module(id) => self.lookup(id, segment, busy),
                })
                .collect();
        }
        named
    }

    /// What `name` stands for in a module.
    fn lookup(&self, module: ModuleId, name: &str, busy: &mut Busy) -> BTreeSet<Named> {
        let key = (module, name.to_owned());
        if !busy.insert(key.clone()) {
            return BTreeSet::new();
        }
        let mut found = self.lookup_source(module, name, Source::Written, busy);
        if found.is_empty() {
            found = self.lookup_source(module, name, Source::Macro, busy);
        }
        busy.remove(&key);
        found
    }

    fn lookup_source(
        &self,
        id: ModuleId,
        name: &str,
        source: Source,
        busy: &mut Busy,
    ) -> BTreeSet<Named> {
        let module = &self.all[id];
        let mut found = BTreeSet::new();
        if source == Source::Written {
            if module.items.iter().any(|item| item == name) {
                found.insert(Named::ItemOf(id));
            }
            found.extend(module.children.get(name).copied().map(Named::Module));
            let exported = self.exported.get(&(id, name.to_owned()));
            found.extend(exported.copied().map(Named::ItemOf));
            let named = |import: &&Import| import.name.as_deref() == Some(name);
            for import in module.imports.iter().filter(named) {
                found.extend(self.resolve(id, &import.path.segments, busy));
            }
        } else if module.in_macros.iter().any(|item| item == name) {
            found.insert(Named::ItemOf(id));
        }
        if !found.is_empty() {
            return found;
        }
        for import in module.imports.iter().filter(|import| import.name.is_none()) {
            for target in self.resolve(id, &import.path.segments, busy) {
                let Named::Module(target) = target else {
                    continue;
                };
                let key = (target, format!("*{name}"));
                if target != id && busy.insert(key.clone()) {
                    found.extend(self.lookup_source(target, name, source, busy));
                    busy.remove(&key);
                }
            }
        }
        found
    }
}
