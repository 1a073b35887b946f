//! What a look at a repository finds, on real images: each kind of damage is named where it is, and nothing else is.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use longshore::failure::Code;
use longshore::host::mover::Mover;
use longshore::model::id::{BackupId, InstanceId};
use longshore::model::manifest::{BasedOn, ChangesFoundBy, Manifest};
use longshore::model::validation::{Finding, FindingCode, Severity, Validation, ValidationLevel};
use longshore::mover::image::blocks::{BLOCK_BYTES, Blocks};
use longshore::mover::protocol::{Reply, Request, WantedValidation};
use longshore::mover::share;
use nix::mount::MsFlags;

use super::contract::{SOON, World, codes, done, looking, opened, publish, sealed, validated, validation};
use super::volumes::{flip, tool};
use super::{DISK_BYTES, Real, small_file_system};

const LEVELS: [ValidationLevel; 4] =
    [ValidationLevel::Reachable, ValidationLevel::Catalogue, ValidationLevel::Structure, ValidationLevel::Content];

/// A repository with a full backup of one instance and two incremental ones on top of it.
struct Chained {
    real: Real,
    instance: InstanceId,
    /// Oldest first.
    backups: Vec<Manifest>,
}

impl Chained {
    async fn new() -> Self {
        let real = Real::new();
        let mut mover = opened(&real, "publishes").await;
        let instance = InstanceId::draw();
        let full = sealed(&real, &mut mover, instance, BackupId::draw()).await;
        let number = publish(&mut mover, &full).await;
        done(&mut mover, Request::Release).await;
        mover.stop().await.unwrap();
        let full = Manifest { number, ..full };
        let mut chained = Self { real, instance, backups: vec![full] };
        chained.add(&["write -P 0x21 1M 64k", "write -P 0x22 6M 64k"]);
        chained.add(&["write -P 0x31 1M 64k", "write -z 2560k 512k"]);
        chained
    }

    fn of(&self, at: usize) -> PathBuf {
        self.dir(self.backups[at].backup_id)
    }

    fn dir(&self, backup: BackupId) -> PathBuf {
        self.real.instance(self.instance).join(backup.to_string())
    }

    fn file(&self, at: usize, name: &str) -> String {
        format!("{}/{}/{}/{name}", share::INSTANCES, self.instance, self.backups[at].backup_id)
    }

    /// An incremental backup on top of the last one, made past the code under test.
    fn add(&mut self, writes: &[&str]) {
        let parent = self.backups.last().unwrap();
        let backup_id = BackupId::draw();
        let directory = self.dir(backup_id);
        fs::create_dir(&directory).unwrap();
        let image = directory.join("vda.qcow2");
        let backing = format!("../{}/vda.qcow2", parent.backup_id);
        let size = DISK_BYTES.to_string();
        let create = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &backing];
        tool("qemu-img", &[&create[..], &[image.to_str().unwrap(), &size]].concat());
        for write in writes {
            tool("qemu-io", &["-f", "qcow2", "-c", write, image.to_str().unwrap()]);
        }
        for record in &parent.records {
            fs::copy(self.dir(parent.backup_id).join(&record.file), directory.join(&record.file)).unwrap();
        }
        fs::write(directory.join(share::README), "by hand").unwrap();
        let content_root = self.write_blocks(&image, &directory.join("vda.blocks"));
        let mut manifest = Manifest { backup_id, number: parent.number + 1, ..parent.clone() };
        let based_on = BasedOn {
            backup_id: parent.backup_id,
            content_root: parent.disks[0].content_root.clone(),
            found_by: ChangesFoundBy::Hashes,
        };
        manifest.disks[0].content_root = content_root;
        manifest.disks[0].based_on = Some(based_on);
        manifest.disks[0].file_bytes = fs::metadata(&image).unwrap().len();
        write_manifest(&directory, &manifest);
        self.backups.push(manifest);
    }

    /// The hashes of what an image shows, by qemu-img's word; answers the content root.
    fn write_blocks(&self, image: &Path, file: &Path) -> String {
        let raw = self.real.folder.path().join("shown.raw");
        let (from, to) = (image.to_str().unwrap(), raw.to_str().unwrap());
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", from, to]);
        let content = fs::read(&raw).unwrap();
        let mut blocks = Blocks::new(DISK_BYTES).unwrap();
        for (index, block) in content.chunks(BLOCK_BYTES as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                blocks.set(index as u64, *blake3::hash(block).as_bytes());
            }
        }
        fs::write(file, blocks.encode()).unwrap();
        blake3::Hash::from_bytes(blocks.root()).to_hex().to_string()
    }

    async fn found(&self, level: ValidationLevel) -> Validation {
        found(&self.real, validation(level)).await
    }
}

