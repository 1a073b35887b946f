//! README-RESTORE.txt: how to restore this very backup with nothing but qemu-img and virsh. Pure text from the manifest.

use std::fmt::Write;
use std::path::Path;

use crate::model::instance::{DiskSource, ImageFormat};
use crate::model::manifest::{Consistency, Manifest, ManifestDisk};

/// Width of the disk's name column in the last lines.
const ROOT_SHOWN_CHARACTERS: usize = 64;

/// Prints the place of the firmware's variables that a definition names.
const NVRAM_PATH: &str = "$(sed -n 's:.*<nvram[^>]*>\\(.*\\)</nvram>.*:\\1:p' domain.xml)";

/// The text for one backup.
pub fn restore_readme(manifest: &Manifest) -> String {
    let mut text = String::new();
    let consistency = match manifest.quiesce.consistency {
        Consistency::FileSystem => "file systems at rest",
        Consistency::Partial => "some file systems at rest, see manifest.json",
        Consistency::Crash => "as after a power cut",
    };
    let needed = match manifest.parent() {
        None => "Everything needed is in this directory; Longshore is not".to_owned(),
        Some(parent) => format!(
            "This backup holds what had changed since backup {parent}: the directory ../{parent}\n\
             has to be there, and those that its own README-RESTORE.txt names. Longshore is not needed"
        ),
    };
    // Writing to a `String` cannot fail.
    let _ = write!(
        text,
        "Backup {backup}\n\
         of instance {name} ({instance})\n\
         as it was at {taken}, {consistency}.\n\n\
         {needed}. Run these lines as root, in this directory,\n\
         on a host with libvirt and qemu-utils, while the instance is shut off. They OVERWRITE its disks.\n\n\
         1. Is it whole? Each line must say that no errors were found.\n\n",
        backup = manifest.backup_id,
        name = manifest.instance_name,
        instance = manifest.instance_id,
        taken = manifest.taken_at,
    );
    for disk in &manifest.disks {
        let _ = writeln!(text, "    qemu-img check {}", quote(&disk.file));
    }
    text.push_str("\n2. Put the disks where they were, or write another path and change domain.xml to it.\n\n");
    for disk in &manifest.disks {
        let _ = writeln!(text, "    {}", convert_line(disk));
    }
    text.push_str("\n3. Define the instance, unless it still is, and start it.\n\n");
    for record in &manifest.records {
        match record.file.as_str() {
            "nvram" => {
                let _ = writeln!(text, "    cp nvram \"{NVRAM_PATH}\"");
            }
            "domain.xml" => text.push_str("    virsh define domain.xml\n"),
            _ => {}
        }
    }
    let _ = writeln!(text, "    virsh start {}", quote(manifest.instance_name.as_str()));
    text.push_str("\nDisks, by which serial number or target maps each:\n\n");
    for disk in &manifest.disks {
        let serial =
            disk.serial.as_deref().map_or_else(|| "none".to_owned(), |serial| serial.escape_debug().to_string());
        let root: String = disk.content_root.chars().take(ROOT_SHOWN_CHARACTERS).collect();
        let _ = writeln!(text, "    {}  serial {serial}  {} bytes  content {root}", disk.target, disk.virtual_bytes);
    }
    for disk in &manifest.skipped_disks {
        let _ = writeln!(text, "    {}  not in this backup: {}", disk.target, disk.reason.escape_debug());
    }
    text
}

fn convert_line(disk: &ManifestDisk) -> String {
    let file = quote(&disk.file);
    match &disk.source {
        DiskSource::File { path, format } => {
            format!("qemu-img convert -p -f qcow2 -O {} {file} {}", word(*format), quote_path(path))
        }
        DiskSource::Block { path, format } => {
            // -n: a block device is there already and can't be made.
            format!("qemu-img convert -p -n -f qcow2 -O {} {file} {}", word(*format), quote_path(path))
        }
        DiskSource::Network { protocol, name, format, .. } => {
            let target = quote(&format!("{protocol}:{name}"));
            let word = word(*format);
            format!("qemu-img convert -p -n -f qcow2 -O {word} {file} {target}    # add the options of your storage")
        }
        DiskSource::Other { .. } => format!("qemu-img convert -p -f qcow2 -O raw {file} PATH"),
    }
}

