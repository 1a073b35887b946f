//! What a restore adds to a host, an instance or a disk of one, and by what it is told from what is there already.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure};
use crate::model::destination::DiskBus;
use crate::model::id::{DiskTarget, InstanceId, InstanceName};
use crate::model::instance::{Disk, DiskSource, ImageFormat};

/// What an instance of the host has that no other may have as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name, also where no job could carry it.
    pub name: String,
    /// Its MAC addresses, in lower case, those of its next start as well.
    pub mac_addresses: BTreeSet<String>,
    /// Files and devices that its disks and its firmware's variables are on, those of its next start as well, with what backs them as far as
    /// its descriptions say it.
    pub files: BTreeSet<PathBuf>,
    /// Who restored it, as its definition says.
    pub restored_by: Option<String>,
}

/// An instance to be defined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInstance {
    /// Its uuid.
    pub id: InstanceId,
    /// Its name.
    pub name: InstanceName,
    /// Its definition, with both.
    pub definition: String,
    /// Who defines it, as the definition says it in its mark: by that it is known again.
    pub restored_by: String,
}

/// A file that becomes a disk of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisk {
    /// Its target.
    pub target: DiskTarget,
    /// Its bus.
    pub bus: DiskBus,
    /// The file.
    pub path: PathBuf,
    /// In which format it is.
    pub format: ImageFormat,
    /// The serial number that the guest sees.
    pub serial: Option<String>,
}

impl Identity {
    /// It is what was to be defined, also where somebody has given it another name since.
    pub fn is_that(&self, new: &NewInstance) -> bool {
        (self.id, self.restored_by.as_ref()) == (new.id, Some(&new.restored_by))
    }
}

impl NewDisk {
    /// It is one of those. `disk_target_in_use`: one that is not it has its target or serial number. `restore_unfinished`: its file is there
    /// under another target, so that it is somebody's.
    pub(super) fn is_among(&self, disks: &[Disk]) -> Result<bool, Failure> {
        let on_it = |found: &Disk| matches!(&found.source, Some(DiskSource::File { path, .. }) if *path == self.path);
        if let Some(found) = disks.iter().find(|found| on_it(found)) {
            if found.target == self.target {
                return Ok(true);
            }
            let text =
                format!("`{}` is disk `{}`, and was to be disk `{}`", self.path.display(), found.target, self.target);
            return Err(Failure::new(Code::RestoreUnfinished, text));
        }
        let like =
            |found: &&Disk| found.target == self.target || (self.serial.is_some() && found.serial == self.serial);
        match disks.iter().find(like) {
            None => Ok(false),
            Some(found) => {
                let text = format!(
                    "a disk `{}` cannot be attached: disk `{}` has its target or its serial number",
                    self.target, found.target
                );
                Err(Failure::new(Code::DiskTargetInUse, text))
            }
        }
    }
}
