//! What was asked for and is not there, what is the server's own, what changed meanwhile, and the bounds of it all.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::super::facts::Seen;
use super::super::hidden::{Hidden, Looked, add_news, must_be_found, to_be_told};
use super::super::select::{measure, select};
use super::super::superseded::superseded;
use super::*;
use crate::model::manifest::CHAIN_IMAGES_MAX;
use crate::model::validation::ValidationLevel;
use crate::mover::protocol::WantedValidation;

fn wanted(instances: Vec<InstanceId>, backup: Option<BackupId>) -> WantedValidation {
    let level = ValidationLevel::Content;
    WantedValidation { level, instances, backup, max_bytes_per_second: None, findings_max: 100 }
}

#[test]
fn an_instance_that_was_asked_for_and_is_not_there_is_named() {
    let share = Share::new();
    share.publish(1, None);
    let missing = InstanceId::draw();
    let selected = select(&share.root(), &wanted(vec![share.instance, missing], None)).unwrap();
    assert_eq!(selected.instances, [share.instance]);
    let told: Vec<_> = selected.findings.iter().map(|finding| (finding.code, finding.instance_id)).collect();
    assert_eq!(told, [(FindingCode::InstanceMissing, Some(missing))]);
}

#[test]
fn a_backup_that_was_asked_for_and_is_gone_is_not_found() {
    let share = Share::new();
    let only = share.publish(1, None).backup_id;
    let facts = share.facts();
    let found = |facts: &InstanceFacts, found: &[Finding]| must_be_found(&share.root(), facts, only, found);
    let note = [superseded(share.instance, only)];
    found(&facts, &[]).unwrap();
    found(&facts, &note).unwrap();
    fs::remove_dir_all(share.of(only)).unwrap();
    assert_eq!(found(&facts, &note).unwrap_err().code, Code::BackupNotFound);
    assert_eq!(found(&share.facts(), &[]).unwrap_err().code, Code::BackupNotFound);
    fs::remove_file(share.at("longshore.json")).unwrap();
    assert_eq!(found(&facts, &note).unwrap_err().code, Code::RepositoryNotFound);
}

#[test]
fn what_was_not_looked_at_is_not_called_missing() {
    let share = Share::new();
    let full = share.publish(1, None);
    let child = share.publish(2, Some(&full));
    let mut facts = share.facts();
    facts.backups.remove(&full.backup_id);
    facts.cut_short = true;
    let found = judge(share.repository, &facts, now());
    let codes: Vec<_> = found.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [FindingCode::TooMany]);
    let told = to_be_told(&facts, found, &wanted(Vec::new(), Some(child.backup_id)));
    assert_eq!(told.len(), 1, "also where one backup alone was asked for");
}

#[test]
fn what_belongs_to_the_file_server_is_nobodys_fault() {
    let share = Share::new();
    let backup = share.publish(1, None).backup_id;
    let of_instance = share.at(&format!("{INSTANCES}/{}", share.instance));
    for above in [share.at("."), share.at(INSTANCES), share.at(LOCKS), of_instance, share.of(backup)] {
        for name in [".snapshot", ".zfs", "@eaDir", "#recycle", "System Volume Information", "lost+found"] {
            fs::create_dir_all(above.join(name)).unwrap();
        }
        fs::write(above.join(".nfs000000000001a2b300000001"), "").unwrap();
    }
    assert_eq!(share.codes(), []);
    let selected = select(&share.root(), &wanted(Vec::new(), None)).unwrap();
    assert_eq!(selected.findings, []);
    for above in [share.at("."), share.at(INSTANCES), share.at(LOCKS), share.of(backup)] {
        fs::write(above.join(".nfs-stray"), "").unwrap();
    }
    let selected = select(&share.root(), &wanted(Vec::new(), None)).unwrap();
    assert_eq!((selected.findings.len(), share.codes().len()), (3, 1), "nothing else is left out");
}

#[test]
fn a_file_that_cannot_be_looked_at_is_not_called_something_else() {
    let share = Share::new();
    let full = share.publish(1, None);
    let mut facts = share.facts();
    let files = &mut facts.backups.get_mut(&full.backup_id).unwrap().files;
    files.insert("vda.qcow2".to_owned(), Seen::Unreadable(Some(nix::errno::Errno::EIO)));
    let found = judge(share.repository, &facts, now());
    assert_eq!(found.iter().map(|finding| finding.code).collect::<Vec<_>>(), [FindingCode::Unreadable]);
    assert!(found[0].text.contains("EIO"), "{}", found[0].text);
}

#[test]
fn what_a_manifest_makes_of_itself_has_bounds() {
    let share = Share::new();
    let mut last = share.publish(1, None);
    for number in 2..60 {
        last = share.publish(number, Some(&last));
    }
    let facts = share.facts();
    assert_eq!(facts.line(last.backup_id).len(), CHAIN_IMAGES_MAX + 1);
    assert_eq!(links::roots_below(&facts, last.backup_id, &last.disks[0].target).len(), CHAIN_IMAGES_MAX);

    let share = Share::new();
    let mut many = share.manifest(1, None);
    many.records = vec![many.records[0].clone(); 1000];
    share.write(&many);
    let (root, telling) = (share.root(), telling());
    let instances = root.open_dir(INSTANCES).unwrap();
    instance(&root, &instances, share.instance, Depth::Records, &telling).unwrap().unwrap();
    let manifest_bytes = fs::metadata(share.of(many.backup_id).join(Manifest::FILE)).unwrap().len();
    assert_eq!(telling.bytes_read(), manifest_bytes + many.records[0].bytes, "it is hashed once");

    let share = Share::new();
    let mut many = share.manifest(1, None);
    many.disks = vec![many.disks[0].clone(); 1025];
    share.write(&many);
    assert_eq!(share.codes(), [(FindingCode::ManifestUnreadable, in_backup(&many, Manifest::FILE))]);
}

#[test]
fn a_content_root_that_is_none_is_not_kept() {
    let share = Share::new();
    let mut manifest = share.manifest(1, None);
    manifest.disks[0].content_root = "x".repeat(1 << 10);
    share.write(&manifest);
    let measured = measure(&share.root(), &wanted(Vec::new(), None), &[share.instance], &telling()).unwrap();
    assert_eq!(measured.roots.into_keys().collect::<Vec<_>>(), [manifest.disks[1].content_root.clone()]);
}

#[test]
fn what_was_hidden_is_told_by_the_second_look_or_as_not_known() {
    let share = Share::new();
    let [gone, merged, again] = [1, 2, 3].map(|number| share.publish(number, None).backup_id);
    fs::remove_dir_all(share.of(gone)).unwrap();
    let facts = share.facts();
    let target = || "vda".parse().unwrap();
    let hidden: Hidden = [gone, merged, again].map(|backup| ((backup, target()), gone)).into();
    let of = |code, backup| Finding::new(code, &backup_path(share.instance, backup), "").of_backup(backup);
    let note = |backup| superseded(share.instance, backup);
    let elsewhere = of(FindingCode::FileMissing, BackupId::draw());
    let mut found = vec![elsewhere.clone(), note(gone), note(merged)];
    let damage = of(FindingCode::ContentDiffers, merged);
    let news = vec![damage.clone(), elsewhere.clone(), of(FindingCode::FileMissing, BackupId::draw())];
    let second = Looked { found: news, hidden: [((again, target()), merged)].into() };
    add_news(&mut found, second, &hidden, &facts);
    assert_eq!(found, [elsewhere, note(gone), damage, note(again)]);
}
