//! The shape of the house, checked: who may use whom, who alone may name an outside thing, what may not be async, how long
//! a file may be, and words that have no place in the tree.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom. A module may always use itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &["failure"]),
    ("failure", &["model"]),
    ("message", &["model", "failure"]),
    ("saga", &["model", "failure"]),
    ("broker", &["model", "failure", "message"]),
    ("journal", &["model", "failure", "message", "saga"]),
    ("mover", &["model", "failure"]),
    ("host", &["model", "failure", "mover"]),
    ("job", &["model", "failure", "saga", "host", "mover"]),
    ("worker", &["model", "failure", "message", "saga", "broker", "journal", "host", "job", "mover", "shutdown"]),
    ("config", &[]),
    ("telemetry", &[]),
    ("shutdown", &[]),
];

/// Words that only these places may use, and why it matters there.
const ALONE: &[(&str, &[&str])] = &[
    ("lapin::", &["src/broker/"]),
    ("virt::", &["src/host/"]),
    ("virt_sys::", &["src/host/"]),
    ("Command::new", &["src/host/", "src/mover/"]),
    ("nix::mount", &["src/host/", "src/mover/"]),
    ("unsafe ", &["src/host/", "src/mover/"]),
    ("sqlx::", &["src/journal/"]),
];

/// Lines of a source file, tests at its end included.
const FILE_LINES_MAX: usize = 500;

#[test]
fn every_module_uses_only_what_the_layer_table_allows() {
    let layers: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let mut offences = Vec::new();
    for (path, text) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let Some(allowed) = layers.get(module.as_str()) else { continue };
        for (number, line) in code_lines(&text) {
            for used in used_modules(line) {
                if used != module && !allowed.contains(&used.as_str()) {
                    offences.push(format!("{}:{number}: `{module}` may not use `{used}`", path.display()));
                }
                if module == "host" && used == "mover" && !line.contains("mover::protocol") {
                    offences.push(format!("{}:{number}: others see only the mover's protocol", path.display()));
                }
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn every_folder_has_a_place_in_the_layer_table() {
    let known: Vec<_> = LAYERS.iter().map(|(module, _)| *module).chain(["cli", "main", "lib"]).collect();
    for (path, _) in sources() {
        let module = module_of(&path).unwrap_or_else(|| path.file_stem().unwrap().to_string_lossy().into_owned());
        assert!(known.contains(&module.as_str()), "{} belongs to no layer", path.display());
    }
}

#[test]
fn outside_things_are_named_in_one_place_only() {
    let mut offences = Vec::new();
    for (path, text) in sources() {
        for (number, line) in code_lines(&text) {
            for (word, places) in ALONE {
                let here = path.to_string_lossy().replace('\\', "/");
                let allowed = places.iter().any(|place| here.starts_with(place));
                if !allowed && names(line, word) {
                    offences.push(format!("{}:{number}: `{word}` belongs to {places:?}", path.display()));
                }
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn decisions_are_not_async() {
    let pure = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        path.starts_with("src/model") || ["plan.rs", "settle.rs", "admit.rs", "record.rs"].contains(&name.as_ref())
    };
    for (path, text) in sources().into_iter().filter(|(path, _)| pure(path)) {
        for (number, line) in code_lines(&text) {
            let offence = line.contains("async ") || line.contains(".await") || line.contains("std::fs");
            assert!(!offence, "{}:{number}: a decision does no I/O and does not wait", path.display());
        }
    }
}

#[test]
fn no_file_is_too_long_to_hold_one_thing() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{} has {lines} lines", path.display());
    }
}

#[test]
fn every_source_file_says_first_what_it_is() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} has no module documentation", path.display());
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 10, "the sources were not found");
    found
}

/// `src/host/x.rs` and `src/host.rs` belong to `host`; `src/main.rs` and `src/lib.rs` to none.
fn module_of(path: &Path) -> Option<String> {
    let mut parts = path.strip_prefix("src").unwrap().components();
    let first = parts.next()?.as_os_str().to_string_lossy().into_owned();
    match first.strip_suffix(".rs") {
        Some("main" | "lib") => None,
        Some(module) => Some(module.to_owned()),
        None => Some(first),
    }
}

/// Lines that are code: no comments, nothing from the file's own tests on.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, line))
}

fn used_modules(line: &str) -> Vec<String> {
    line.match_indices("crate::")
        .map(|(at, _)| {
            let rest = &line[at + "crate::".len()..];
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether the word stands in the line as a word of its own.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}
