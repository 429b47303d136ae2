//! The modules of a crate as the compiler sees them: followed from the root by `mod`, without what is compiled for tests alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, UseTree, Visibility};

/// A module by its number in [`Modules`].
pub type ModuleId = usize;

/// A path as written, such as `super::tile::mask`, and its line.
#[derive(Clone, Debug)]
pub struct Written {
    pub segments: Vec<String>,
    pub line: usize,
}

/// What a `use` binds.
#[derive(Debug)]
pub struct Import {
    /// The name in the module; `None` for a glob.
    pub name: Option<String>,
    pub path: Written,
    /// Other modules can reach it through this one.
    pub is_reexport: bool,
}

/// One module: a file, or a block of one.
#[derive(Debug)]
pub struct Module {
    pub file: PathBuf,
    pub parent: Option<ModuleId>,
    pub root: ModuleId,
    pub children: BTreeMap<String, ModuleId>,
    /// Names of the items that are written out.
    pub items: Vec<String>,
    /// Every identifier in the macros that are called where items stand: what they define is among these.
    pub in_macros: Vec<String>,
    pub imports: Vec<Import>,
    /// Every path outside `use`.
    pub paths: Vec<Written>,
}

/// The modules of all crates.
#[derive(Debug, Default)]
pub struct Modules {
    pub all: Vec<Module>,
    /// The root module by the crate's name.
    pub crates: BTreeMap<String, ModuleId>,
    /// What `#[macro_export]` puts into a root module, and the module that defines it.
    pub exported: BTreeMap<(ModuleId, String), ModuleId>,
}

/// Gives the text of a file, or `None` where there is none.
pub type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Modules {
    /// Adds the crate with this root file.
    ///
    /// # Errors
    /// A file that is missing or is not Rust.
    pub fn add_crate(&mut self, name: &str, root: &Path, read: Read<'_>) -> Result<(), String> {
        let id = self.all.len();
        self.crates.insert(name.to_owned(), id);
        let folder = root.parent().unwrap_or(Path::new("")).to_owned();
        self.add_file(root, None, id, &folder, read)?;
        Ok(())
    }

    fn add_file(
        &mut self,
        file: &Path,
        parent: Option<ModuleId>,
        root: ModuleId,
        folder: &Path,
        read: Read<'_>,
    ) -> Result<ModuleId, String> {
        let text = read(file).ok_or_else(|| format!("{}: cannot be read", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|error| {
            let line = error.span().start().line;
            format!("{}:{line}: {error}", file.display())
        })?;
        self.add_module(&parsed.items, file, parent, root, folder, read)
    }

    /// `folder` is where the files of the module's children lie.
    fn add_module(
        &mut self,
        items: &[Item],
        file: &Path,
        parent: Option<ModuleId>,
        root: ModuleId,
        folder: &Path,
        read: Read<'_>,
    ) -> Result<ModuleId, String> {
        let id = self.all.len();
        self.all.push(Module {
            file: file.to_owned(),
            parent,
            root,
            children: BTreeMap::new(),
            items: Vec::new(),
            in_macros: Vec::new(),
            imports: Vec::new(),
            paths: Vec::new(),
        });
        let mut collector = Collector::default();
        for item in items
            .iter()
            .filter(|item| !only_for_tests(attributes(item)))
        {
            let Item::Mod(module) = item else {
                if let Item::Macro(called) = item
                    && let Some(name) = &called.ident
                    && called
                        .attrs
                        .iter()
                        .any(|a| a.path().is_ident("macro_export"))
                {
                    self.exported.insert((root, name.to_string()), id);
                }
                if let Some(name) = name_of(item) {
                    self.all[id].items.push(name);
                }
                collector.visit_item(item);
                continue;
            };
            let name = module.ident.to_string();
            let inner = folder.join(&name);
            let child = match &module.content {
                Some((_, items)) => self.add_module(items, file, Some(id), root, &inner, read)?,
                None => {
                    let child_file = match path_attribute(&module.attrs) {
                        Some(path) => normal(&file.parent().unwrap_or(Path::new("")).join(path)),
                        None => [folder.join(format!("{name}.rs")), inner.join("mod.rs")]
                            .into_iter()
                            .find(|file| read(file).is_some())
                            .ok_or_else(|| {
                                format!("{}: `mod {name};` has no file", file.display())
                            })?,
                    };
                    self.add_file(&child_file, Some(id), root, &inner, read)?
                }
            };
            self.all[id].children.insert(name, child);
        }
        let module = &mut self.all[id];
        module.imports.extend(collector.imports);
        module.paths = collector.paths;
        module.in_macros = collector.in_macros;
        Ok(id)
    }
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part.as_os_str() == ".." {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        let syn::Expr::Lit(literal) = &pair.value else {
            return None;
        };
        match &literal.lit {
            syn::Lit::Str(text) if pair.path.is_ident("path") => Some(text.value()),
            _ => None,
        }
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}

/// Whether what has these attributes is compiled for tests alone.
fn only_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<Meta>()
                .is_ok_and(|condition| needs_test(&condition))
    })
}

