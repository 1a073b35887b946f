//! The requests of a validation: the repository opened only to be looked at, the look itself, and the removal of what is dead.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::places::{Places, unbind};
use super::{SHARE, SOCKETS, Session, left_overs, or_broken_off, out_of_order};
use crate::failure::Failure;
use crate::model::id::{InstanceId, RepositoryId};
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
use crate::mover::validate::examine::{DiskAt, Means, Tools};
use crate::mover::validate::facts::InstanceFacts;
use crate::mover::validate::hidden::{Hidden, Looked, add_news, must_be_found, not_there, to_be_told};
use crate::mover::validate::known::{Judged, has_left_overs, judge_instance};
use crate::mover::validate::reach::{Reached, reach};
use crate::mover::validate::select::{Measured, disks, is_read, measure, select, weight};
use crate::mover::validate::superseded::{Kept, take_back};
use crate::mover::validate::telling::Telling;
use crate::mover::validate::{links, must_be_there};

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
    means: Means,
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
        self.leave_looked().await;
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
            means: Means {
                pace: Pace::new(wanted.max_bytes_per_second),
                sockets: Sockets::new(self.directory.join(SOCKETS)),
            },
            tools: Tools { root, wanted: Arc::new(wanted), measured: Arc::default(), telling },
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
        &mut self,
        run: &mut Validating,
        facts: &Arc<InstanceFacts>,
        mut found: Vec<Finding>,
        only: Option<&Hidden>,
        broken_off: &CancellationToken,
    ) -> Result<Looked, Failure> {
        let wanted = run.tools.wanted.clone();
        let (mut damaged, mut hidden, mut whole) = (links::damaged(&found), Hidden::new(), BTreeSet::new());
        for (backup, disk) in disks(facts, &wanted).into_iter().filter(|_| wanted.level >= ValidationLevel::Structure) {
            let at = (backup, disk.target.clone());
            if only.is_some_and(|only| !only.contains_key(&at)) {
                continue;
            }
            run.tools.telling.go_on()?;
            if let Some(below) = links::damaged_below(facts, &damaged, backup, &disk.target) {
                hidden.insert(at, below);
                // There may be no end of such, and nothing else runs meanwhile.
                tokio::task::yield_now().await;
            } else if !links::is_damaged(&damaged, backup, &disk.target) {
                let below = links::roots_below(facts, backup, &disk.target);
                let based_on = disk.based_on.as_ref().map(|based_on| (based_on.backup_id, disk.target.clone()));
                let below_is_read = based_on.is_some_and(|based_on| whole.contains(&based_on));
                let disk_at = DiskAt { instance: facts.instance, backup, disk: disk.clone(), below, below_is_read };
                let mut more = self.examine(run, disk_at, broken_off).await?;
                if more.is_empty() && is_read(&wanted, backup) {
                    whole.insert(at);
                }
                // Hashes that are missing were told as a file that is.
                let is_told = |path: &str| found.iter().any(|before: &Finding| before.path == path);
                more.retain(|finding| finding.code != FindingCode::BlocksDamaged || !is_told(&finding.path));
                damaged.append(&mut links::damaged(&more));
                found.extend(more);
            }
            if only.is_none() {
                run.tools.telling.pass(weight(disk, &wanted, backup));
            }
        }
        let (root, telling, looked) = (run.tools.root.clone(), run.tools.telling.clone(), facts.clone());
        let kept = blocking(move || take_back(&root, &looked, found, &telling));
        let Kept { found, changed } = or_broken_off(broken_off, kept).await?;
        hidden.retain(|_, below| changed.contains(below));
        let of_changed = disks(facts, &wanted).into_iter().filter(|(backup, _)| changed.contains(backup));
        hidden.extend(of_changed.map(|(backup, disk)| ((backup, disk.target.clone()), backup)));
        Ok(Looked { found, hidden })
    }

    async fn examine(
        &mut self,
        run: &mut Validating,
        at: DiskAt,
        broken_off: &CancellationToken,
    ) -> Result<Vec<Finding>, Failure> {
        let (root, opening) = (run.tools.root.clone(), at.clone());
        let opened = or_broken_off(broken_off, blocking(move || opening.open(&root))).await?;
        let (mut found, Some(opened)) = opened else { return Ok(opened.0) };
        let own = self.directory.clone();
        let links: Vec<_> = opened.links.iter().map(|link| (link.dir.clone(), link.image.clone())).collect();
        // Not broken off: what its thread binds after that, nobody would give up.
        let bound = move || {
            let mut places = Places::new(&own);
            let images: Vec<PathBuf> = links.iter().map(|(dir, image)| places.of(dir).join(image)).collect();
            places.bind().map(|pinned| (pinned, images))
        };
        let images = match blocking(bound).await {
            Ok((pinned, images)) => {
                self.looked = pinned;
                images
            }
            Err(failure) => {
                let finding = at.off_the_thread(&run.tools, failure, FindingCode::Unreadable);
                found.push(or_broken_off(broken_off, finding).await?);
                return Ok(found);
            }
        };
        let examined = or_broken_off(broken_off, at.examine(&run.tools, &opened, &images, &mut run.means)).await;
        // Before their places: nothing of it may be open there.
        drop(opened);
        self.leave_looked().await;
        found.extend(examined?);
        Ok(found)
    }

    /// Gives up the paths that were bound for tools.
    pub(super) async fn leave_looked(&mut self) {
        let pinned = std::mem::take(&mut self.looked);
        let leave = move || {
            unbind(pinned);
            Ok(())
        };
        if let Err(failure) = blocking(leave).await {
            tracing::warn!(failure = format!("{failure:#}"), "cannot give up the places of a validation");
        }
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
        let holder = (holder, self.seat.clone());
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

impl Validating {
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