fn write_manifest(directory: &Path, manifest: &Manifest) {
    fs::write(directory.join(Manifest::FILE), serde_json::to_vec_pretty(manifest).unwrap()).unwrap();
}

async fn found(real: &Real, wanted: WantedValidation) -> Validation {
    let mut mover = looking(real, "looks").await;
    let (validation, _) = validated(&mut mover, wanted).await;
    closed(&mut mover).await;
    validation
}

/// Nothing of a look is open on the share any more.
async fn closed(mover: &mut Box<dyn Mover>) {
    assert_eq!(mover.ask(Request::Close, SOON).await.unwrap(), Reply::Closed { warnings: Vec::new() });
    mover.stop().await.unwrap();
}

/// Code, path and offset of each error.
fn errors(validation: &Validation) -> Vec<(FindingCode, String, Option<u64>)> {
    let errors = validation.findings.iter().filter(|finding| finding.severity == Severity::Error);
    errors.map(|Finding { code, path, offset, .. }| (*code, path.clone(), *offset)).collect()
}

#[tokio::test]
async fn a_whole_chain_has_no_findings_at_any_level_and_is_read_through_each_of_its_backups() {
    let chained = Chained::new().await;
    for level in LEVELS {
        let found = chained.found(level).await;
        assert_eq!(codes(&found), [], "{level:?}: {found:?}");
    }
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!((found.instances, found.backups), (1, 3));
    // The first backup has 3 MiB of zeros; the others are read where they have something themselves.
    let all = DISK_BYTES - (3 << 20)..DISK_BYTES;
    let read = all.start + (3 << 20)..all.end + (4 << 20);
    assert!(read.contains(&found.bytes_read), "{} of {read:?}", found.bytes_read);
    // One alone is read along its chain.
    let last = chained.backups[2].backup_id;
    let alone = WantedValidation { backup: Some(last), ..validation(ValidationLevel::Content) };
    let alone = self::found(&chained.real, alone).await;
    assert_eq!(codes(&alone), [], "{alone:?}");
    assert!(all.contains(&alone.bytes_read), "{} of {all:?}", alone.bytes_read);
    let [size] = &found.instance_sizes[..] else { panic!("{found:?}") };
    let on_disk: u64 = (0..3)
        .flat_map(|at| fs::read_dir(chained.of(at)).unwrap())
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!((size.instance_id, size.backups, size.file_bytes), (chained.instance, 3, on_disk));
    assert!(found.clock_ahead_seconds.unwrap().abs() < 5);
}