fn word(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
    }
}

fn quote_path(path: &Path) -> String {
    match path.to_str() {
        Some(path) => quote(path),
        None => "PATH    # the path was not text: see manifest.json".to_owned(),
    }
}

/// One word for a shell. A control character, which could hide what a line does, takes the place of the word with a hint.
fn quote(word: &str) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'-' | b'_' | b':' | b'=');
    if word.chars().any(char::is_control) {
        "NAME    # it has control characters: see manifest.json".to_owned()
    } else if !word.is_empty() && !word.starts_with('-') && word.bytes().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::id::BackupId;
    use crate::model::manifest::{BasedOn, ChangesFoundBy};
    use crate::mover::testing::manifest;

    #[test]
    fn the_lines_are_exact_for_each_kind_of_source() {
        let mut manifest = manifest(&["vda", "vdb", "vdc", "vdd"]);
        let paths = ["/var/lib/libvirt/images/web 1's.qcow2", "/dev/vg0/data"];
        manifest.disks[0].source = DiskSource::File { path: paths[0].into(), format: ImageFormat::Qcow2 };
        manifest.disks[1].source = DiskSource::Block { path: paths[1].into(), format: ImageFormat::Raw };
        manifest.disks[2].source = serde_json::from_str(r#"{"network":{"protocol":"rbd","name":"pool/web"}}"#).unwrap();
        manifest.disks[3].source = DiskSource::Other { kind: "vhostuser".into() };
        let text = restore_readme(&manifest);
        for line in [
            "    qemu-img check vda.qcow2",
            r"    qemu-img convert -p -f qcow2 -O qcow2 vda.qcow2 '/var/lib/libvirt/images/web 1'\''s.qcow2'",
            "    qemu-img convert -p -n -f qcow2 -O raw vdb.qcow2 /dev/vg0/data",
            "    qemu-img convert -p -n -f qcow2 -O raw vdc.qcow2 rbd:pool/web    # add the options of your storage",
            "    qemu-img convert -p -f qcow2 -O raw vdd.qcow2 PATH",
            "    virsh define domain.xml",
            "    virsh start web",
        ] {
            assert!(text.lines().any(|found| found == line), "`{line}` is not in:\n{text}");
        }
        assert!(!text.contains("cp nvram"), "there is none in this backup");
    }

    #[test]
    fn an_incremental_backup_says_what_else_has_to_be_there() {
        let mut manifest = manifest(&["vda"]);
        assert!(restore_readme(&manifest).contains("Everything needed is in this directory"));
        let backup_id = BackupId::draw();
        let found_by = ChangesFoundBy::Hashes;
        manifest.disks[0].based_on = Some(BasedOn { backup_id, content_root: "00".repeat(32), found_by });
        let text = restore_readme(&manifest);
        assert!(text.contains(&format!("the directory ../{backup_id}\nhas to be there")), "{text}");
        assert!(!text.contains("Everything needed"), "{text}");
    }

    #[test]
    fn hostile_names_stay_one_word_and_one_line() {
        let mut manifest = manifest(&["vda"]);
        manifest.disks[0].source =
            DiskSource::File { path: "/x; rm -rf /\n    reboot".into(), format: ImageFormat::Raw };
        manifest.disks[0].serial = Some("a\n    reboot".into());
        manifest.instance_name = "$(reboot)".parse().unwrap();
        let text = restore_readme(&manifest);
        assert!(!text.lines().any(|line| line.trim() == "reboot"), "{text}");
        assert!(text.contains("virsh start '$(reboot)'"), "{text}");
        assert!(!text.contains("rm -rf"), "{text}");
    }
}
