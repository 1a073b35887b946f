//! The requests of a validation: the repository opened only to be looked at, the look itself, and the removal of what is dead.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::ahead::{Ahead, Ready};
use super::{SHARE, SOCKETS, Session, left_overs, or_broken_off, out_of_order};
use crate::failure::Failure;
use crate::model::id::{BackupId, InstanceId, RepositoryId};
use crate::model::manifest::ManifestDisk;
use crate::model::repository::Repository;
use crate::model::validation::{
    Finding, FindingCode, Findings, INSTANCES_TOLD_MAX, Severity, Validation, ValidationLevel,
};
use crate::mover::blocking;
use crate::mover::image::{Pace, Sockets};
use crate::mover::lease::{self, LeaseTimes};
use crate::mover::mount::{Mounted, Place};
use crate::mover::protocol::{LeaseHolder, Reply, WantedValidation};
use crate::mover::share::{Room, read_identity};
use crate::mover::validate::examine::{DiskAt, Tools};
use crate::mover::validate::facts::InstanceFacts;
use crate::mover::validate::hidden::{Hidden, Looked, add_news, must_be_found, not_there, to_be_told};
use crate::mover::validate::known::{Judged, has_left_overs, judge_instance};
use crate::mover::validate::links::{self, Damaged};
use crate::mover::validate::must_be_there;
use crate::mover::validate::reach::{Reached, reach};
use crate::mover::validate::select::{Measured, disks, is_read, measure, select, weight};
use crate::mover::validate::superseded::{Kept, take_back};
use crate::mover::validate::telling::Telling;

/// A validation under way.
struct Validating {
    tools: Tools,
    repository: RepositoryId,
    room: Room,
    now_seconds: i64,
    clock_ahead_seconds: Option<i64>,
    findings: Findings,
    instances: u64,
    backups: u64,
    left_overs: Vec<InstanceId>,
    pace: Pace,
    broken_off: CancellationToken,
}

impl Session {
    pub(super) async fn open_to_look(
        &mut self,
        repository: Repository,
        same_device_ok: bool,
    ) -> Result<Reply, Failure> {
        if self.mounted.is_some() {
            return Err(out_of_order("open to look", "close"));
        }
        let place = Place {
            mount_point: self.directory.join(SHARE),
            private: self.directory.clone(),
            credentials: self.credentials.clone(),
            same_device_ok,
            writer: None,
        };
        self.mounted = Some(Mounted::open_to_look(&repository, &place).await?);
        Ok(Reply::Done)
    }

    pub(super) async fn validate(
        &mut self,
        wanted: WantedValidation,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        let sockets = Arc::new(Sockets::new(self.directory.join(SOCKETS)));
        let telling = Arc::new(Telling::new(self.progress.clone(), broken_off.clone()));
        let looked = root.clone();
        let begun = blocking(move || Ok((read_identity(&looked)?.repository_id, reach(&looked)?)));
        let (repository, Reached { findings, room, now_seconds, clock_ahead_seconds }) =
            or_broken_off(broken_off, begun).await?;
        let mut run = Validating {
            repository,
            room,
            now_seconds,
            clock_ahead_seconds,
            findings: Findings::new(wanted.findings_max),
            instances: 0,
            backups: 0,
            left_overs: Vec::new(),
            pace: Pace::new(wanted.max_bytes_per_second),
            broken_off: broken_off.clone(),
            tools: Tools { root, wanted: Arc::new(wanted), measured: Arc::default(), telling, sockets },
        };
        if run.tools.wanted.backup.is_none() {
            run.add(findings);
        }
        if run.tools.wanted.level >= ValidationLevel::Catalogue {
            for instance in or_broken_off(broken_off, run.select()).await? {
                self.validate_instance(&mut run, instance, broken_off).await?;
                run.instances += 1;
            }
        }
        // Of one that went away meanwhile much may look as if it had been deleted.
        let root = run.tools.root.clone();
        or_broken_off(broken_off, blocking(move || must_be_there(&root))).await?;
        Ok(run.end())
    }

    async fn validate_instance(
        &mut self,
        run: &mut Validating,
        instance: InstanceId,
        broken_off: &CancellationToken,
    ) -> Result<(), Failure> {
        let wanted = run.tools.wanted.clone();
        let (mut facts, found) = match or_broken_off(broken_off, run.judge(instance)).await? {
            Judged::Known(facts, found) => (Arc::new(facts), found),
            Judged::Unreadable(finding) => {
                run.add(vec![finding]);
                return Ok(());
            }
            Judged::Gone => return wanted.backup.map_or(Ok(()), |only| Err(not_there(only))),
        };
        if has_left_overs(&found) {
            run.left_overs.push(instance);
        }
        run.backups += count(match wanted.backup {
            Some(only) => facts.line(only).iter().filter(|id| facts.backups.contains_key(id)).count(),
            None => facts.backups.len(),
        });
        let Looked { mut found, hidden } = self.look(run, &facts, found, None, broken_off).await?;
        if !hidden.is_empty() {
            let again = match or_broken_off(broken_off, run.judge(instance)).await? {
                Judged::Known(now, judged) => {
                    facts = Arc::new(now);
                    self.look(run, &facts, judged, Some(&hidden), broken_off).await?
                }
                Judged::Unreadable(finding) => Looked { found: vec![finding], hidden: hidden.clone() },
                Judged::Gone => Looked { found: Vec::new(), hidden: hidden.clone() },
            };
            add_news(&mut found, again, &hidden, &facts);
        }
        let root = run.tools.root.clone();
        let telling = move || {
            let found = to_be_told(&facts, found, &wanted);
            wanted.backup.map_or(Ok(()), |only| must_be_found(&root, &facts, only, &found)).map(|()| found)
        };
        run.add(or_broken_off(broken_off, blocking(telling)).await?);
        if run.tools.wanted.level < ValidationLevel::Structure {
            run.tools.telling.pass(1);
        }
        Ok(())
    }

