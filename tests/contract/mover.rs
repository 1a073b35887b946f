//! What both the real mover and its fake have to do: the same questions, put to each by a test of its own.

#[path = "deletion.rs"]
pub mod deletion;
#[path = "devices.rs"]
pub mod devices;
#[path = "images.rs"]
#[allow(dead_code)] // There are no images where the mover is tried on a directory.
pub mod images;
#[path = "new_files.rs"]
pub mod new_files;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore::failure::{Code, Failure};
use longshore::host::mover::{Mover, MoverName, Movers};
use longshore::model::id::{BackupId, InstallationId, InstanceId, JobId, RepositoryId};
use longshore::model::instance::{DiskSource, ImageFormat, PowerState};
use longshore::model::job::Quiesce;
use longshore::model::manifest::{
    Consistency, MadeBy, Manifest, ManifestDisk, Proof, QuiesceRecord, RecordFile, TransferUsed,
};
use longshore::model::repository::Repository;
use longshore::model::validation::{FindingCode, Validation, ValidationLevel};
use longshore::mover::protocol::{
    ByteSource, CopiedDisk, CopyDisk, LeaseHolder, PushTarget, Reply, Request, RestoredVolume, SealedFile, VolumePlace,
    WantedValidation,
};

/// Longer than anything here takes but a lease that has to be watched.
pub const SOON: Duration = Duration::from_secs(120);
/// Longest wait for something to become true.
const EVENTUALLY: Duration = Duration::from_secs(30);

/// A world with an empty repository in it, and eyes to look at it.
pub trait World {
    /// Where movers come from.
    fn movers(&self) -> &dyn Movers;
    /// The repository.
    fn repository(&self) -> Repository;
    /// A disk that can be copied.
    fn disk(&self) -> CopyDisk;
    /// Names of all directories that are being written, or were.
    fn staging(&self) -> Vec<String>;
    /// All published backups.
    fn published(&self) -> Vec<Manifest>;
    /// The repository is mounted by some mover, or a mover is alive.
    fn is_busy(&self) -> bool;
    /// A volume of a stopped instance, made new, that holds something else than the disk.
    fn volume(&self) -> PathBuf;
    /// What stands at a path beside that volume.
    fn stands(&self, path: &Path) -> Stands;
    /// Somebody puts a file at a path that is another than any before and holds what the volume does.
    fn put(&self, volume: &Path, path: &Path);
    /// Somebody gives a file another name.
    fn rename(&self, from: &Path, to: &Path);
    /// Somebody has the volume open to write until that is dropped.
    fn use_volume(&self, path: &Path) -> Box<dyn std::any::Any>;
    /// A backup is changed on the share.
    fn damage(&self, manifest: &Manifest);
    /// Puts an incremental backup on the share that is based on that one, with the next number.
    fn put_child(&self, parent: &Manifest) -> Manifest;
    /// Gives a backup a pin, or takes it away.
    fn pin(&self, manifest: &Manifest, pinned: bool);
}

/// What stands at the name of a volume.
#[derive(Debug, PartialEq, Eq)]
pub enum Stands {
    Nothing,
    /// What [`World::volume`] has made.
    Old,
    /// What [`World::disk`] holds.
    Restored,
}

/// A mover with the repository open.
pub async fn opened(world: &dyn World, name: &str) -> Box<dyn Mover> {
    let mut mover = started(world, name).await;
    let request = Request::Open { repository: world.repository(), same_device_ok: true, need_bytes: 1, writer: None };
    assert!(matches!(mover.ask(request, SOON).await.unwrap(), Reply::Opened { free_bytes: 1.., .. }));
    mover
}

pub async fn started(world: &dyn World, name: &str) -> Box<dyn Mover> {
    world.movers().start(&name.parse::<MoverName>().unwrap()).await.unwrap()
}

pub fn lease(instance: InstanceId) -> Request {
    let holder =
        LeaseHolder { host: "kvm-07".parse().unwrap(), installation: InstallationId::draw(), job: "j/1".into() };
    Request::Lease { instance, holder }
}

pub fn stage(instance: InstanceId, backup: BackupId) -> Request {
    Request::Stage { instance, backup, suffix: "installation.1".into() }
}

