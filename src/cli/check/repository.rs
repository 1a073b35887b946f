//! Is a directory a repository, the right one, and are its backups whole as far as a listing can tell?

use std::path::Path;

use super::Finding;
use crate::model::id::RepositoryId;
use crate::mover::share::{Dir, Listed, list_backups, read_identity};

pub fn check(directory: &Path, wanted: Option<RepositoryId>) -> Vec<Finding> {
    let shown = directory.display().to_string();
    let identity = Dir::open_root(directory).map_err(Into::into).and_then(|root| read_identity(&root));
    let identity = match identity {
        Ok(identity) => identity,
        Err(failure) => {
            let remedy = "`longshore repository init` makes one, if nothing is to be lost there";
            return vec![Finding::fail("identity", format!("{failure:#}"), remedy)];
        }
    };
    let mut findings = match wanted.map(|wanted| identity.must_be(wanted, &shown)) {
        None | Some(Ok(())) => {
            vec![Finding::ok("identity", format!("`{shown}` is repository {}", identity.repository_id))]
        }
        Some(Err(failure)) => {
            vec![Finding::fail("identity", format!("{failure:#}"), "mount the share that was meant, or correct the id")]
        }
    };
    match list_backups(directory) {
        Ok(listed) => findings.extend(backups(&listed)),
        Err(failure) => findings.push(Finding::fail("backups", format!("{failure:#}"), "look at the share itself")),
    }
    findings
}

fn backups(listed: &[Listed]) -> Vec<Finding> {
    let good = listed.iter().filter(|entry| matches!(entry, Listed::Backup(_))).count();
    let damaged = listed.iter().filter_map(|entry| match entry {
        Listed::Backup(_) => None,
        Listed::Damaged { directory, failure } => Some(Finding::warn(
            "backups",
            format!("instances/{directory}: {failure:#}"),
            "it is not a backup any more; move it away",
        )),
    });
    std::iter::once(Finding::ok("backups", format!("{good} with a readable manifest"))).chain(damaged).collect()
}
