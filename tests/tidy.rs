//! The shape of the house, checked: who may use whom, who alone may name an outside thing, what may not be async, how long
//! a file may be, and words that have no place in the tree.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who may use whom. A module may always use itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &["failure"]),
    ("failure", &["model"]),
    ("message", &["model", "failure"]),
    ("letters", &["model", "failure", "message", "broker"]),
    ("saga", &["model", "failure"]),
    ("broker", &["model", "failure", "message"]),
    ("journal", &["model", "failure", "message", "saga"]),
    ("mover", &["model", "failure"]),
    ("host", &["model", "failure", "mover"]),
    ("job", &["model", "failure", "saga", "host", "mover"]),
    (
        "worker",
        &["model", "failure", "message", "saga", "broker", "journal", "host", "job", "mover", "shutdown", "supervisor"],
    ),
    ("config", &[]),
    ("telemetry", &[]),
    ("shutdown", &[]),
    ("supervisor", &[]),
];

/// What others see of the mover: its protocol. Of lvm2, whose volumes are no files, the host's side has to ask as well.
const MOVER_SEEN: &[(&str, &str)] = &[("*", "mover::protocol"), ("host", "mover::lvm")];

/// Outside things that only these places may name, as paths.
const ALONE: &[(&str, &[&str])] = &[
    ("lapin", &["src/broker/"]),
    ("virt", &["src/host/"]),
    ("virt_sys", &["src/host/"]),
    ("nix::mount", &["src/host/", "src/mover/"]),
    ("sqlx", &["src/journal/"]),
    ("ureq", &["src/broker/"]),
];

/// Words that only these places may use.
const WORDS_ALONE: &[(&str, &[&str])] =
    &[("Command::new", &["src/host/", "src/mover/"]), ("unsafe ", &["src/host/", "src/mover/"])];

