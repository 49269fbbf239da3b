//! A parsed source file: the paths that it mentions, and the types that it defines.

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// One file, read and parsed.
pub(crate) struct Source {
    /// Relative to the project's folder.
    pub(crate) path: String,
    /// `src/serve/hello/wire.rs` is `["serve", "hello", "wire"]`; `src/lib.rs` is empty, `src/main.rs` is `["main"]`.
    pub(crate) module: Vec<String>,
    /// Modules written out inside this file.
    pub(crate) inline_modules: Vec<Vec<String>>,
    /// Modules in files of their own that are compiled only for tests (`#[cfg(test)] mod tests;`).
    pub(crate) test_modules: Vec<Vec<String>>,
    pub(crate) mentions: Vec<Mention>,
    /// Structs, enums, unions, traits and type aliases, except private ones.
    pub(crate) types: Vec<TypeDefinition>,
}

/// A type that other modules can name.
pub(crate) struct TypeDefinition {
    pub(crate) name: String,
    /// The module that defines it, inline ones included.
    pub(crate) module: Vec<String>,
    pub(crate) line: usize,
    pub(crate) in_tests: bool,
}

/// A path in the code: in a `use`, an expression, a type, a macro's arguments.
pub(crate) struct Mention {
    /// The module that contains it, inline ones included.
    pub(crate) from: Vec<String>,
    /// As written, with groups expanded: `use a::{b, c::d}` is two.
    pub(crate) path: Vec<String>,
    /// The name that a `use` binds.
    pub(crate) binds: Option<String>,
    pub(crate) line: usize,
    pub(crate) in_tests: bool,
}

impl Source {
    pub(crate) fn read(root: &Path, path: &str) -> Self {
        let text = fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        Self::parse(path, &text)
    }

    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let module = module_of(path);
        let mut reader = Reader { module: module.clone(), ..Reader::default() };
        reader.visit_file(&file);
        Self {
            path: path.to_owned(),
            module,
            inline_modules: reader.inline_modules,
            test_modules: reader.test_modules,
            mentions: reader.mentions,
            types: reader.types,
        }
    }
}

pub(crate) fn files(root: &Path, folder: &str) -> Vec<String> {
    let at = root.join(folder);
    if at.is_symlink() || !at.exists() {
        return Vec::new();
    } else if at.is_file() {
        return vec![folder.to_owned()];
    }
    let entries = fs::read_dir(&at).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut names: Vec<String> = entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.iter().flat_map(|name| files(root, &format!("{folder}/{name}"))).collect()
}

fn module_of(path: &str) -> Vec<String> {
    let path = path.strip_prefix("src/").unwrap_or(path);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let mut module: Vec<String> = path.split('/').map(ToOwned::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || path == "lib" {
        module.pop();
    }
    module
}

#[derive(Default)]
struct Reader {
    /// The current module.
    module: Vec<String>,
    in_tests: bool,
    inline_modules: Vec<Vec<String>>,
    test_modules: Vec<Vec<String>>,
    mentions: Vec<Mention>,
    types: Vec<TypeDefinition>,
}

impl Reader {
    fn mention(&mut self, path: Vec<String>, binds: Option<String>, line: usize) {
        self.mentions.push(Mention { from: self.module.clone(), path, binds, line, in_tests: self.in_tests });
    }

    fn use_tree(&mut self, tree: &syn::UseTree, prefix: &[String]) {
        let with = |ident: &Ident| [prefix, &[ident.to_string()]].concat();
        let line = |ident: &Ident| ident.span().start().line;
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(item, prefix)),
            syn::UseTree::Name(name) if name.ident == "self" => {
                self.mention(prefix.to_vec(), prefix.last().cloned(), line(&name.ident));
            }
            syn::UseTree::Name(name) => {
                self.mention(with(&name.ident), Some(name.ident.to_string()), line(&name.ident));
            }
            syn::UseTree::Rename(rename) => {
                let path = if rename.ident == "self" { prefix.to_vec() } else { with(&rename.ident) };
                self.mention(path, Some(rename.rename.to_string()), line(&rename.ident));
            }
            syn::UseTree::Glob(glob) => {
                self.mention(prefix.to_vec(), None, glob.star_token.spans[0].start().line);
            }
        }
    }

    /// The arguments of a macro are tokens: any `a::b::c` in them counts as a path.
    fn tokens(&mut self, tokens: TokenStream, prefix: &[String]) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Group(group) => self.tokens(group.stream(), &[]),
                TokenTree::Ident(ident) => {
                    let mut path = [prefix, &[ident.to_string()]].concat();
                    let mut group = None;
                    while group.is_none() && double_colon(&mut tokens) {
                        match tokens.peek() {
                            Some(TokenTree::Ident(next)) => path.push(next.to_string()),
                            Some(TokenTree::Group(inner)) if inner.delimiter() == Delimiter::Brace => {
                                group = Some(inner.stream());
                            }
                            _ => break,
                        }
                        tokens.next();
                    }
                    match group {
                        Some(group) => self.tokens(group, &path),
                        None => self.mention(path, None, ident.span().start().line),
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    fn define(&mut self, name: &Ident, visibility: &syn::Visibility, attributes: &[syn::Attribute]) {
        if !matches!(visibility, syn::Visibility::Inherited) {
            self.types.push(TypeDefinition {
                name: name.to_string(),
                module: self.module.clone(),
                line: name.span().start().line,
                in_tests: self.in_tests || is_cfg_test(attributes),
            });
        }
    }
}

/// Consumes `::` if it is next. A single `:` is consumed too, because no path continues after it.
fn double_colon(tokens: &mut std::iter::Peekable<impl Iterator<Item = TokenTree>>) -> bool {
    let mut colon = || tokens.next_if(|token| matches!(token, TokenTree::Punct(it) if it.as_char() == ':')).is_some();
    colon() && colon()
}

fn is_cfg_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| {
                let condition = list.tokens.to_string();
                condition == "test" || condition.replace(' ', "").starts_with("all(test,")
            })
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let outer = (self.module.clone(), self.in_tests);
        self.module.push(item.ident.to_string());
        self.in_tests |= is_cfg_test(&item.attrs);
        if item.content.is_some() {
            self.inline_modules.push(self.module.clone());
        } else if self.in_tests {
            self.test_modules.push(self.module.clone());
        }
        visit::visit_item_mod(self, item);
        (self.module, self.in_tests) = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let line = path.segments.first().map_or(0, |first| first.ident.span().start().line);
        self.mention(path.segments.iter().map(|segment| segment.ident.to_string()).collect(), None, line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, invocation: &'ast syn::Macro) {
        self.tokens(invocation.tokens.clone(), &[]);
        visit::visit_macro(self, invocation);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), &[]);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.define(&item.ident, &item.vis, &item.attrs);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.define(&item.ident, &item.vis, &item.attrs);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.define(&item.ident, &item.vis, &item.attrs);
        visit::visit_item_union(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.define(&item.ident, &item.vis, &item.attrs);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.define(&item.ident, &item.vis, &item.attrs);
        visit::visit_item_type(self, item);
    }
}