/// Where an image's own data for that place of the disk is in its file.
fn place_in_file(image: &Path, at: u64) -> u64 {
    let map = tool("qemu-img", &["map", "--output=json", image.to_str().unwrap()]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let extent = map.iter().find(|extent| {
        let start = extent["start"].as_u64().unwrap();
        (start..start + extent["length"].as_u64().unwrap()).contains(&at)
    });
    let extent = extent.unwrap();
    assert_eq!((&extent["depth"], &extent["data"]), (&0.into(), &true.into()), "{extent}");
    extent["offset"].as_u64().unwrap() + at - extent["start"].as_u64().unwrap()
}

#[tokio::test]
async fn one_flipped_byte_is_named_by_backup_disk_and_offset_and_so_is_who_needs_it() {
    let chained = Chained::new().await;
    let image = chained.of(1).join("vda.qcow2");
    flip(&image, place_in_file(&image, (6 << 20) + 1000));
    for level in [ValidationLevel::Catalogue, ValidationLevel::Structure] {
        assert_eq!(errors(&chained.found(level).await), [], "{level:?} does not read what images hold");
    }
    let found = chained.found(ValidationLevel::Content).await;
    let wanted = [
        (FindingCode::ContentDiffers, chained.file(1, "vda.qcow2"), Some(6 << 20)),
        (FindingCode::AncestorDamaged, chained.file(2, "vda.qcow2"), None),
    ];
    assert_eq!(errors(&found), wanted);
    assert!(found.findings[0].text.starts_with("1 blocks of 1 MiB"), "{}", found.findings[0].text);

    let only = |at: usize| WantedValidation {
        backup: Some(chained.backups[at].backup_id),
        ..validation(ValidationLevel::Content)
    };
    assert_eq!(errors(&self::found(&chained.real, only(0)).await), [], "the one below is whole");
    let of_the_last = self::found(&chained.real, only(2)).await;
    let seen_from_above = [(FindingCode::ContentDiffers, chained.file(2, "vda.qcow2"), Some(6 << 20))];
    assert_eq!(errors(&of_the_last), seen_from_above);
}

#[tokio::test]
async fn what_an_incremental_image_has_besides_what_was_backed_up_is_read() {
    let chained = Chained::new().await;
    let image = chained.of(1).join("vda.qcow2");
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 0x77 4M 64k", image.to_str().unwrap()]);
    let mut manifest = chained.backups[1].clone();
    manifest.disks[0].file_bytes = fs::metadata(&image).unwrap().len();
    write_manifest(&chained.of(1), &manifest);
    let wanted = [
        (FindingCode::ContentDiffers, chained.file(1, "vda.qcow2"), Some(4 << 20)),
        (FindingCode::AncestorDamaged, chained.file(2, "vda.qcow2"), None),
    ];
    assert_eq!(errors(&chained.found(ValidationLevel::Content).await), wanted);
}

#[tokio::test]
async fn a_truncated_file_and_a_missing_one_are_named_by_a_look_at_names_alone() {
    let chained = Chained::new().await;
    let image = chained.of(2).join("vda.qcow2");
    let bytes = fs::metadata(&image).unwrap().len();
    File::options().write(true).open(&image).unwrap().set_len(bytes - 65536).unwrap();
    fs::remove_file(chained.of(1).join("vda.blocks")).unwrap();
    let wanted = [
        (FindingCode::FileMissing, chained.file(1, "vda.blocks"), None),
        (FindingCode::FileSizeDiffers, chained.file(2, "vda.qcow2"), None),
    ];
    for level in [ValidationLevel::Catalogue, ValidationLevel::Content] {
        let mut found = errors(&chained.found(level).await);
        found.sort();
        assert_eq!(found, wanted);
    }
}

#[tokio::test]
async fn a_missing_link_is_named_where_it_is_missing() {
    let chained = Chained::new().await;
    fs::rename(chained.of(1), chained.real.folder.path().join("gone")).unwrap();
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!(errors(&found), [(FindingCode::ParentMissing, chained.file(2, "vda.qcow2"), None)]);
    let parent = chained.backups[1].backup_id.to_string();
    assert!(found.findings[0].text.contains(&parent), "{}", found.findings[0].text);
}

#[tokio::test]
async fn exchanged_images_are_known_by_their_lengths_or_by_what_they_hold() {
    let chained = Chained::new().await;
    // Of other lengths: the full one and an incremental one.
    exchange(&chained.of(0).join("vda.qcow2"), &chained.of(1).join("vda.qcow2"));
    let found = chained.found(ValidationLevel::Catalogue).await;
    let mut paths: Vec<_> =
        errors(&found).into_iter().filter(|(code, ..)| *code == FindingCode::FilesExchanged).collect();
    paths.sort();
    let mut wanted = [0, 1].map(|at| (FindingCode::FilesExchanged, chained.file(at, "vda.qcow2"), None));
    wanted.sort();
    assert_eq!(paths, wanted);

    // Of the same length: two full ones, whose disks differ in one place.
    let real = Real::new();
    let instance = InstanceId::draw();
    let mut mover = opened(&real, "publishes").await;
    let mut backups = Vec::new();
    for _ in 0..2 {
        let manifest = sealed(&real, &mut mover, instance, BackupId::draw()).await;
        publish(&mut mover, &manifest).await;
        backups.push(manifest);
        let disk = File::options().write(true).open(real.folder.path().join("disk.raw")).unwrap();
        disk.write_all_at(b"another content", 1 << 20).unwrap();
    }
    done(&mut mover, Request::Release).await;
    mover.stop().await.unwrap();
    let images =
        [0, 1].map(|at: usize| real.instance(instance).join(backups[at].backup_id.to_string()).join("vda.qcow2"));
    assert_eq!(fs::metadata(&images[0]).unwrap().len(), fs::metadata(&images[1]).unwrap().len());
    exchange(&images[0], &images[1]);
    assert_eq!(errors(&self::found(&real, validation(ValidationLevel::Structure)).await), []);
    let found = self::found(&real, validation(ValidationLevel::Content)).await;
    let told: Vec<_> = found.findings.iter().map(|finding| (finding.code, finding.backup_id, finding.offset)).collect();
    for (at, other) in [(0, 1), (1, 0)] {
        let (this, other): (&Manifest, &Manifest) = (&backups[at], &backups[other]);
        assert!(told.contains(&(FindingCode::FilesExchanged, Some(this.backup_id), Some(1 << 20))), "{told:?}");
        let of_this = found.findings.iter().find(|finding| finding.backup_id == Some(this.backup_id)).unwrap();
        assert!(of_this.text.contains(&other.backup_id.to_string()), "{}", of_this.text);
    }
    assert_eq!(found.errors, 2);
}

fn exchange(one: &Path, other: &Path) {
    let between = one.with_extension("between");
    fs::rename(one, &between).unwrap();
    fs::rename(other, one).unwrap();
    fs::rename(&between, other).unwrap();
}

#[tokio::test]
async fn manifests_of_others_and_damaged_headers_hashes_and_tables_are_named() {
    let chained = Chained::new().await;
    let other = Real::new();
    let foreign = Manifest { repository_id: other.repository().id, ..chained.backups[2].clone() };
    write_manifest(&chained.of(2), &foreign);
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!(errors(&found), [(FindingCode::ManifestForeign, chained.file(2, Manifest::FILE), None)]);
    write_manifest(&chained.of(2), &chained.backups[2]);

    flip(&chained.of(2).join("vda.blocks"), 60);
    let found = chained.found(ValidationLevel::Structure).await;
    assert_eq!(errors(&found), [(FindingCode::BlocksDamaged, chained.file(2, "vda.blocks"), None)]);
    flip(&chained.of(2).join("vda.blocks"), 60);

    let image = chained.of(2).join("vda.qcow2");
    // The size of the disk, in the header.
    flip(&image, 30);
    let found = chained.found(ValidationLevel::Structure).await;
    let first = &errors(&found)[0];
    assert_eq!((first.0, &first.1), (FindingCode::ImageHeaderDiffers, &chained.file(2, "vda.qcow2")));
    flip(&image, 30);

    // The first entry of the table of tables, behind header and counts.
    let table = tool("qemu-img", &["info", "--output=json", image.to_str().unwrap()]);
    assert!(table.contains("qcow2"));
    let mut offset = [0; 8];
    File::open(&image).unwrap().read_exact_at(&mut offset, 40).unwrap();
    flip(&image, u64::from_be_bytes(offset) + 4);
    let found = chained.found(ValidationLevel::Structure).await;
    assert_eq!(errors(&found), [(FindingCode::ImageDamaged, chained.file(2, "vda.qcow2"), None)], "{found:?}");
}

#[tokio::test]
async fn images_that_lead_elsewhere_are_opened_by_no_tool() {
    let chained = Chained::new().await;
    let secret = chained.real.folder.path().join("secret.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", secret.to_str().unwrap(), "8M"]);
    let image = chained.of(2).join("vda.qcow2");
    tool(
        "qemu-img",
        &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", secret.to_str().unwrap(), image.to_str().unwrap()],
    );
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!(errors(&found), [(FindingCode::ImageHeaderDiffers, chained.file(2, "vda.qcow2"), None)], "{found:?}");

    let chained = Chained::new().await;
    let image = chained.of(0).join("vda.qcow2");
    let aside = chained.real.folder.path().join("aside.qcow2");
    fs::rename(&image, &aside).unwrap();
    symlink(&aside, &image).unwrap();
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!(errors(&found)[0], (FindingCode::NotWhatItSays, chained.file(0, "vda.qcow2"), None));
    let heirs: Vec<_> = errors(&found)[1..].iter().map(|(code, ..)| *code).collect();
    assert_eq!(heirs, [FindingCode::AncestorDamaged; 2]);
}

