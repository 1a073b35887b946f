//! Which libvirt and QEMU are new enough for what. From libvirt's release notes: backups became usable without an opt-in
//! to unfinished code with libvirt 7.2 on QEMU 4.2, incremental ones with 7.6 on 6.1.

use super::{Version, Versions};
use crate::failure::{Code, Failure};

/// Oldest versions for a full backup.
pub const FULL: Versions = Versions { libvirt: Version(7, 2, 0), qemu: Version(4, 2, 0) };

/// Oldest versions for an incremental backup.
pub const INCREMENTAL: Versions = Versions { libvirt: Version(7, 6, 0), qemu: Version(6, 1, 0) };

impl Versions {
    /// Whether these are enough for full backups; else `hypervisor_too_old` with what to upgrade.
    pub fn allow_full(&self) -> Result<(), Failure> {
        self.reach(&FULL, "full backups")
    }

    /// Whether these are enough for incremental backups; else `hypervisor_too_old` with what to upgrade.
    pub fn allow_incremental(&self) -> Result<(), Failure> {
        self.reach(&INCREMENTAL, "incremental backups")
    }

    fn reach(&self, needed: &Versions, purpose: &str) -> Result<(), Failure> {
        let parts = [("libvirt", self.libvirt, needed.libvirt), ("QEMU", self.qemu, needed.qemu)];
        let old: Vec<String> = parts
            .iter()
            .filter(|(_, found, needed)| found < needed)
            .map(|(name, found, needed)| format!("upgrade {name} from `{found}` to `{needed}` or newer"))
            .collect();
        if old.is_empty() {
            return Ok(());
        }
        Err(Failure::new(Code::HypervisorTooOld, format!("this host cannot make {purpose}: {}", old.join(" and "))))
    }
}

impl Version {
    /// From libvirt's and QEMU's common form, major × 1,000,000 + minor × 1,000 + release.
    pub fn from_number(number: u32) -> Self {
        Self(number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_old_host_is_told_what_to_upgrade() {
        let host = Versions { libvirt: Version::from_number(7_001_009), qemu: Version::from_number(6_001_000) };
        let failure = host.allow_full().unwrap_err();
        assert_eq!(failure.code, Code::HypervisorTooOld);
        assert_eq!(
            failure.to_string(),
            "this host cannot make full backups: upgrade libvirt from `7.1.9` to `7.2.0` or newer"
        );
        let failure = Versions { libvirt: Version(7, 5, 0), qemu: Version(6, 0, 0) }.allow_incremental().unwrap_err();
        assert!(failure.to_string().contains("libvirt") && failure.to_string().contains("QEMU"), "{failure}");
    }

    #[test]
    fn the_oldest_allowed_versions_are_allowed() {
        FULL.allow_full().unwrap();
        INCREMENTAL.allow_incremental().unwrap();
        FULL.allow_incremental().unwrap_err();
    }
}
