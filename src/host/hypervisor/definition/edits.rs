//! Changes to a text of XML at places that its parser has found. What is not named stays as it is, to the byte.

use std::ops::Range;

use roxmltree::{Attribute, Document, Node, ParsingOptions};

use crate::failure::{Code, Failure};

/// Longest definition that is looked at, bytes; libvirt's own limit for one string over its wire is 4 MiB.
const XML_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most elements and texts in one.
const XML_NODES_MAX: u32 = 200_000;

/// Reads a definition. `backup_damaged`: it is none.
pub(super) fn document(xml: &str) -> Result<Document<'_>, Failure> {
    let odd =
        |how: String| Failure::new(Code::BackupDamaged, "cannot read the definition of an instance").caused_by(how);
    if xml.len() > XML_BYTES_MAX {
        return Err(odd(format!("it has {} bytes", xml.len())));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: XML_NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(xml, options).map_err(|error| odd(error.to_string()))?;
    match document.root_element().tag_name().name() == "domain" {
        true => Ok(document),
        false => Err(odd("it is not of a domain".to_owned())),
    }
}

pub(super) fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| is(*child, name))
}

/// It is an element of that name, and of no namespace: by its name alone the parser would find those of any.
pub(super) fn is(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

/// The value of the attribute of that name, and of no namespace.
pub(super) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    attribute_node(node, name).map(|attribute| attribute.value())
}

fn attribute_node<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Attribute<'a, 'input>> {
    node.attributes().find(|attribute| attribute.namespace().is_none() && attribute.name() == name)
}

pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

pub(super) fn text_of<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

/// As it may stand in a text or between either kind of quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            // A reader would make a `\n` of it.
            '\r' => out.push_str("&#13;"),
            other => out.push(other),
        }
    }
    out
}

/// Changes to one text.
#[derive(Debug, Default)]
pub(super) struct Edits(Vec<(Range<usize>, String)>);

impl Edits {
    /// Another text in the place of an element.
    pub fn replace(&mut self, node: Node<'_, '_>, xml: impl Into<String>) {
        self.0.push((node.range(), xml.into()));
    }

    pub fn remove(&mut self, node: Node<'_, '_>) {
        self.replace(node, "");
    }

    pub fn remove_all<'a, 'input: 'a>(&mut self, nodes: impl Iterator<Item = Node<'a, 'input>>) {
        nodes.for_each(|node| self.remove(node));
    }

    /// A first child of an element.
    pub fn insert_into(&mut self, node: Node<'_, '_>, xml: &str) {
        let range = node.range();
        let written = node.document().input_text().get(range.clone()).unwrap_or_default();
        let (at, xml) = match (node.first_child(), written.strip_suffix("/>")) {
            (Some(first), _) => {
                let start = first.range().start;
                (start..start, xml.to_owned())
            }
            (None, Some(opened)) => {
                let name = node.tag_name().name();
                (range.start + opened.len()..range.end, format!(">{xml}</{name}>"))
            }
            (None, None) => {
                let closes = range.start + written.rfind("</").unwrap_or(written.len());
                (closes..closes, xml.to_owned())
            }
        };
        self.0.push((at, xml));
    }

    /// An attribute of an element without a prefix.
    pub fn set(&mut self, node: Node<'_, '_>, name: &str, value: &str) {
        let written = format!("{name}='{}'", escaped(value));
        match attribute_node(node, name) {
            Some(attribute) => self.0.push((attribute.range(), written)),
            None => {
                let behind_name = node.range().start + 1 + node.tag_name().name().len();
                self.0.push((behind_name..behind_name, format!(" {written}")));
            }
        }
    }

    pub fn unset(&mut self, node: Node<'_, '_>, names: &[&str]) {
        let attributes = names.iter().filter_map(|name| attribute_node(node, name));
        self.0.extend(attributes.map(|attribute| (attribute.range(), String::new())));
    }

    /// The text with all changes. Those inside of something that is replaced are lost with it.
    pub fn apply(mut self, text: &str) -> Result<String, Failure> {
        let internal = || Failure::new(Code::Internal, "changes to a definition are in each other's way");
        // What is replaced before what is inside of it; what is inserted at its beginning before it.
        self.0.sort_by_key(|(range, _)| (range.start, !range.is_empty(), std::cmp::Reverse(range.end)));
        let (mut out, mut done) = (String::with_capacity(text.len() + 1024), 0);
        for (range, new) in &self.0 {
            if range.start < done {
                if range.end <= done {
                    continue;
                }
                return Err(internal());
            }
            out.push_str(text.get(done..range.start).ok_or_else(internal)?);
            out.push_str(new);
            done = range.end;
        }
        out.push_str(text.get(done..).ok_or_else(internal)?);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const XML: &str =
        "<domain a=\"1\"  b='&lt;'>\n  <x>old</x><y><z q='1'/></y><e g='1'/><h i=\"2\"></h>\u{e4}</domain>";

    #[test]
    fn what_is_not_named_stays_to_the_byte() {
        let document = document(XML).unwrap();
        let domain = document.root_element();
        let mut edits = Edits::default();
        edits.set(domain, "a", "it's");
        edits.set(domain, "c", "3");
        edits.replace(child(domain, "x").unwrap(), "<x>new</x>");
        let y = child(domain, "y").unwrap();
        edits.set(child(y, "z").unwrap(), "q", "lost");
        edits.remove(y);
        edits.insert_into(child(domain, "e").unwrap(), "<f/>");
        edits.insert_into(child(domain, "h").unwrap(), "<f/>");
        let changed = edits.apply(XML).unwrap();
        assert_eq!(
            changed,
            "<domain c='3' a='it&apos;s'  b='&lt;'>\n  <x>new</x><e g='1'><f/></e><h i=\"2\"><f/></h>\u{e4}</domain>"
        );
        assert_eq!(Edits::default().apply(XML).unwrap(), XML);
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        for xml in ["", "<network/>", "<domain>", "<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>"] {
            assert_eq!(document(xml).unwrap_err().code, Code::BackupDamaged, "{xml}");
        }
    }
}
