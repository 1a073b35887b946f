//! Which option of the command line is which field of a job, so that whoever typed an option is told of that.

use super::output::CliError;
use crate::message::Refusal;

/// Fields as refusals name them, or what they begin with.
const OPTIONS: &[(&str, &str)] = &[
    ("job_id", "--job-id"),
    ("run", "--run"),
    ("host", "--host"),
    ("instance", "--instance"),
    ("repository.id", "--repository-id"),
    ("repository.type", "--type"),
    ("repository.address", "--address"),
    ("repository.options", "--options"),
    ("repository.credentials.reference", "--credentials"),
    ("repository.credentials.sealed", "--seal-credentials"),
    ("backup.mode", "--mode"),
    ("backup.full_every", "--full-every"),
    ("backup.transfer", "--transfer"),
    ("backup.quiesce", "--quiesce"),
    ("backup.verification", "--verification"),
    ("backup.exclude_disks", "--exclude-disk"),
    ("restore.backup_id", "--backup"),
    ("restore.disks", "--disk"),
    ("restore.onto", "--onto"),
    ("restore.keep_previous", "--keep-previous"),
    ("restore.overwrite", "--overwrite"),
    ("restore_new.backup_id", "--backup"),
    ("restore_new.disks", "--disk"),
    ("restore_new.new_instance.name", "--new-instance"),
    ("restore_new.new_instance.id", "--new-id"),
    ("restore_new.new_instance.mac_addresses", "--preserve-mac-addresses"),
    ("restore_new.new_instance.directory", "--volume-directory"),
    ("restore_new.new_instance.volumes", "--volume-path"),
    ("restore_new.volume.path", "--volume"),
    ("restore_new.volume.format", "--format"),
    ("restore_new.volume.attach.instance", "--attach-to"),
    ("restore_new.volume.attach.target", "--attach-target"),
    ("restore_new.volume.attach.bus", "--attach-bus"),
    ("validate.level", "--level"),
    ("validate.instances", "--instance"),
    ("validate.max_bytes_per_second", "--max-bytes-per-second"),
    ("delete.backup_id", "--backup"),
    ("delete.mode", "--mode"),
    ("retry.attempts", "--attempts"),
    ("start_before", "--start-before"),
    ("deadline_seconds", "--deadline-seconds"),
    ("labels", "--label"),
    ("requested_by", "--requested-by"),
];

/// A refusal of a job that was made of options, by theirs.
pub fn refused(refusal: Refusal) -> CliError {
    CliError::usage(in_options(refusal))
}

fn in_options(refusal: Refusal) -> String {
    let Refusal { text, field, .. } = refusal;
    let named = field.and_then(|field| {
        let (option, of_it) =
            OPTIONS.iter().find_map(|(known, option)| Some((option, part(field.strip_prefix(known)?)?)))?;
        Some(format!("`{option}`{of_it}{}", text.strip_prefix(&format!("`{field}`"))?))
    });
    named.unwrap_or(text)
}

/// Which part of the field it is, in words; none where it is another field that begins alike.
fn part(rest: &str) -> Option<String> {
    match rest {
        // An option takes either, and one value at a time.
        "" | ".id" | ".name" | ".enc" | ".ciphertext" => Some(String::new()),
        _ if rest.starts_with('[') => Some(String::new()),
        _ if rest.starts_with(' ') => Some(rest.to_owned()),
        _ => rest.strip_prefix('.').map(|key| format!(" (`{key}`)")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::failure::Code;

    #[test]
    fn every_option_is_one_of_a_command_that_publishes() {
        let (mut known, mut commands) = (BTreeSet::new(), vec![super::super::Cli::command()]);
        while let Some(command) = commands.pop() {
            let words = command.get_arguments().filter_map(|argument| argument.get_long());
            known.extend(words.map(|word| format!("--{word}")));
            commands.extend(command.get_subcommands().cloned());
        }
        for (field, option) in OPTIONS {
            assert!(known.contains(*option), "{field}: {option}");
        }
    }

    #[test]
    fn a_refusal_names_the_option_and_what_of_it() {
        for (field, shown) in [
            ("restore_new.new_instance.id", "`--new-id` is wrong"),
            ("restore_new.new_instance.volumes.vdb", "`--volume-path` (`vdb`) is wrong"),
            ("restore.onto (a disk of the backup)", "`--onto` (a disk of the backup) is wrong"),
            ("restore.disks[1]", "`--disk` is wrong"),
            ("instance.name", "`--instance` is wrong"),
            ("labels.nas_password", "`--label` (`nas_password`) is wrong"),
            ("runs", "`runs` is wrong"),
            ("retry.first_pause_seconds", "`retry.first_pause_seconds` is wrong"),
        ] {
            assert_eq!(in_options(Refusal::of_field(Code::InvalidField, field, " is wrong")), shown);
        }
        assert_eq!(in_options(Refusal::new(Code::MalformedMessage, "no field is wrong")), "no field is wrong");
    }
}
