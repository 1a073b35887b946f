//! Writing of a definition anew, element by element, so that no other reader finds in it what this one did not see.

use std::borrow::Cow;
use std::collections::BTreeMap;

use roxmltree::Node;

use super::edits::escaped;
use super::plain::{DEFINITION_BYTES_MAX, refused, shown};
use crate::failure::Failure;

/// Deepest nesting of elements; libvirt's own definitions have 8.
const DEPTH_MAX: usize = 32;

/// Most attributes of one element: whoever reads them compares each with all the others.
pub(super) const ATTRIBUTES_MAX: usize = 64;

/// Longest text that is written, bytes: quotes and prefixes make it longer than what it is written from.
pub(super) const WRITTEN_BYTES_MAX: usize = 2 * DEFINITION_BYTES_MAX;

/// What is written.
#[derive(Debug, Default)]
pub(super) struct Copy(String);

impl Copy {
    /// For a text of about that length.
    pub fn of(text: &str) -> Self {
        Self(String::with_capacity(text.len()))
    }

    /// Before each element. `definition_refused`: it is nested too deep, has too many attributes, or too much is written already.
    pub fn may_go_on(&self, node: Node<'_, '_>, depth: usize) -> Result<(), Failure> {
        if depth >= DEPTH_MAX {
            return Err(refused(format!("it is nested deeper than {DEPTH_MAX} elements")));
        }
        let attributes = node.attributes().len();
        if attributes > ATTRIBUTES_MAX {
            return Err(refused(format!("`{}` has {attributes} attributes", shown(node.tag_name().name()))));
        }
        self.must_be_short()
    }

    fn must_be_short(&self) -> Result<(), Failure> {
        match self.0.len() <= WRITTEN_BYTES_MAX {
            true => Ok(()),
            false => Err(refused(format!("written anew it has more than {WRITTEN_BYTES_MAX} bytes"))),
        }
    }

    /// Its attributes follow, then [`Copy::content`].
    pub fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
    }

    pub fn attribute(&mut self, name: &str, value: &str) {
        self.0.push_str(&format!(" {name}='{}'", quoted(value)));
    }

    pub fn content(&mut self) {
        self.0.push('>');
    }

    pub fn text(&mut self, text: &str) {
        self.0.push_str(&escaped(text));
    }

    /// Closes the element that was opened last, in short where nothing is in it.
    pub fn close(&mut self, name: &str) {
        let nothing_in_it = self.0.ends_with('>') && {
            let opened = self.0.rfind('<').and_then(|at| self.0.get(at + 1..));
            opened.is_some_and(|opened| opened.starts_with(name) && !opened.starts_with('/') && !opened.ends_with("/>"))
        };
        if nothing_in_it {
            self.0.pop();
            self.0.push_str("/>");
        } else {
            self.0.push_str(&format!("</{name}>"));
        }
    }

    /// Somebody else's, of whatever namespace, with the prefixes that it has.
    pub fn others(&mut self, node: Node<'_, '_>, depth: usize) -> Result<(), Failure> {
        self.others_in(node, depth, &BTreeMap::new())
    }

    /// `above` are the prefixes that what it stands in has declared: once for all that is in that.
    fn others_in<'a>(
        &mut self,
        node: Node<'a, '_>,
        depth: usize,
        above: &BTreeMap<String, &'a str>,
    ) -> Result<(), Failure> {
        self.may_go_on(node, depth)?;
        let mut prefixes = Prefixes { node, given: BTreeMap::new() };
        let name = prefixes.named(node.tag_name().name(), node.tag_name().namespace());
        let attributes: Vec<_> = node
            .attributes()
            .map(|attribute| (prefixes.named(attribute.name(), attribute.namespace()), attribute.value()))
            .collect();
        self.open(&name);
        let mut declared = Cow::Borrowed(above);
        for (prefix, uri) in prefixes.given {
            if above.get(&prefix) != Some(&uri) {
                self.attribute(&format!("xmlns:{prefix}"), uri);
                declared.to_mut().insert(prefix, uri);
            }
        }
        attributes.iter().for_each(|(name, value)| self.attribute(name, value));
        self.content();
        for child in node.children() {
            match child.is_element() {
                true => self.others_in(child, depth + 1, &declared)?,
                false if child.is_text() => self.text(child.text().unwrap_or_default()),
                false => {}
            }
        }
        self.close(&name);
        Ok(())
    }

    /// `definition_refused`: it is too long.
    pub fn done(self) -> Result<String, Failure> {
        self.must_be_short().map(|()| self.0)
    }
}

/// The prefixes of one element and its attributes, by which each is of the namespace that it was of.
struct Prefixes<'a, 'input> {
    node: Node<'a, 'input>,
    given: BTreeMap<String, &'a str>,
}

impl<'a> Prefixes<'a, '_> {
    fn named(&mut self, name: &str, namespace: Option<&'a str>) -> String {
        let Some(uri) = namespace else { return name.to_owned() };
        let prefix = match self.node.lookup_prefix(uri) {
            Some("xml") => return format!("xml:{name}"),
            Some(prefix) if !prefix.is_empty() && self.given.get(prefix).is_none_or(|given| *given == uri) => {
                prefix.to_owned()
            }
            _ => self.free(uri),
        };
        let named = format!("{prefix}:{name}");
        self.given.insert(prefix, uri);
        named
    }

    /// One that means nothing else here.
    fn free(&self, uri: &str) -> String {
        let is_free = |prefix: &String| {
            let is_it = |known: &str| known == uri;
            self.given.get(prefix).is_none_or(|given| is_it(given))
                && self.node.namespaces().all(|known| known.name() != Some(prefix.as_str()) || is_it(known.uri()))
        };
        let names = std::iter::once("own".to_owned()).chain((2_usize..).map(|number| format!("own{number}")));
        // There are fewer prefixes in a document than numbers.
        names.into_iter().find(is_free).unwrap_or_default()
    }
}

/// As it is read again between quotes: a reader makes spaces of what divides lines.
fn quoted(value: &str) -> String {
    escaped(value).replace('\n', "&#10;").replace('\t', "&#9;")
}
