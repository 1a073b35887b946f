//! What is told of a definition: each thing once, in a few words, and no more of it than somebody would read. The bounds hold while it is
//! gathered, since whoever wrote the definition says how much there is.

use std::collections::BTreeSet;

/// Most warnings of one definition, and the longest of them, characters: they stand in an event.
pub(super) const WARNINGS_MAX: usize = 64;
pub(super) const WARNING_CHARACTERS_MAX: usize = 240;

/// Longest part of the path of an element that is told, characters.
const NAME_CHARACTERS_MAX: usize = 64;

/// What is others than it was, in a sentence each.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings {
    told: Vec<String>,
    known: BTreeSet<String>,
    /// Those that are not told.
    more: usize,
}

impl Warnings {
    pub fn push(&mut self, text: impl AsRef<str>) {
        let text = shortened(text.as_ref(), WARNING_CHARACTERS_MAX);
        if self.known.contains(&text) {
            return;
        }
        if self.told.len() >= WARNINGS_MAX {
            self.more += 1;
            return;
        }
        self.known.insert(text.clone());
        self.told.push(text);
    }

    /// What is at that path was left out.
    pub fn left_out(&mut self, path: &str) {
        self.push(format!("`{path}` was left out of the new instance: it is not known to be harmless to the host"));
    }

    pub fn into_told(mut self) -> Vec<String> {
        if self.more > 0 {
            self.told.push(format!("{} more things in the definition were changed or left out", self.more));
        }
        self.told
    }
}

/// The beginning of a text, in one line.
pub(super) fn shortened(text: &str, characters_max: usize) -> String {
    text.chars().take(characters_max).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The path of what is in an element.
pub(super) fn path_in(path: &str, name: &str) -> String {
    let name = shortened(name, NAME_CHARACTERS_MAX);
    if path.is_empty() { name } else { format!("{path}/{name}") }
}
