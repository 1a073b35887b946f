//! A restore without us: the lines of README-RESTORE.txt, pasted into a shell in the directory of an incremental backup.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fleet::Fleet;
use crate::image::equal;
use crate::incremental::{back_up, image};
use crate::lab::{LabInstance, variable, virsh};

/// A line that fails ends the run.
const SHELL: &str = "set -eu\n";

#[test]
fn what_the_directory_of_a_backup_says_puts_the_instance_back_when_it_is_pasted() {
    let fleet = Fleet::start("by-hand");
    let share = fleet.share();
    let bare = LabInstance::bare();
    back_up(&fleet, &bare, &share);
    bare.overwrite(0, 0x61, "1M");
    bare.stop();
    give_variables(&bare);
    let backup = back_up(&fleet, &bare, &share);
    let kept = bare.folder.join("vda.kept.qcow2");
    fs::copy(bare.folder.join("vda.qcow2"), &kept).unwrap();

    for (disk, format) in [("vda.qcow2", "qcow2"), ("vdb.raw", "raw")] {
        let disk = bare.folder.join(disk);
        let write =
            Command::new("qemu-io").args(["-f", format, "-c", "write -P 0xee 0 4M"]).arg(disk).output().unwrap();
        assert!(write.status.success(), "{write:?}");
    }
    fs::write(variables(&bare), vec![0; VARIABLES_BYTES]).unwrap();
    virsh(&["undefine", &bare.name, "--nvram", "--checkpoints-metadata"]);
    let directory = share.path.join(&backup.directory);
    paste(&directory);

    assert_eq!(virsh(&["domstate", &bare.name]), "running");
    bare.stop();
    assert_eq!(fs::read(variables(&bare)).unwrap(), vec![7; VARIABLES_BYTES]);
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &kept, "qcow2");
    equal(&bare.folder.join("vda.qcow2"), "qcow2", &image(&share, &backup, "vda"), "qcow2");
    equal(&bare.folder.join("vdb.raw"), "raw", &bare.folder.join("vdb.reference.raw"), "raw");
    fleet.finish(&[&bare], &[&share]);
}

/// Runs the indented lines that are commands, which are all but those of the table at the end.
fn paste(directory: &Path) {
    let text = fs::read_to_string(directory.join("README-RESTORE.txt")).unwrap();
    let (commands, _) = text.split_once("\nDisks, by which").unwrap();
    let lines: Vec<_> = commands.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    for tool in ["qemu-img check", "qemu-img convert", "cp nvram", "virsh define", "virsh start"] {
        assert!(lines.iter().any(|line| line.starts_with(tool)), "no `{tool}` in\n{text}");
    }
    let virsh = Path::new(&variable("LONGSHORE_LAB_VIRSH")).parent().unwrap().to_owned();
    let path = format!("{}:{}", virsh.display(), std::env::var("PATH").unwrap());
    let script = format!("{SHELL}{}", lines.join("\n"));
    let shell = Command::new("bash").args(["-c", &script]).current_dir(directory).env("PATH", path).output().unwrap();
    assert!(shell.status.success(), "{script}\n{shell:?}");
}

/// What a firmware has for its variables. Nothing is booted here, so there is no need for a real one.
const VARIABLES_BYTES: usize = 256 * 1024;

fn variables(bare: &LabInstance) -> std::path::PathBuf {
    bare.folder.join("bare_VARS.fd")
}

/// Redefines it with a firmware that has variables.
fn give_variables(bare: &LabInstance) {
    let firmware = bare.folder.join("firmware.fd");
    fs::write(&firmware, vec![0xf4; VARIABLES_BYTES]).unwrap();
    fs::write(variables(bare), vec![7; VARIABLES_BYTES]).unwrap();
    let os = format!(
        "<loader readonly='yes' type='pflash'>{}</loader><nvram>{}</nvram></os>",
        firmware.display(),
        variables(bare).display()
    );
    let file = bare.folder.join("firmware.xml");
    fs::write(&file, virsh(&["dumpxml", "--inactive", &bare.name]).replace("</os>", &os)).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
}
