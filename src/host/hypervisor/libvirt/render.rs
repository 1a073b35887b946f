//! The descriptions of jobs and disks that libvirt is given. Pure. In a job every disk of the domain is named, those left out with
//! `backup='no'`: what a missing disk means is libvirt's business and has not always been the same.

use std::fmt::Write;
use std::path::Path;

use super::super::{NewCheckpoint, NewDisk, PullBackup, PushBackup};
use crate::failure::{Code, Failure};

/// The job of a pull backup. `targets` are all disks of the domain.
pub(super) fn pull(backup: &PullBackup, targets: &[String]) -> Result<String, Failure> {
    let socket = path(&backup.socket)?;
    let mut disks = Vec::new();
    for disk in &backup.disks {
        let (target, scratch) = (disk.target.as_str(), path(&disk.scratch)?);
        let inside = format!("<driver type='qcow2'/><scratch file='{scratch}'/>");
        let mode = mode(disk.since.as_deref());
        disks.push((target, format!("type='file' {mode} exportname='{target}'>{inside}</disk>")));
    }
    let server = format!("<server transport='unix' socket='{socket}'/>");
    Ok(format!("<domainbackup mode='pull'>{server}{}</domainbackup>", all_disks(&disks, targets)?))
}

/// The job of a push backup into files that exist, and whose owners are right: libvirt would give them to QEMU's user, and
/// afterwards to root, which a share may refuse or, worse, do. `targets` are all disks of the domain.
pub(super) fn push(backup: &PushBackup, targets: &[String]) -> Result<String, Failure> {
    let mut disks = Vec::new();
    for disk in &backup.disks {
        let image = path(&disk.image)?;
        let inside = format!("<driver type='qcow2'/><target file='{image}'>{KEEPS_OWNER}</target>");
        let mode = mode(disk.since.as_deref());
        disks.push((disk.target.as_str(), format!("type='file' {mode}>{inside}</disk>")));
    }
    Ok(format!("<domainbackup mode='push'>{}</domainbackup>", all_disks(&disks, targets)?))
}

/// Each disk has its own: one may have to be taken whole where the others are not.
fn mode(since: Option<&str>) -> String {
    since.map_or_else(
        || "backupmode='full'".to_owned(),
        |since| format!("backupmode='incremental' incremental='{}'", escaped(since)),
    )
}

/// A checkpoint on its disks, and on no other.
pub(super) fn checkpoint(checkpoint: &NewCheckpoint, targets: &[String]) -> String {
    format!("<domaincheckpoint>{}</domaincheckpoint>", name_and_disks(checkpoint, targets))
}

/// One that was made at that second since 1970.
pub(super) fn known_checkpoint(checkpoint: &NewCheckpoint, made_at: i64, targets: &[String]) -> String {
    let inside = name_and_disks(checkpoint, targets);
    format!("<domaincheckpoint><creationTime>{made_at}</creationTime>{inside}</domaincheckpoint>")
}

fn name_and_disks(checkpoint: &NewCheckpoint, targets: &[String]) -> String {
    let mut xml = format!("<name>{}</name><disks>", escaped(&checkpoint.name));
    for target in targets {
        let kind = if checkpoint.disks.iter().any(|disk| disk.as_str() == target) { "bitmap" } else { "no" };
        // Writing to a string does not fail.
        let _ = write!(xml, "<disk name='{}' checkpoint='{kind}'/>", escaped(target));
    }
    xml + "</disks>"
}

/// A disk that is to be attached.
pub(super) fn disk(disk: &NewDisk) -> Result<String, Failure> {
    let format = disk.format.as_str();
    let serial =
        disk.serial.as_deref().map_or_else(String::new, |serial| format!("<serial>{}</serial>", escaped(serial)));
    let (target, bus, file) = (disk.target.as_str(), disk.bus.as_str(), path(&disk.path)?);
    Ok(format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{file}'/>\
         <target dev='{target}' bus='{bus}'/>{serial}</disk>"
    ))
}

/// Security driver `dac` is the one of owners.
const KEEPS_OWNER: &str = "<seclabel model='dac' relabel='no'/>";