/// Words that have no place in the tree: work left for later, and folders of the machine it was written on. Each is put
/// together here, so that this file may hold them.
const BANNED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("/wo", "rk/"),
    concat!("unimplemented", "!"),
    concat!("todo", "!"),
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
        for (number, used) in used_paths(&text) {
            let Some(used) = used.strip_prefix("crate::") else { continue };
            let first = used.split("::").next().unwrap();
            if first != module && !allowed.contains(&first) {
                offences.push(format!("{}:{number}: `{module}` may not use `{used}`", path.display()));
            }
            let seen =
                MOVER_SEEN.iter().any(|(who, what)| (*who == "*" || *who == module) && starts_with_path(used, what));
            if module != "mover" && first == "mover" && !seen {
                offences.push(format!("{}:{number}: others see only the mover's protocol", path.display()));
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
        let here = path.to_string_lossy().replace('\\', "/");
        let mut check = |number: usize, word: &str, places: &[&str]| {
            if !places.iter().any(|place| here.starts_with(place)) {
                offences.push(format!("{here}:{number}: `{word}` belongs to {places:?}"));
            }
        };
        for (number, used) in used_paths(&text) {
            for (outside, places) in ALONE.iter().filter(|(outside, _)| starts_with_path(&used, outside)) {
                check(number, outside, places);
            }
        }
        for (number, line) in code_lines(&text) {
            for (word, places) in WORDS_ALONE.iter().filter(|(word, _)| names(line, word)) {
                check(number, word, places);
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn decisions_are_not_async() {
    let pure = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        path.starts_with("src/model")
            || ["plan.rs", "settle.rs", "admit.rs", "rest.rs", "record.rs"].contains(&name.as_ref())
    };
    for (path, text) in sources().into_iter().filter(|(path, _)| pure(path)) {
        for (number, line) in code_lines(&text) {
            let offence = line.contains("async ") || line.contains(".await") || line.contains("std::fs");
            assert!(!offence, "{}:{number}: a decision does no I/O and does not wait", path.display());
        }
    }
}

#[test]
fn nothing_in_the_tree_is_left_for_later_or_speaks_of_one_machine() {
    let mut offences = Vec::new();
    for path in tracked() {
        // What is no text holds no words.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            offences.extend(banned(line).map(|word| format!("{}:{}: {word}", path.display(), index + 1)));
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn no_way_of_naming_a_thing_escapes_these_checks() {
    let text = "\
use crate::{broker, host::{mover::Progress, guard}, mover::image as picture};
use lapin;
use {sqlx as database, nix::{mount::mount, fcntl}};
extern crate virt;
// use crate::worker;
pub use
    crate::cli::output;
fn f() -> crate::journal::Journal { virt_sys::call(&mut virtual_thing, std::virt::x) }
#[cfg(test)]
use crate::job;
";
    let found: Vec<(usize, String)> = used_paths(text);
    let wanted = [
        (1, "crate::broker"),
        (1, "crate::host::mover::Progress"),
        (1, "crate::host::guard"),
        (1, "crate::mover::image"),
        (2, "lapin"),
        (3, "sqlx"),
        (3, "nix::mount::mount"),
        (3, "nix::fcntl"),
        (4, "virt"),
        (6, "crate::cli::output"),
        (8, "crate::journal::Journal"),
        (8, "virt_sys::call"),
        (8, "std::virt::x"),
    ];
    assert_eq!(found, wanted.map(|(line, path)| (line, path.to_owned())));
    for word in BANNED {
        assert_eq!(banned(&format!("// {word} later")).count(), 1, "{word}");
    }
    assert_eq!(banned("mktemp -XXXXXX; /network/x; todos").count(), 0);
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

/// Lines that are code: no comments, nothing from the file's own tests on, no line that only tests see.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_test = |line: Option<&str>| line.is_some_and(|line| line.starts_with("#[cfg(test)]"));
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.windows(2).position(|two| is_test(Some(two[0])) && two[1].ends_with('{'));
    let end = end.unwrap_or(lines.len());
    (0..end)
        .filter(|index| !is_test(index.checked_sub(1).map(|before| lines[before])))
        .map(|index| (index + 1, lines[index]))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .into_iter()
}

/// Every path that the code names, groups in braces taken apart, each with the line on which its statement begins.
fn used_paths(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut statement: Option<(usize, String)> = None;
    for (number, line) in code_lines(text) {
        let words = line.trim_start();
        let words = words.strip_prefix("pub").map_or(words, |rest| rest.trim_start_matches(|c| c != ' ').trim_start());
        let begins = ["use", "extern crate"]
            .iter()
            .find_map(|word| words.strip_prefix(word).filter(|rest| rest.is_empty() || rest.starts_with(' ')));
        match (&mut statement, begins) {
            (Some((_, open)), _) => open.push_str(line),
            (None, Some(rest)) => statement = Some((number, rest.to_owned())),
            (None, None) => found.extend(inline_paths(line).map(|path| (number, path))),
        }
        if let Some((begun, whole)) = statement.take_if(|(_, open)| open.contains(';')) {
            let tree = whole.split(';').next().unwrap();
            found.extend(taken_apart(tree).into_iter().map(|path| (begun, path)));
        }
    }
    found
}

/// `a::{b, c::{d as e}}` as `a::b` and `a::c::d`.
fn taken_apart(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, group)) = tree.split_once('{') else {
        return tree.split_whitespace().next().map(str::to_owned).into_iter().collect();
    };
    let group = group.strip_suffix('}').unwrap_or(group);
    let mut depth = 0;
    let parts = group.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts.flat_map(taken_apart).map(|path| format!("{}{path}", before.trim())).collect()
}

/// Paths of at least two words that stand somewhere in a line.
fn inline_paths(line: &str) -> impl Iterator<Item = String> {
    let paths = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    paths.map(|path| path.trim_matches(':').to_owned()).filter(|path| path.contains("::"))
}

/// Whether the first words of a path are those of another.
fn starts_with_path(path: &str, first: &str) -> bool {
    path.strip_prefix(first).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn banned(line: &str) -> impl Iterator<Item = &'static str> {
    BANNED.iter().copied().filter(move |word| {
        line.match_indices(*word).any(|(at, _)| {
            let inside = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
            let goes_on = word.ends_with(char::is_alphabetic) && inside(line[at + word.len()..].chars().next());
            let comes_from = word.starts_with(char::is_alphabetic) && inside(line[..at].chars().next_back());
            !goes_on && !comes_from
        })
    })
}

/// Files that belong to the tree.
fn tracked() -> Vec<PathBuf> {
    let listed = Command::new("git").args(["ls-files", "-z"]).output().expect("git lists the files of the tree");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).unwrap();
    let files: Vec<_> = names.split_terminator('\0').map(PathBuf::from).filter(|path| path.is_file()).collect();
    assert!(files.len() > 100, "the files of the tree were not found");
    files
}

/// Whether the word stands in the line as a word of its own.
fn names(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}