    /// Examines the disks that are worth it, those of `only` where that is given, and takes back what was said of what has changed.
    async fn look(
        &self,
        run: &mut Validating,
        facts: &Arc<InstanceFacts>,
        found: Vec<Finding>,
        only: Option<&Hidden>,
        broken_off: &CancellationToken,
    ) -> Result<Looked, Failure> {
        let tools = run.tools.clone();
        let mut ahead = Ahead::new(tools.clone(), self.directory.clone(), broken_off.clone());
        let looked = examine_all(run, facts, found, only, &mut ahead).await;
        ahead.leave().await;
        let Looked { found, mut hidden } = looked?;
        let (root, telling, looked) = (tools.root.clone(), tools.telling.clone(), facts.clone());
        let kept = blocking(move || take_back(&root, &looked, found, &telling));
        let Kept { found, changed } = or_broken_off(broken_off, kept).await?;
        hidden.retain(|_, below| changed.contains(below));
        let of_changed = disks(facts, &tools.wanted).into_iter().filter(|(backup, _)| changed.contains(backup));
        hidden.extend(of_changed.map(|(backup, disk)| ((backup, disk.target.clone()), backup)));
        Ok(Looked { found, hidden })
    }

    pub(super) async fn sweep(
        &mut self,
        instance: InstanceId,
        holder: LeaseHolder,
        broken_off: &CancellationToken,
    ) -> Result<Reply, Failure> {
        let root = self.root()?;
        if self.lease.is_some() {
            return Err(out_of_order("sweep", "release"));
        }
        let taken = lease::take(root.clone(), instance, holder, LeaseTimes::STANDARD, broken_off).await?;
        let confirmed = taken.confirm().await;
        self.hold(taken);
        let swept = match confirmed {
            Ok(()) => match &self.lease {
                Some(lease) => left_overs::clear(lease, root).await,
                None => Err(out_of_order("sweep", "lease")),
            },
            Err(failure) => Err(failure),
        };
        let released = self.release().await;
        let removed = swept?;
        released?;
        Ok(Reply::Swept { removed })
    }
}

/// Examines the disks of an instance, each after what it is based on; what is below a damaged one is hidden.
async fn examine_all(
    run: &mut Validating,
    facts: &InstanceFacts,
    mut found: Vec<Finding>,
    only: Option<&Hidden>,
    ahead: &mut Ahead,
) -> Result<Looked, Failure> {
    let wanted = run.tools.wanted.clone();
    let (mut damaged, mut hidden, mut whole) = (links::damaged(&found), Hidden::new(), BTreeSet::new());
    let is_wanted = |backup: BackupId, disk: &ManifestDisk| {
        wanted.level >= ValidationLevel::Structure
            && only.is_none_or(|only| only.contains_key(&(backup, disk.target.clone())))
    };
    let all: Vec<_> = disks(facts, &wanted).into_iter().filter(|(backup, disk)| is_wanted(*backup, disk)).collect();
    let mut next = all.iter().copied();
    for (backup, disk) in all.iter().copied() {
        run.tools.telling.go_on()?;
        begin_more(facts, &damaged, &mut next, ahead);
        let at = (backup, disk.target.clone());
        let ready = ahead.take(backup, &disk.target).await;
        begin_more(facts, &damaged, &mut next, ahead);
        if let Some(below) = links::damaged_below(facts, &damaged, backup, &disk.target) {
            hidden.insert(at.clone(), below);
        }
        match ready {
            Some(ready) if is_lost(facts, &damaged, backup, disk) => ready.leave().await,
            Some(ready) => {
                let based_on = disk.based_on.as_ref().map(|based_on| (based_on.backup_id, disk.target.clone()));
                let below_is_read = based_on.is_some_and(|based_on| whole.contains(&based_on));
                let mut more = run.read(ready, below_is_read, ahead).await?;
                if more.is_empty() && is_read(&wanted, backup) {
                    whole.insert(at);
                }
                // Hashes that are missing were told as a file that is.
                let is_told = |path: &str| found.iter().any(|before: &Finding| before.path == path);
                more.retain(|finding| finding.code != FindingCode::BlocksDamaged || !is_told(&finding.path));
                damaged.append(&mut links::damaged(&more));
                found.extend(more);
            }
            // There may be no end of such, and nothing else runs meanwhile.
            None => tokio::task::yield_now().await,
        }
        if only.is_none() {
            run.tools.telling.pass(weight(disk, &wanted, backup));
        }
    }
    Ok(Looked { found, hidden })
}