pub fn record() -> Request {
    Request::Record { file: "domain.xml".into(), content: b"<domain/>".to_vec() }
}

pub async fn done(mover: &mut Box<dyn Mover>, request: Request) {
    let word = request.word();
    let reply = mover.ask(request, SOON).await.unwrap_or_else(|failure| panic!("{word}: {failure:#}"));
    assert!(matches!(reply, Reply::Done | Reply::Leased { .. } | Reply::Closed { .. }), "{word}: {reply:?}");
}

pub async fn refused(mover: &mut Box<dyn Mover>, request: Request) -> Failure {
    let word = request.word();
    match mover.ask(request, SOON).await {
        Ok(reply) => panic!("{word} was not refused: {reply:?}"),
        Err(failure) => failure,
    }
}

pub async fn eventually(what: &str, check: impl Fn() -> bool) {
    let began = Instant::now();
    while !check() {
        assert!(began.elapsed() < EVENTUALLY, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Lease, staging, a record, the disk, compared and sealed; ready to be published.
pub async fn sealed(world: &dyn World, mover: &mut Box<dyn Mover>, instance: InstanceId, backup: BackupId) -> Manifest {
    done(mover, lease(instance)).await;
    done(mover, stage(instance, backup)).await;
    done(mover, record()).await;
    let disk = world.disk();
    let reply = mover.ask(Request::Copy { disks: vec![disk.clone()] }, SOON).await.unwrap();
    let Reply::Copied { disks: copied, warnings } = reply else { panic!("{reply:?}") };
    assert_eq!((copied.len(), warnings), (1, Vec::new()));
    assert!(copied[0].target == disk.target && copied[0].virtual_bytes > 0, "{copied:?}");
    let progress = *mover.progress().borrow();
    assert!(progress.total_bytes > 0 && progress.done_bytes == progress.total_bytes, "{progress:?}");
    done(mover, Request::Compare).await;
    let reply = mover.ask(Request::Seal, SOON).await.unwrap();
    let Reply::Sealed { files } = reply else { panic!("{reply:?}") };
    manifest(world.repository().id, instance, backup, &copied, &files)
}

/// Answers the hash of what `write` has written to the image of a disk of `virtual_bytes` in the place that it is given.
pub async fn what_is_shown_to_the_host_is_written_inspected_and_taken_away(
    world: &dyn World,
    place: &Path,
    virtual_bytes: u64,
    write: impl FnOnce(&Path),
) -> String {
    std::fs::create_dir(place).unwrap();
    let mut mover = opened(world, "push").await;
    let (instance, backup) = (InstanceId::draw(), BackupId::draw());
    done(&mut mover, lease(instance)).await;
    done(&mut mover, stage(instance, backup)).await;
    assert_eq!(
        refused(&mut mover, Request::Inspect { changes_of: Vec::new(), written_bytes: None }).await.code,
        Code::Internal
    );
    let disks = vec![PushTarget { target: "vda".parse().unwrap(), virtual_bytes, base: None }];
    let request = Request::Expose { place: place.to_owned(), disks, writer: std::process::id() };
    assert_eq!(mover.ask(request, SOON).await.unwrap(), Reply::Exposed { unusable: Vec::new() });
    write(place);
    for _twice in 0..2 {
        world.movers().unmount(place).await.unwrap();
        assert!(!place.exists());
    }
    let reply = mover.ask(Request::Inspect { changes_of: Vec::new(), written_bytes: None }, SOON).await.unwrap();
    let Reply::Copied { disks: copied, warnings } = reply else { panic!("{reply:?}") };
    assert_eq!((copied.len(), copied[0].virtual_bytes, warnings), (1, virtual_bytes, Vec::new()));
    assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::Internal, "there is nothing to compare with");
    let reply = mover.ask(Request::Seal, SOON).await.unwrap();
    let Reply::Sealed { files } = reply else { panic!("{reply:?}") };
    let manifest = manifest(world.repository().id, instance, backup, &copied, &files);
    publish(&mut mover, &manifest).await;
    assert_eq!(world.published().len(), 1);
    mover.stop().await.unwrap();
    copied[0].content_root.clone()
}

pub async fn publish(mover: &mut Box<dyn Mover>, manifest: &Manifest) -> u64 {
    let reply = mover.ask(Request::Publish { manifest: Box::new(manifest.clone()) }, SOON).await.unwrap();
    let Reply::Published { number, .. } = reply else { panic!("{reply:?}") };
    number
}

/// What a worker would write of that.
pub fn manifest(
    repository: RepositoryId,
    instance: InstanceId,
    backup: BackupId,
    copied: &[CopiedDisk],
    files: &[SealedFile],
) -> Manifest {
    let bytes = |name: &str| files.iter().find(|file| file.file == name).map_or(0, |file| file.bytes);
    let disk = |disk: &CopiedDisk| ManifestDisk {
        target: disk.target.clone(),
        serial: None,
        source: DiskSource::File { path: "/images/web.qcow2".into(), format: ImageFormat::Qcow2 },
        pool_volume: None,
        file: format!("{}.qcow2", disk.target),
        virtual_bytes: disk.virtual_bytes,
        file_bytes: bytes(&format!("{}.qcow2", disk.target)),
        data_bytes: disk.data_bytes,
        blocks_file: format!("{}.blocks", disk.target),
        content_root: disk.content_root.clone(),
        based_on: disk.based_on.clone(),
        full_reason: disk.full_reason.clone(),
        checkpoint: None,
    };
    let record = |file: &SealedFile| {
        let blake3 = file.blake3.clone()?;
        (!file.file.ends_with(".blocks")).then(|| RecordFile { file: file.file.clone(), bytes: file.bytes, blake3 })
    };
    Manifest {
        format: Manifest::FORMAT,
        backup_id: backup,
        number: 0,
        repository_id: repository,
        instance_id: instance,
        instance_name: "web".parse().unwrap(),
        instance_state: PowerState::Running,
        job_id: JobId::draw(),
        run: 1,
        attempt: 1,
        transfer: TransferUsed::Stopped,
        taken_at: jiff::Timestamp::UNIX_EPOCH,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
        quiesce: QuiesceRecord {
            requested: Quiesce::Off,
            consistency: Consistency::Crash,
            not_frozen: Vec::new(),
            frozen_ms: None,
            reason: None,
        },
        guest: None,
        verification: Proof::Compared,
        disks: copied.iter().map(disk).collect(),
        skipped_disks: Vec::new(),
        records: files.iter().filter_map(record).collect(),
        made_by: MadeBy {
            host: "kvm-07".parse().unwrap(),
            longshore: "0.1.0".into(),
            libvirt: "11.3.0".into(),
            qemu: "10.0.0".into(),
        },
        labels: Default::default(),
        warnings: Vec::new(),
    }
}

pub async fn backups_are_published_in_order_and_leave_nothing(world: &dyn World) {
    let instance = InstanceId::draw();
    for number in 1..=2 {
        let mut mover = opened(world, "publishes").await;
        let manifest = sealed(world, &mut mover, instance, BackupId::draw()).await;
        assert_eq!(publish(&mut mover, &manifest).await, number);
        assert_eq!(publish(&mut mover, &manifest).await, number, "asked again it is the same one");
        done(&mut mover, Request::Discard).await;
        let reply = mover.ask(Request::Latest { instance }, SOON).await.unwrap();
        let latest = Manifest { number, ..manifest.clone() };
        assert_eq!(reply, Reply::Latest { backups: vec![latest], unreadable: 0 });
        let reply = mover.ask(Request::Latest { instance: InstanceId::draw() }, SOON).await.unwrap();
        assert_eq!(reply, Reply::Latest { backups: Vec::new(), unreadable: 0 });
        done(&mut mover, Request::Release).await;
        done(&mut mover, Request::Close).await;
        mover.stop().await.unwrap();
        mover.stop().await.unwrap();
        let published = world.published();
        assert_eq!(published.len() as u64, number);
        assert!(published.contains(&Manifest { number, ..manifest }), "{published:?}");
        assert!(world.staging().is_empty(), "{:?}", world.staging());
        assert!(!world.is_busy());
    }
}

pub async fn a_discarded_backup_leaves_nothing(world: &dyn World) {
    let instance = InstanceId::draw();
    let mut mover = opened(world, "discards").await;
    done(&mut mover, Request::Discard).await;
    sealed(world, &mut mover, instance, BackupId::draw()).await;
    assert_eq!(world.staging().len(), 1);
    done(&mut mover, Request::Discard).await;
    done(&mut mover, Request::Discard).await;
    assert!(world.staging().is_empty() && world.published().is_empty());
    done(&mut mover, Request::Release).await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

pub async fn what_is_not_the_repository_that_was_meant_is_refused(world: &dyn World) {
    let right = world.repository();
    let other_id = Repository { id: RepositoryId::draw(), ..right.clone() };
    let elsewhere = Repository { address: "/nowhere/at/all".into(), ..right.clone() };
    let mut mover = started(world, "opens").await;
    for (repository, need_bytes, code) in [
        (other_id, 0, Code::RepositoryIdentityMismatch),
        (elsewhere, 0, Code::RepositoryNotFound),
        (right.clone(), u64::MAX, Code::RepositoryFull),
    ] {
        let request = Request::Open { repository, same_device_ok: true, need_bytes, writer: None };
        assert_eq!(refused(&mut mover, request).await.code, code);
    }
    let request = Request::Open { repository: right, same_device_ok: false, need_bytes: 0, writer: None };
    assert_eq!(refused(&mut mover, request).await.code, Code::RepositoryNotSeparate);
    assert_eq!(refused(&mut mover, lease(InstanceId::draw())).await.code, Code::Internal, "nothing is open");
    mover.stop().await.unwrap();
}

pub async fn a_lease_has_one_holder(world: &dyn World) {
    let instance = InstanceId::draw();
    let (mut one, mut two) = (opened(world, "holds-1").await, opened(world, "holds-2").await);
    let first = one.ask(lease(instance), SOON).await.unwrap();
    assert_eq!(first, Reply::Leased { number: 1 });
    assert_eq!(one.ask(lease(instance), SOON).await.unwrap(), first, "asked again it is the same one");
    assert_eq!(refused(&mut two, lease(instance)).await.code, Code::LeaseHeld);
    assert_eq!(refused(&mut two, stage(instance, BackupId::draw())).await.code, Code::Internal);
    done(&mut one, Request::Release).await;
    assert_eq!(two.ask(lease(instance), SOON).await.unwrap(), Reply::Leased { number: 2 });
    done(&mut two, Request::Release).await;
    one.stop().await.unwrap();
    two.stop().await.unwrap();
}

pub async fn a_published_backup_is_neither_staged_nor_published_again(world: &dyn World) {
    let (instance, backup) = (InstanceId::draw(), BackupId::draw());
    let mut mover = opened(world, "first").await;
    let first = sealed(world, &mut mover, instance, backup).await;
    let number = publish(&mut mover, &first).await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();

    let mut mover = opened(world, "second").await;
    assert_eq!(publish(&mut mover, &first).await, number, "the same attempt is told that it has published");
    let second = Manifest { attempt: 2, ..first.clone() };
    let refusal = refused(&mut mover, Request::Publish { manifest: Box::new(second) }).await;
    assert_eq!(refusal.code, Code::Internal, "another attempt has to stage first");
    done(&mut mover, lease(instance)).await;
    assert_eq!(refused(&mut mover, stage(instance, backup)).await.code, Code::BackupExists);
    let found = mover.ask(Request::Find { instance, backup }, SOON).await.unwrap();
    assert_eq!(found, Reply::Found { manifest: Box::new(Manifest { number, ..first }) });
    let other = Request::Find { instance, backup: BackupId::draw() };
    assert_eq!(refused(&mut mover, other).await.code, Code::BackupNotFound);
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
    assert_eq!(world.published().len(), 1);
}

pub async fn a_manifest_that_names_what_is_not_there_is_not_published(world: &dyn World) {
    let instance = InstanceId::draw();
    let mut mover = opened(world, "lies").await;
    let manifest = sealed(world, &mut mover, instance, BackupId::draw()).await;
    let mut short = manifest.clone();
    short.disks[0].file_bytes += 1;
    let mut missing = manifest.clone();
    missing.records.push(RecordFile { file: "nvram".into(), bytes: 1, blake3: "00".into() });
    for wrong in [short, missing] {
        let refusal = refused(&mut mover, Request::Publish { manifest: Box::new(wrong) }).await;
        assert_eq!(refusal.code, Code::RepositoryIo);
    }
    let stranger = Manifest { backup_id: BackupId::draw(), ..manifest.clone() };
    assert_eq!(refused(&mut mover, Request::Publish { manifest: Box::new(stranger) }).await.code, Code::Internal);
    assert_eq!(publish(&mut mover, &manifest).await, 1, "the right one still can be");
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

pub async fn what_was_not_copied_is_not_sealed(world: &dyn World) {
    let mut mover = opened(world, "seals").await;
    let instance = InstanceId::draw();
    done(&mut mover, lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    done(&mut mover, record()).await;
    assert_eq!(refused(&mut mover, Request::Seal).await.code, Code::Internal);
    done(&mut mover, Request::Discard).await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

/// A volume whose storage asks for a key is not looked for without it.
pub async fn a_volume_is_not_read_without_its_key(world: &dyn World) {
    let mut mover = opened(world, "locked").await;
    let instance = InstanceId::draw();
    done(&mut mover, Request::Keys { keys: Vec::new() }).await;
    done(&mut mover, lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    let source = r#"{"network":{"protocol":"rbd","name":"pool/image","access":{"secret":{"usage":"client.nobody"}}}}"#;
    let source = ByteSource::Volume { source: serde_json::from_str(source).unwrap(), bitmap: None };
    let failure = refused(&mut mover, Request::Copy { disks: vec![CopyDisk { source, ..world.disk() }] }).await;
    assert_eq!(failure.code, Code::Internal);
    assert!(failure.text.contains("client.nobody"), "{failure:#}");
    done(&mut mover, Request::Discard).await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

pub async fn records_have_plain_names(world: &dyn World) {
    let instance = InstanceId::draw();
    let mut mover = opened(world, "records").await;
    assert_eq!(refused(&mut mover, record()).await.code, Code::Internal, "nothing is staged");
    done(&mut mover, lease(instance)).await;
    done(&mut mover, stage(instance, BackupId::draw())).await;
    for file in ["", "..", "../x", "a/b", "manifest.json", ".x"] {
        let request = Request::Record { file: file.into(), content: Vec::new() };
        assert_eq!(refused(&mut mover, request).await.code, Code::Internal, "{file}");
    }
    done(&mut mover, record()).await;
    done(&mut mover, record()).await;
    done(&mut mover, Request::Discard).await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

pub async fn a_dropped_mover_is_gone_and_a_stopped_one_answers_no_more(world: &dyn World) {
    let mut mover = opened(world, "dropped").await;
    let lost = mover.lost().unwrap();
    assert!(mover.lost().is_none());
    drop(mover);
    eventually("the dropped mover is gone", || !world.is_busy()).await;
    if let Ok(failure) = lost.await {
        assert_eq!(failure.code, Code::MoverDied);
    }
    let mut mover = opened(world, "dropped").await;
    mover.stop().await.unwrap();
    assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::MoverDied);
    assert!(!world.is_busy());
}

/// What a restore of the backup makes at `volume`, which stands there.
pub fn restored(manifest: &Manifest, volume: &Path) -> RestoredVolume {
    let disk = &manifest.disks[0];
    let beside = |end: &str| volume.with_extension(end);
    RestoredVolume {
        disk: disk.target.clone(),
        virtual_bytes: disk.virtual_bytes,
        content_root: disk.content_root.clone(),
        format: ImageFormat::Qcow2,
        place: VolumePlace::File { volume: volume.to_owned(), fresh: beside("fresh"), previous: beside("previous") },
    }
}

/// From the beginning, or from wherever it was cut off.
pub fn exchange(volumes: &[RestoredVolume]) -> Request {
    Request::Exchange { volumes: volumes.to_vec(), only_go_on: false }
}

pub fn restore(manifest: &Manifest, volumes: &[RestoredVolume]) -> Request {
    Request::Restore {
        instance: manifest.instance_id,
        backup: manifest.backup_id,
        volumes: volumes.to_vec(),
        keep_previous: false,
    }
}

/// A mover that holds the lease of the instance of a backup that it has published.
pub async fn published(world: &dyn World, name: &str) -> (Box<dyn Mover>, Manifest) {
    let mut mover = opened(world, name).await;
    let mut manifest = sealed(world, &mut mover, InstanceId::draw(), BackupId::draw()).await;
    manifest.number = publish(&mut mover, &manifest).await;
    (mover, manifest)
}

async fn copied_whole(mover: &mut Box<dyn Mover>, manifest: &Manifest, volumes: &[RestoredVolume]) {
    let reply = mover.ask(restore(manifest, volumes), SOON).await.unwrap();
    let Reply::Copied { disks, .. } = reply else { panic!("{reply:?}") };
    let found: Vec<_> = disks.iter().map(|disk| (&disk.target, disk.virtual_bytes, &disk.content_root)).collect();
    let wanted: Vec<_> = volumes.iter().map(|one| (&one.disk, one.virtual_bytes, &one.content_root)).collect();
    assert_eq!(found, wanted);
    let progress = *mover.progress().borrow();
    assert!(progress.total_bytes > 0 && progress.done_bytes == progress.total_bytes, "{progress:?}");
}

pub async fn a_published_backup_takes_the_place_of_the_volume(world: &dyn World) {
    let volume = world.volume();
    let (mut mover, manifest) = published(world, "restores").await;
    let volumes = [restored(&manifest, &volume)];
    copied_whole(&mut mover, &manifest, &volumes).await;
    assert_eq!(world.stands(&volume), Stands::Old);
    done(&mut mover, Request::Compare).await;
    // What comes now needs neither the lease nor the repository, nor the mover that has restored.
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
    for name in ["exchanges", "exchanges-again"] {
        let mut mover = started(world, name).await;
        for _twice in 0..2 {
            done(&mut mover, exchange(&volumes)).await;
            done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
            assert_eq!(world.stands(&volume), Stands::Restored);
            assert_eq!(world.stands(volumes[0].place.previous().unwrap()), Stands::Old);
            assert_eq!(world.stands(volumes[0].place.fresh().unwrap()), Stands::Nothing);
        }
        mover.stop().await.unwrap();
    }
    let mut mover = started(world, "removes").await;
    for _twice in 0..2 {
        done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
        assert_eq!(world.stands(&volume), Stands::Restored);
        assert_eq!(world.stands(volumes[0].place.previous().unwrap()), Stands::Nothing);
    }
    mover.stop().await.unwrap();
    assert!(!world.is_busy());
}

pub fn validation(level: ValidationLevel) -> WantedValidation {
    WantedValidation { level, instances: Vec::new(), backup: None, max_bytes_per_second: None, findings_max: 100 }
}

/// A mover with the repository open to be looked at.
pub async fn looking(world: &dyn World, name: &str) -> Box<dyn Mover> {
    let mut mover = started(world, name).await;
    let request = Request::OpenToLook { repository: world.repository(), same_device_ok: true };
    assert_eq!(mover.ask(request, SOON).await.unwrap(), Reply::Done);
    mover
}

pub async fn validated(mover: &mut Box<dyn Mover>, wanted: WantedValidation) -> (Validation, Vec<InstanceId>) {
    match mover.ask(Request::Validate { wanted: Box::new(wanted) }, SOON).await {
        Ok(Reply::Validated { validation, left_overs }) => (*validation, left_overs),
        other => panic!("validate: {other:?}"),
    }
}

/// What was found, but for what is so of this machine alone.
pub fn codes(validation: &Validation) -> Vec<FindingCode> {
    let of_this_machine = |code: &FindingCode| matches!(code, FindingCode::LittleRoom | FindingCode::NoDirectoryFsync);
    validation.findings.iter().map(|finding| finding.code).filter(|code| !of_this_machine(code)).collect()
}

pub async fn a_repository_is_looked_at_and_its_damage_is_named(world: &dyn World) {
    let (mut mover, manifest) = published(world, "publishes").await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
    let mut mover = looking(world, "looks").await;
    for level in
        [ValidationLevel::Reachable, ValidationLevel::Catalogue, ValidationLevel::Structure, ValidationLevel::Content]
    {
        let (found, left_overs) = validated(&mut mover, validation(level)).await;
        assert_eq!((codes(&found), found.level, left_overs), (Vec::new(), level, Vec::new()), "{found:?}");
        assert_eq!(found.backups, u64::from(level > ValidationLevel::Reachable));
        assert!(found.capacity_bytes >= found.free_bytes && found.free_bytes > 0);
    }
    world.damage(&manifest);
    let (found, _) = validated(&mut mover, validation(ValidationLevel::Catalogue)).await;
    assert_eq!(codes(&found), []);
    let (found, _) = validated(&mut mover, validation(ValidationLevel::Content)).await;
    assert_eq!((codes(&found), found.errors), (vec![FindingCode::ContentDiffers], 1));
    let finding = found.findings.iter().find(|finding| finding.code == FindingCode::ContentDiffers).unwrap();
    assert_eq!((finding.instance_id, finding.backup_id), (Some(manifest.instance_id), Some(manifest.backup_id)));
    assert_eq!(finding.disk.as_ref(), Some(&manifest.disks[0].target));
    assert!(finding.path.ends_with("/vda.qcow2") && finding.offset.is_some(), "{finding:?}");
    let progress = *mover.progress().borrow();
    assert_eq!(progress.done_bytes, progress.total_bytes);

    let missing = InstanceId::draw();
    let elsewhere = WantedValidation { instances: vec![missing], ..validation(ValidationLevel::Content) };
    let (found, _) = validated(&mut mover, elsewhere).await;
    assert_eq!((codes(&found), found.instances, found.errors), (vec![FindingCode::InstanceMissing], 0, 1));
    assert!(found.findings.iter().any(|finding| finding.instance_id == Some(missing)), "{found:?}");
    let only = |backup| WantedValidation { backup: Some(backup), ..validation(ValidationLevel::Content) };
    let (found, _) = validated(&mut mover, only(manifest.backup_id)).await;
    assert_eq!(codes(&found), [FindingCode::ContentDiffers]);
    let unknown = Request::Validate { wanted: Box::new(only(BackupId::draw())) };
    assert_eq!(refused(&mut mover, unknown).await.code, Code::BackupNotFound);
    mover.stop().await.unwrap();
}

pub async fn what_is_dead_is_swept_and_what_is_alive_is_left(world: &dyn World) {
    let instance = InstanceId::draw();
    let mut writes = opened(world, "writes").await;
    done(&mut writes, lease(instance)).await;
    done(&mut writes, stage(instance, BackupId::draw())).await;
    let mut mover = looking(world, "sweeps").await;
    let holder = || match lease(instance) {
        Request::Lease { holder, .. } => holder,
        _ => unreachable!(),
    };
    let (found, left_overs) = validated(&mut mover, validation(ValidationLevel::Catalogue)).await;
    assert_eq!((codes(&found), left_overs), (vec![FindingCode::StagingInUse], Vec::new()));
    let failure = refused(&mut mover, Request::Sweep { instance, holder: holder() }).await;
    assert_eq!(failure.code, Code::LeaseHeld);
    assert_eq!(world.staging().len(), 1);

    // It lets go without having discarded what it wrote.
    done(&mut writes, Request::Release).await;
    writes.stop().await.unwrap();
    let (found, left_overs) = validated(&mut mover, validation(ValidationLevel::Catalogue)).await;
    assert_eq!((codes(&found), left_overs), (vec![FindingCode::StagingLeftOver], vec![instance]));
    let names = world.staging();
    let swept = mover.ask(Request::Sweep { instance, holder: holder() }, SOON).await.unwrap();
    assert_eq!(swept, Reply::Swept { removed: names });
    assert!(world.staging().is_empty());
    let again = mover.ask(Request::Sweep { instance, holder: holder() }, SOON).await.unwrap();
    assert_eq!(again, Reply::Swept { removed: Vec::new() });
    let (found, left_overs) = validated(&mut mover, validation(ValidationLevel::Catalogue)).await;
    assert_eq!((codes(&found), left_overs), (Vec::new(), Vec::new()));
    mover.stop().await.unwrap();
}

pub async fn new_volumes_that_are_not_wanted_are_removed_and_the_old_ones_stay(world: &dyn World) {
    let volume = world.volume();
    let (mut mover, manifest) = published(world, "removes").await;
    let volumes = [restored(&manifest, &volume)];
    for _twice in 0..2 {
        copied_whole(&mut mover, &manifest, &volumes).await;
        copied_whole(&mut mover, &manifest, &volumes).await;
        for _twice in 0..2 {
            done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
            done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
            assert_eq!(world.stands(&volume), Stands::Old);
            assert_eq!(world.stands(volumes[0].place.fresh().unwrap()), Stands::Nothing);
            assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::Internal, "it is no more");
        }
    }
    let failure = refused(&mut mover, exchange(&volumes)).await;
    assert_eq!(failure.code, Code::Internal, "{failure:#}");
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}

pub async fn what_cannot_be_restored_is_refused_and_nothing_is_made(world: &dyn World) {
    let volume = world.volume();
    let (mut mover, manifest) = published(world, "refuses").await;
    let good = restored(&manifest, &volume);
    let unknown = Manifest { backup_id: BackupId::draw(), ..manifest.clone() };
    let other = |change: &dyn Fn(&mut RestoredVolume)| {
        let mut wanted = good.clone();
        change(&mut wanted);
        wanted
    };
    let elsewhere = other(&|wanted| {
        let VolumePlace::File { fresh, .. } = &mut wanted.place else { unreachable!() };
        *fresh = "/elsewhere/fresh".into();
    });
    for (of, wanted, code) in [
        (&unknown, good.clone(), Code::BackupNotFound),
        (&manifest, other(&|wanted| wanted.disk = "vdz".parse().unwrap()), Code::DiskNotFound),
        (&manifest, other(&|wanted| wanted.content_root = "00".repeat(32)), Code::BackupDamaged),
        (&manifest, other(&|wanted| wanted.virtual_bytes += 512), Code::BackupDamaged),
        (&manifest, elsewhere, Code::Internal),
        (&manifest, restored(&manifest, &volume.with_extension("missing")), Code::VolumeIo),
    ] {
        let failure = refused(&mut mover, restore(of, &[wanted])).await;
        assert_eq!(failure.code, code, "{failure:#}");
    }
    world.damage(&manifest);
    let failure = refused(&mut mover, restore(&manifest, std::slice::from_ref(&good))).await;
    assert_eq!(failure.code, Code::BackupDamaged, "{failure:#}");
    assert_eq!(refused(&mut mover, Request::Compare).await.code, Code::Internal, "nothing was restored");
    done(&mut mover, Request::RemoveFresh { volumes: vec![good.clone()] }).await;
    assert_eq!((world.stands(&volume), world.stands(good.place.fresh().unwrap())), (Stands::Old, Stands::Nothing));
    done(&mut mover, Request::Release).await;
    let failure = refused(&mut mover, restore(&manifest, &[good])).await;
    assert_eq!(failure.code, Code::Internal, "the lease is given back");
    mover.stop().await.unwrap();
}

pub async fn a_volume_that_is_in_use_is_neither_restored_nor_exchanged(world: &dyn World) {
    let volume = world.volume();
    let (mut mover, manifest) = published(world, "in-use").await;
    let volumes = [restored(&manifest, &volume)];
    let user = world.use_volume(&volume);
    assert_eq!(refused(&mut mover, restore(&manifest, &volumes)).await.code, Code::InUseElsewhere);
    drop(user);
    copied_whole(&mut mover, &manifest, &volumes).await;
    let user = world.use_volume(&volume);
    for _twice in 0..2 {
        let failure = refused(&mut mover, exchange(&volumes)).await;
        assert_eq!(failure.code, Code::InUseElsewhere, "{failure:#}");
        assert_eq!(
            (world.stands(&volume), world.stands(volumes[0].place.fresh().unwrap())),
            (Stands::Old, Stands::Restored)
        );
    }
    drop(user);
    done(&mut mover, exchange(&volumes)).await;
    assert_eq!(world.stands(&volume), Stands::Restored);
    done(&mut mover, Request::RemovePrevious { volumes: volumes.to_vec() }).await;
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
}