fn all_disks(disks: &[(&str, String)], targets: &[String]) -> Result<String, Failure> {
    if let Some((missing, _)) = disks.iter().find(|(target, _)| !targets.iter().any(|known| known == target)) {
        return Err(Failure::new(Code::DiskNotFound, format!("the domain has no disk `{missing}` any more")));
    }
    let mut xml = String::from("<disks>");
    for target in targets {
        let rest = disks.iter().find(|(disk, _)| disk == target).map(|(_, rest)| rest.as_str());
        let (backup, rest) = rest.map_or(("no", "/>"), |rest| ("yes", rest));
        let separator = if rest == "/>" { "" } else { " " };
        let _ = write!(xml, "<disk name='{}' backup='{backup}'{separator}{rest}", escaped(target));
    }
    Ok(xml + "</disks>")
}

fn path(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.chars().any(char::is_control));
    let text = text.ok_or_else(|| {
        Failure::new(
            Code::InvalidField,
            format!("the path `{}` cannot stand in XML", path.display().to_string().escape_debug()),
        )
    })?;
    Ok(escaped(text))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::super::super::{DomainJob, PullDisk, PushDisk};
    use super::super::parse;
    use super::*;

    fn pull_of(socket: impl Into<PathBuf>) -> PullBackup {
        let disk = PullDisk { target: "vda".parse().unwrap(), scratch: "/scratch/vda".into(), since: None };
        PullBackup { socket: socket.into(), disks: vec![disk], checkpoint: None }
    }

    #[test]
    fn a_pull_job_names_every_disk() {
        let xml = pull(&pull_of("/run/x.sock"), &["vda".into(), "sda".into()]).unwrap();
        assert_eq!(
            xml,
            "<domainbackup mode='pull'><server transport='unix' socket='/run/x.sock'/><disks>\
             <disk name='vda' backup='yes' type='file' backupmode='full' exportname='vda'><driver type='qcow2'/><scratch file='/scratch/vda'/></disk>\
             <disk name='sda' backup='no'/></disks></domainbackup>"
        );
    }

    #[test]
    fn a_disk_is_exported_since_its_own_checkpoint_and_a_new_one_is_on_the_disks_that_can_keep_it() {
        let mut backup = pull_of("/run/x.sock");
        backup.disks[0].since = Some("longshore-<a>".into());
        let xml = pull(&backup, &["vda".into()]).unwrap();
        assert!(xml.contains("backupmode='incremental' incremental='longshore-&lt;a&gt;' exportname='vda'"), "{xml}");
        let disk = PushDisk { target: "vda".parse().unwrap(), image: "/x".into(), since: Some("longshore-<a>".into()) };
        let xml = push(&PushBackup { disks: vec![disk], checkpoint: None }, &["vda".into()]).unwrap();
        assert!(
            xml.contains("type='file' backupmode='incremental' incremental='longshore-&lt;a&gt;'><driver"),
            "{xml}"
        );
        let new = NewCheckpoint { name: "longshore-b".into(), disks: vec!["vdb".parse().unwrap()] };
        assert_eq!(
            checkpoint(&new, &["vda".into(), "vdb".into()]),
            "<domaincheckpoint><name>longshore-b</name><disks><disk name='vda' checkpoint='no'/>\
             <disk name='vdb' checkpoint='bitmap'/></disks></domaincheckpoint>"
        );
    }

    #[test]
    fn a_disk_that_the_domain_lost_is_named() {
        let failure = pull(&pull_of("/run/x.sock"), &["vdb".into()]).unwrap_err();
        assert_eq!(failure.code, Code::DiskNotFound);
    }

    #[test]
    fn control_characters_in_a_path_are_refused() {
        assert_eq!(pull(&pull_of("/run/\n.sock"), &["vda".into()]).unwrap_err().code, Code::InvalidField);
    }

    proptest! {
        #[test]
        fn any_printable_path_comes_back_as_it_was(name in "[ -~äß]{1,60}") {
            let backup = pull_of(format!("/run/{name}"));
            let xml = pull(&backup, &["vda".into()]).unwrap();
            prop_assert_eq!(parse::backup_job(&xml).unwrap(), DomainJob::Pull { socket: backup.socket });

            let image = PathBuf::from(format!("/share/{name}"));
            let disk = PushDisk { target: "vda".parse().unwrap(), image: image.clone(), since: None };
            let xml = push(&PushBackup { disks: vec![disk], checkpoint: None }, &["vda".into()]).unwrap();
            prop_assert_eq!(parse::backup_job(&xml).unwrap(), DomainJob::Push { images: vec![image] });
        }
    }
}