#[tokio::test]
async fn a_merge_that_was_cut_off_before_its_manifest_is_no_damage() {
    let chained = Chained::new().await;
    // What the last one and the one below it hold, on top of the first.
    let last = chained.of(2).join("vda.qcow2");
    let first = format!("../{}/vda.qcow2", chained.backups[0].backup_id);
    tool("qemu-img", &["rebase", "-f", "qcow2", "-F", "qcow2", "-b", &first, last.to_str().unwrap()]);
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!(errors(&found), [], "{found:?}");
    assert!(codes(&found).contains(&FindingCode::MergeUnfinished), "{found:?}");
}

#[tokio::test]
async fn a_share_that_cannot_be_written_to_says_so_and_is_looked_at_all_the_same() {
    let real = Real::with_share(small_file_system);
    let none = None::<&Path>;
    nix::mount::mount(none, &real.share(), none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, Some("size=4m")).unwrap();
    let found = found(&real, validation(ValidationLevel::Content)).await;
    assert_eq!((codes(&found), found.errors), (vec![FindingCode::NotWritable], 1), "{found:?}");
    assert_eq!((found.findings[0].path.as_str(), found.clock_ahead_seconds), (".", None));
}

#[tokio::test]
async fn reading_keeps_its_pace_and_can_be_broken_off() {
    let chained = Chained::new().await;
    let slowly = || WantedValidation { max_bytes_per_second: Some(2 << 20), ..validation(ValidationLevel::Content) };
    let began = Instant::now();
    let found = self::found(&chained.real, slowly()).await;
    let least = Duration::from_secs_f64((found.bytes_read - (8 << 20)) as f64 / f64::from(2 << 20));
    assert!(began.elapsed() >= least, "{:?} for {} bytes", began.elapsed(), found.bytes_read);

    let mut mover = looking(&chained.real, "broken-off").await;
    let mut progress = mover.progress();
    let wanted = WantedValidation { max_bytes_per_second: Some(1 << 20), ..validation(ValidationLevel::Content) };
    let look = mover.ask(Request::Validate { wanted: Box::new(wanted) }, SOON);
    tokio::select! {
        answer = look => panic!("the look ended: {answer:?}"),
        moved = progress.wait_for(|progress| progress.data_bytes > 2 << 20) => { moved.unwrap(); }
    }
    let began = Instant::now();
    closed(&mut mover).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// No lease is taken for looking, so that backups may be deleted all the while.
#[tokio::test]
async fn a_backup_that_is_deleted_meanwhile_is_superseded_and_no_damage() {
    let chained = Chained::new().await;
    let mut mover = looking(&chained.real, "looks").await;
    let mut progress = mover.progress();
    let wanted = WantedValidation { max_bytes_per_second: Some(1 << 20), ..validation(ValidationLevel::Content) };
    let leaf = chained.of(2);
    let deleting = leaf.with_file_name(".deleting-it");
    let deletion = async {
        progress.wait_for(|progress| progress.data_bytes > 1 << 20).await.unwrap();
        fs::rename(&leaf, &deleting).unwrap();
        fs::remove_dir_all(&deleting).unwrap();
    };
    let ((found, _), ()) = tokio::join!(validated(&mut mover, wanted), deletion);
    assert_eq!(errors(&found), [], "{found:?}");
    assert_eq!(codes(&found), [FindingCode::Superseded]);
    assert_eq!(found.findings[0].backup_id, Some(chained.backups[2].backup_id));
    closed(&mut mover).await;
}

/// Who needs a backup that is deleted meanwhile, and is merged with it, is looked at all the same.
#[tokio::test]
async fn what_a_deletion_merges_meanwhile_is_looked_at_as_it_is_then() {
    let mut chained = Chained::new().await;
    chained.add(&["write -P 0x41 7M 64k"]);
    let top = chained.of(3).join("vda.qcow2");
    flip(&top, place_in_file(&top, 7 << 20));
    // Merged beforehand, in a copy of all, so that it takes its place at once while the first backup is read.
    let child = chained.of(2).join("vda.qcow2");
    let copy = chained.real.folder.path().join("copy");
    tool("cp", &["-r", chained.of(2).parent().unwrap().to_str().unwrap(), copy.to_str().unwrap()]);
    let merged = copy.join(chained.backups[2].backup_id.to_string()).join("vda.qcow2");
    let first = format!("../{}/vda.qcow2", chained.backups[0].backup_id);
    tool("qemu-img", &["rebase", "-f", "qcow2", "-F", "qcow2", "-b", &first, merged.to_str().unwrap()]);
    let mut mover = looking(&chained.real, "looks").await;
    let mut progress = mover.progress();
    let wanted = WantedValidation { max_bytes_per_second: Some(1 << 20), ..validation(ValidationLevel::Content) };
    let merge = async {
        progress.wait_for(|progress| progress.data_bytes > 1 << 20).await.unwrap();
        fs::rename(&merged, &child).unwrap();
        let mut manifest = chained.backups[2].clone();
        let based_on = manifest.disks[0].based_on.as_mut().unwrap();
        based_on.backup_id = chained.backups[0].backup_id;
        based_on.content_root = chained.backups[0].disks[0].content_root.clone();
        manifest.disks[0].file_bytes = fs::metadata(&child).unwrap().len();
        write_manifest(&chained.of(2), &manifest);
        let deleting = chained.of(1).with_file_name(".deleting-it");
        fs::rename(chained.of(1), &deleting).unwrap();
        fs::remove_dir_all(&deleting).unwrap();
    };
    let ((found, _), ()) = tokio::join!(validated(&mut mover, wanted), merge);
    let damage = (FindingCode::ContentDiffers, chained.file(3, "vda.qcow2"), Some(7 << 20));
    assert_eq!(errors(&found), [damage], "{found:?}");
    // Of the one that was deleted it is told that nothing is known, unless it was open by then.
    let [_, others @ ..] = &found.findings[..] else { panic!("{found:?}") };
    let of_the_deleted =
        |note: &Finding| (note.code, note.backup_id) == (FindingCode::Superseded, Some(chained.backups[1].backup_id));
    assert!(others.len() <= 1 && others.iter().all(of_the_deleted), "{found:?}");
    closed(&mut mover).await;
}

/// Nothing of a share that is no repository any more is called clean, or deleted.
#[tokio::test]
async fn a_share_that_goes_away_meanwhile_is_a_failure() {
    let chained = Chained::new().await;
    let mut mover = looking(&chained.real, "looks").await;
    let mut progress = mover.progress();
    let wanted = WantedValidation { max_bytes_per_second: Some(1 << 20), ..validation(ValidationLevel::Content) };
    let departure = async {
        progress.wait_for(|progress| progress.data_bytes > 1 << 20).await.unwrap();
        for entry in fs::read_dir(chained.real.share()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
    };
    let look = mover.ask(Request::Validate { wanted: Box::new(wanted) }, SOON);
    let (answer, ()) = tokio::join!(look, departure);
    assert_eq!(answer.unwrap_err().code, Code::RepositoryNotFound);
    closed(&mut mover).await;
}

#[tokio::test]
async fn a_share_full_of_what_nobody_put_there_is_looked_at_to_its_end() {
    let chained = Chained::new().await;
    let instances = chained.real.share().join(share::INSTANCES);
    for number in 0..3000 {
        fs::create_dir(instances.join(InstanceId::draw().to_string())).unwrap();
        fs::write(instances.join(format!("stray-{number}")), "").unwrap();
    }
    nix::unistd::mkfifo(&instances.join(InstanceId::draw().to_string()), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/", instances.join(InstanceId::draw().to_string())).unwrap();
    let mut deep = chained.of(0).join("deep");
    for _ in 0..100 {
        deep = deep.join("er");
    }
    fs::create_dir_all(&deep).unwrap();
    let huge = File::create(chained.of(1).join("huge")).unwrap();
    huge.set_len(1 << 40).unwrap();
    let manifest = File::create(chained.of(2).join(Manifest::FILE)).unwrap();
    manifest.set_len(1 << 40).unwrap();
    let found = chained.found(ValidationLevel::Content).await;
    assert_eq!(found.instances, 3003);
    assert_eq!(found.findings.len(), 100);
    assert_eq!(found.findings_left_out, found.errors + found.warnings + found.notes - 100);
    let mut codes: Vec<_> = errors(&found).into_iter().map(|(code, ..)| code).collect();
    codes.sort();
    let damage = FindingCode::NotWhatItSays;
    assert_eq!(codes, [damage, damage, FindingCode::ManifestUnreadable]);
    assert_eq!(found.warnings, 3002, "stray files, `deep` and `huge`");
    assert_eq!((found.instance_sizes.len(), found.instance_sizes_left_out), (100, 2901));
}

#[tokio::test]
async fn a_repository_of_another_identity_or_without_one_is_not_looked_at() {
    let real = Real::new();
    let mut mover = super::contract::started(&real, "opens").await;
    let other = longshore::model::repository::Repository {
        id: longshore::model::id::RepositoryId::draw(),
        ..real.repository()
    };
    let request = Request::OpenToLook { repository: other, same_device_ok: true };
    assert_eq!(super::contract::refused(&mut mover, request).await.code, Code::RepositoryIdentityMismatch);
    mover.stop().await.unwrap();
}
