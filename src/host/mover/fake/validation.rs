//! What a look at a share in memory finds: what was damaged by a test, and what lies about.

use super::repository::{FakeRepository, Holder};
use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::validation::{
    Finding, FindingCode, Findings, InstanceSize, ROOT, Severity, Validation, ValidationLevel,
};
use crate::mover::protocol::WantedValidation;

/// Size of the file system of every share.
const CAPACITY_BYTES: u64 = 2 << 40;

impl FakeRepository {
    /// What was found, and where something lies about.
    pub(super) fn validate(&self, wanted: &WantedValidation) -> Result<(Validation, Vec<InstanceId>), Failure> {
        let mut findings = Findings::new(wanted.findings_max);
        if self.read_only {
            findings.add(Finding::new(FindingCode::NotWritable, ROOT, "it cannot be written to"));
        }
        let is_wanted = |id: &InstanceId| wanted.instances.is_empty() || wanted.instances.contains(id);
        let has = |instance: &super::repository::Instance, id: &BackupId| instance.published.contains_key(id);
        let mut looked: Vec<_> = self.instances.iter().filter(|(id, _)| is_wanted(id)).collect();
        looked.retain(|(_, instance)| wanted.backup.is_none_or(|only| has(instance, &only)));
        if let Some(only) = wanted.backup.filter(|_| looked.is_empty()) {
            return Err(Failure::new(Code::BackupNotFound, format!("the repository has no backup `{only}`")));
        }
        if wanted.level < ValidationLevel::Catalogue {
            looked.clear();
        } else {
            for id in wanted.instances.iter().filter(|id| !self.instances.contains_key(id)) {
                let path = format!("instances/{id}");
                findings.add(Finding::new(FindingCode::InstanceMissing, &path, "it is not there").of_instance(*id));
            }
        }
        let (mut left_overs, mut sizes, mut bytes_read) = (Vec::new(), Vec::new(), 0);
        for (id, instance) in &looked {
            let code = match instance.holder {
                Holder::Nobody => FindingCode::StagingLeftOver,
                Holder::Mover(_) | Holder::Stranger => FindingCode::StagingInUse,
            };
            for name in instance.staging.keys() {
                findings.add(Finding::new(code, &format!("instances/{id}/{name}"), "").of_instance(**id));
            }
            let is_dead = code == FindingCode::StagingLeftOver && !instance.staging.is_empty();
            left_overs.extend(is_dead.then_some(**id));
            let backups = instance.published.iter().filter(|(id, _)| wanted.backup.is_none_or(|only| only == **id));
            for (backup, manifest) in backups {
                let read = wanted.level == ValidationLevel::Content;
                for disk in manifest.disks.iter().filter(|_| read) {
                    bytes_read += disk.data_bytes;
                    if self.damaged.contains(backup) {
                        let path = format!("instances/{id}/{backup}/{}", disk.file);
                        let found =
                            Finding::new(FindingCode::ContentDiffers, &path, "it was damaged").of_instance(**id);
                        findings.add(found.of_backup(*backup).of_disk(&disk.target).at(0));
                    }
                }
            }
            let files = instance.published.values().flat_map(|manifest| &manifest.disks);
            sizes.push(InstanceSize {
                instance_id: **id,
                backups: instance.published.len() as u64,
                file_bytes: files.map(|disk| disk.file_bytes).sum(),
            });
        }
        sizes.sort_by_key(|size| std::cmp::Reverse(size.file_bytes));
        let [errors, warnings, notes] =
            [Severity::Error, Severity::Warning, Severity::Note].map(|severity| findings.count(severity));
        let findings = findings.into_worst_first();
        let validation = Validation {
            level: wanted.level,
            instances: looked.len() as u64,
            backups: sizes.iter().map(|size| size.backups).sum(),
            bytes_read,
            capacity_bytes: CAPACITY_BYTES,
            used_bytes: CAPACITY_BYTES.saturating_sub(self.free_bytes),
            free_bytes: self.free_bytes,
            clock_ahead_seconds: (!self.read_only).then_some(0),
            instance_sizes: sizes,
            instance_sizes_left_out: 0,
            errors,
            warnings,
            notes,
            findings_left_out: errors + warnings + notes - findings.len() as u64,
            findings,
        };
        Ok((validation, left_overs))
    }

    /// Takes the lease, removes what lies about, and gives the lease back.
    pub(super) fn sweep(&mut self, id: InstanceId, key: u64) -> Result<Vec<String>, Failure> {
        let staged = self.instances.get(&id).map(|instance| instance.staging.keys().cloned().collect());
        self.lease(id, key)?;
        self.release(id, key);
        Ok(staged.unwrap_or_default())
    }
}
