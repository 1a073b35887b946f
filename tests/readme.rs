//! The README tells the truth: its tables are those of the code, and every command it shows is understood.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use longshore::cli::exit::Exit;
use longshore::failure::{Class, Code};
use longshore::model::validation::{FindingCode, Severity};

const README: &str = include_str!("../README.md");

#[test]
fn the_table_of_failure_codes_is_that_of_the_code() {
    let rows: Vec<String> = Code::ALL.iter().map(|code| row(*code)).collect();
    let shown: Vec<&str> = README.lines().skip_while(|line| *line != "| code | class | meaning |").skip(2).collect();
    let shown = shown.split(|line| line.is_empty()).next().unwrap();
    assert_eq!(shown, rows);
}

fn row(code: Code) -> String {
    let class = match code.class() {
        Class::Transient => "transient",
        Class::Permanent => "permanent",
        Class::Bug => "bug",
    };
    format!("| `{code}` | {class} | {} |", code.meaning())
}

#[test]
fn the_table_of_findings_is_that_of_the_code() {
    let row = |code: &FindingCode| {
        let severity = match code.severity() {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        format!("| `{}` | {severity} | {} | {} |", code.as_str(), code.meaning(), code.remedy())
    };
    let rows: Vec<String> = FindingCode::ALL.iter().map(row).collect();
    let head = "| finding | severity | meaning | what to do |";
    let shown: Vec<&str> = README.lines().skip_while(|line| *line != head).skip(2).collect();
    let shown = shown.split(|line| line.is_empty()).next().unwrap();
    assert_eq!(shown, rows);
}

#[test]
fn the_table_of_exit_codes_is_that_of_the_code() {
    let rows: Vec<String> =
        Exit::ALL.iter().map(|(exit, meaning)| format!("| {} | {meaning} |", exit.status())).collect();
    let shown: Vec<&str> = README.lines().skip_while(|line| *line != "| status | meaning |").skip(2).collect();
    let shown = shown.split(|line| line.is_empty()).next().unwrap();
    assert_eq!(shown, rows);
}

/// Else a drained worker would be started again, into the middle of an upgrade.
#[test]
fn the_unit_starts_every_worker_again_but_a_drained_one() {
    let unit = include_str!("../packaging/longshore-worker.service");
    let [in_order, in_part] = [Exit::Drained, Exit::DrainedInPart].map(Exit::status);
    for line in [
        "Restart=always".to_owned(),
        format!("RestartPreventExitStatus={in_order} {in_part}"),
        format!("SuccessExitStatus={in_order}"),
    ] {
        assert!(unit.lines().any(|found| found == line), "`{line}` is not in the unit");
    }
}

#[test]
fn every_command_in_the_readme_has_a_help_page_with_its_options() {
    let commands: Vec<&str> = README.lines().filter(|line| line.starts_with("longshore ")).collect();
    assert!(commands.len() >= 8, "{commands:?}");
    for line in commands {
        let words: Vec<&str> = line.split('#').next().unwrap().split_whitespace().skip(1).collect();
        let verb = |word: &&&str| {
            word.starts_with(|c: char| c.is_ascii_lowercase())
                && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        };
        let command: Vec<&str> = words.iter().take_while(verb).copied().collect();
        let help = help(&command);
        for option in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option), "`{line}`: `{option}` is not in\n{help}");
        }
    }
}

/// The help page of a command. An unknown command has none, and ends with the status of a usage error.
fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_longshore")).args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