/// Whether a `cfg` cannot hold unless `test` does.
fn needs_test(condition: &Meta) -> bool {
    let parts = |list: &syn::MetaList| {
        list.parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated)
            .map(|parts| parts.into_iter().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    match condition {
        Meta::Path(path) => path.is_ident("test") || path.is_ident("doctest"),
        Meta::List(list) if list.path.is_ident("all") => parts(list).iter().any(needs_test),
        Meta::List(list) if list.path.is_ident("any") => {
            let parts = parts(list);
            !parts.is_empty() && parts.iter().all(needs_test)
        }
        _ => false,
    }
}

/// Collects imports and paths of a module's own items.
#[derive(Default)]
struct Collector {
    imports: Vec<Import>,
    paths: Vec<Written>,
    in_macros: Vec<String>,
}

impl Collector {
    fn import(&mut self, tree: &UseTree, before: &[String], is_reexport: bool) {
        let mut path = before.to_vec();
        match tree {
            UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.import(&part.tree, &path, is_reexport);
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(tree, before, is_reexport);
                }
            }
            UseTree::Name(_) | UseTree::Rename(_) | UseTree::Glob(_) => {
                let (last, name, span) = match tree {
                    UseTree::Rename(r) => {
                        (Some(&r.ident), Some(r.rename.to_string()), r.ident.span())
                    }
                    UseTree::Name(n) => (Some(&n.ident), Some(n.ident.to_string()), n.ident.span()),
                    UseTree::Glob(g) => (None, None, g.star_token.spans[0]),
                    _ => unreachable!("matched above"),
                };
                path.extend(last.map(ToString::to_string).filter(|last| last != "self"));
                // `use a::b::{self}` binds `b`.
                let name = name.map(|name| match name.as_str() {
                    "self" => path.last().cloned().unwrap_or_default(),
                    _ => name,
                });
                self.imports.push(Import {
                    name,
                    path: Written {
                        segments: path,
                        line: span.start().line,
                    },
                    is_reexport,
                });
            }
        }
    }

    /// The paths in the tokens of a macro: `a::b`, `$crate::a`. One name alone may be anything, and is left out.
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_punct = |at: usize, c: char| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == c);
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let after_path = at >= 2 && is_punct(at - 1, ':') && is_punct(at - 2, ':');
                    let mut segments = vec![first.to_string()];
                    while is_punct(at + 1, ':') && is_punct(at + 2, ':') {
                        let Some(TokenTree::Ident(next)) = tokens.get(at + 3) else {
                            break;
                        };
                        segments.push(next.to_string());
                        at += 3;
                    }
                    if is_punct(at + 1, ':') && is_punct(at + 2, ':') && is_punct(at + 3, '$') {
                        segments.push("$".to_owned());
                    }
                    if segments.len() > 1 && !after_path {
                        let line = first.span().start().line;
                        self.paths.push(Written { segments, line });
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    fn names(&mut self, tokens: TokenStream) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.names(group.stream()),
                TokenTree::Ident(name) => self.in_macros.push(name.to_string()),
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        if only_for_tests(attributes(item)) {
            return;
        }
        if let Item::Macro(called) = item
            && called.ident.is_none()
        {
            self.names(called.mac.tokens.clone());
        }
        visit::visit_item(self, item);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_reexport = !matches!(item.vis, Visibility::Inherited);
        self.import(&item.tree, &[], is_reexport);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first() {
            self.paths.push(Written {
                segments: path.segments.iter().map(|s| s.ident.to_string()).collect(),
                line: first.ident.span().start().line,
            });
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        visit::visit_macro(self, called);
        self.tokens(called.tokens.clone());
    }

    // Attributes name no files of ours, and `pub(in a::b)` uses nothing.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// The lines of a file in which an identifier stands, comments and strings apart.
pub fn lines_with(text: &str, identifier: &str) -> Vec<usize> {
    fn search(tokens: TokenStream, identifier: &str, lines: &mut Vec<usize>) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => search(group.stream(), identifier, lines),
                TokenTree::Ident(name) if name == identifier => {
                    lines.push(name.span().start().line)
                }
                _ => {}
            }
        }
    }
    let mut lines = Vec::new();
    if let Ok(tokens) = text.parse() {
        search(tokens, identifier, &mut lines);
    }
    lines.dedup();
    lines
}