/// Begins to make ready as many of those that come next as there is room for.
fn begin_more<'f>(
    facts: &InstanceFacts,
    damaged: &Damaged,
    next: &mut (impl Iterator<Item = (BackupId, &'f ManifestDisk)> + Clone),
    ahead: &mut Ahead,
) {
    while let Some((backup, disk)) = next.clone().next().filter(|(_, disk)| ahead.has_room_for(disk.virtual_bytes)) {
        next.next();
        if !is_lost(facts, damaged, backup, disk) {
            let below = links::roots_below(facts, backup, &disk.target);
            ahead.begin(DiskAt { instance: facts.instance, backup, disk: disk.clone(), below });
        }
    }
}

/// It can't be read whole, for its own sake or that of what it is based on.
fn is_lost(facts: &InstanceFacts, damaged: &Damaged, backup: BackupId, disk: &ManifestDisk) -> bool {
    links::is_damaged(damaged, backup, &disk.target)
        || links::damaged_below(facts, damaged, backup, &disk.target).is_some()
}

impl Validating {
    /// What is found on a disk, by reading it where that is worth it.
    async fn read(
        &mut self,
        mut ready: Ready,
        below_is_read: bool,
        ahead: &mut Ahead,
    ) -> Result<Vec<Finding>, Failure> {
        let (at, tools, to_read, failed) = (&ready.at, &self.tools, ready.to_read.take(), ready.failed.take());
        let read = match (failed, to_read) {
            (Some(failure), _) => Err(failure),
            (None, Some(to_read)) => {
                let reading = at.read(tools, to_read, below_is_read, &mut self.pace);
                ahead.meanwhile(or_broken_off(&self.broken_off, reading)).await
            }
            (None, None) => Ok(Vec::new()),
        };
        let mut found = std::mem::take(&mut ready.found);
        // Before their places: nothing of it may be open there.
        ready.leave().await;
        found.extend(read?);
        Ok(found)
    }

    fn add(&mut self, found: Vec<Finding>) {
        found.into_iter().for_each(|finding| self.findings.add(finding));
    }

    /// Answers the instances that are looked at, having measured them.
    async fn select(&mut self) -> Result<Vec<InstanceId>, Failure> {
        let (root, wanted, telling) = (self.tools.root.clone(), self.tools.wanted.clone(), self.tools.telling.clone());
        let selecting = move || {
            let selected = select(&root, &wanted)?;
            let measured = measure(&root, &wanted, &selected.instances, &telling)?;
            Ok((selected, measured))
        };
        let (selected, measured) = blocking(selecting).await?;
        self.add(selected.findings);
        self.tools.telling.expect(match self.tools.wanted.level >= ValidationLevel::Structure {
            true => measured.bytes,
            false => count(selected.instances.len()),
        });
        self.tools.measured = Arc::new(measured);
        Ok(selected.instances)
    }

    /// What can be said of an instance by its names and manifests.
    async fn judge(&self, instance: InstanceId) -> Result<Judged, Failure> {
        let (root, telling) = (self.tools.root.clone(), self.tools.telling.clone());
        let (repository, now_seconds) = (self.repository, self.now_seconds);
        blocking(move || judge_instance(&root, repository, instance, now_seconds, &telling)).await
    }

    fn end(self) -> Reply {
        self.tools.telling.finish();
        let Measured { mut sizes, .. } = Arc::unwrap_or_clone(self.tools.measured);
        sizes.sort_by_key(|size| (std::cmp::Reverse(size.file_bytes), size.instance_id));
        let sizes_left_out = sizes.len().saturating_sub(INSTANCES_TOLD_MAX);
        sizes.truncate(INSTANCES_TOLD_MAX);
        let [errors, warnings, notes] =
            [Severity::Error, Severity::Warning, Severity::Note].map(|severity| self.findings.count(severity));
        let findings = self.findings.into_worst_first();
        let validation = Validation {
            level: self.tools.wanted.level,
            instances: self.instances,
            backups: self.backups,
            bytes_read: self.tools.telling.bytes_read(),
            capacity_bytes: self.room.capacity_bytes,
            used_bytes: self.room.used_bytes,
            free_bytes: self.room.free_bytes,
            clock_ahead_seconds: self.clock_ahead_seconds,
            instance_sizes: sizes,
            instance_sizes_left_out: count(sizes_left_out),
            errors,
            warnings,
            notes,
            findings_left_out: (errors + warnings + notes).saturating_sub(count(findings.len())),
            findings,
        };
        Reply::Validated { validation: Box::new(validation), left_overs: self.left_overs }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
