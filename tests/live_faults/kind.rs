//! The kinds of jobs that faults come upon.

use longshore::message::JobMessage;
use longshore::message::job::{BackupPart, DeletePart, InstancePart, NewInstancePart, NewVolumePart, RestoreNewPart};
use longshore::message::job::{RestorePart, ValidatePart};
use longshore::model::id::BackupId;

use crate::scene::Scene;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    PullFull,
    PullIncremental,
    Push,
    PushIncremental,
    Stopped,
    Restore,
    RestoreOneDisk,
    NewVolume,
    NewInstance,
    Validate,
    DeleteLeaf,
    DeleteMiddle,
}

impl Kind {
    pub const ALL: [Kind; 12] = [
        Kind::PullFull,
        Kind::PullIncremental,
        Kind::Push,
        Kind::PushIncremental,
        Kind::Stopped,
        Kind::Restore,
        Kind::RestoreOneDisk,
        Kind::NewVolume,
        Kind::NewInstance,
        Kind::Validate,
        Kind::DeleteLeaf,
        Kind::DeleteMiddle,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::PullFull => "pull",
            Kind::PullIncremental => "pull of changes",
            Kind::Push => "push",
            Kind::PushIncremental => "push of changes",
            Kind::Stopped => "stopped",
            Kind::Restore => "restore",
            Kind::RestoreOneDisk => "restore of one disk",
            Kind::NewVolume => "new volume",
            Kind::NewInstance => "new instance",
            Kind::Validate => "validation",
            Kind::DeleteLeaf => "deletion of a leaf",
            Kind::DeleteMiddle => "deletion in the middle",
        }
    }

    /// Whether the instance is shut off.
    pub fn is_of_stopped(self) -> bool {
        matches!(self, Kind::Stopped | Kind::Restore | Kind::RestoreOneDisk)
    }

    /// Whether the job makes a backup.
    pub fn backs_up(self) -> bool {
        use Kind::{PullFull, PullIncremental, Push, PushIncremental, Stopped};
        matches!(self, PullFull | PullIncremental | Push | PushIncremental | Stopped)
    }

    /// Brings about what the job is for, and gives the job, which is not yet published.
    pub fn prepare(self, scene: &mut Scene) -> JobMessage {
        match self {
            Kind::PullFull => scene.backup("pull", "full"),
            Kind::PullIncremental => {
                scene.write(0, "1M 256k");
                scene.backup("pull", "auto")
            }
            Kind::Push => scene.backup("push", "full"),
            Kind::PushIncremental => {
                scene.write(0, "2M 256k");
                scene.backup("push", "auto")
            }
            Kind::Stopped => {
                scene.write(1, "1M 128k");
                scene.backup("auto", "auto")
            }
            Kind::Restore | Kind::RestoreOneDisk => restore(self, scene),
            Kind::NewVolume => new_volume(scene),
            Kind::NewInstance => new_instance(scene),
            Kind::Validate => {
                let part = ValidatePart { level: Some("content".to_owned()), ..ValidatePart::default() };
                scene.fleet.validate_job(&scene.share, part)
            }
            Kind::DeleteLeaf => {
                scene.write(0, "3M 64k");
                let leaf = scene.back_up_now();
                delete(scene, leaf, "leaf_only")
            }
            Kind::DeleteMiddle => {
                scene.write(0, "3M 192k");
                let middle = scene.back_up_now();
                scene.write(0, "3M 64k");
                scene.back_up_now();
                delete(scene, middle, "only")
            }
        }
    }
}

fn restore(kind: Kind, scene: &mut Scene) -> JobMessage {
    let one = kind == Kind::RestoreOneDisk;
    scene.damage(if one { &[1] } else { &[0, 1] });
    let disks = if one { vec!["vdb".to_owned()] } else { Vec::new() };
    let restore = RestorePart { backup_id: scene.latest.to_string(), disks, ..RestorePart::default() };
    JobMessage { kind: "restore".to_owned(), backup: None, restore: Some(restore), ..scene.job() }
}

fn new_volume(scene: &mut Scene) -> JobMessage {
    let path = scene.new_volume().to_str().unwrap().to_owned();
    let volume = Some(NewVolumePart { path, format: Some("raw".to_owned()), attach: None });
    to_elsewhere(scene, RestoreNewPart { volume, disks: vec!["vdb".to_owned()], ..RestoreNewPart::default() })
}

fn new_instance(scene: &mut Scene) -> JobMessage {
    let directory = Some(scene.bare.folder.to_str().unwrap().to_owned());
    let new = NewInstancePart { name: scene.new_instance(), directory, start: true, ..NewInstancePart::default() };
    to_elsewhere(scene, RestoreNewPart { new_instance: Some(new), ..RestoreNewPart::default() })
}

fn to_elsewhere(scene: &Scene, part: RestoreNewPart) -> JobMessage {
    let part = RestoreNewPart { backup_id: scene.latest.to_string(), ..part };
    let instance = Some(InstancePart { id: Some(scene.bare.id.to_string()), name: None });
    JobMessage { kind: "restore-new".to_owned(), instance, backup: None, restore_new: Some(part), ..scene.job() }
}

fn delete(scene: &mut Scene, backup: BackupId, mode: &str) -> JobMessage {
    scene.known.remove(&backup.to_string());
    let delete = DeletePart { backup_id: backup.to_string(), mode: Some(mode.to_owned()), dry_run: false };
    let instance = Some(InstancePart { id: Some(scene.bare.id.to_string()), name: None });
    JobMessage { kind: "backup-delete".to_owned(), instance, backup: None, delete: Some(delete), ..scene.job() }
}

/// A backup job's own part.
pub fn part(transfer: &str, mode: &str, quiesce: &str) -> BackupPart {
    BackupPart {
        transfer: Some(transfer.to_owned()),
        mode: Some(mode.to_owned()),
        quiesce: Some(quiesce.to_owned()),
        ..BackupPart::default()
    }
}
