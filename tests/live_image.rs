//! Copying, comparing and checking real images with QEMU's tools. Fails where `qemu-img`, `qemu-io`, `qemu-nbd` or `nbdkit`
//! are not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use longshore::failure::{Code, Failure};
use longshore::model::instance::{DiskSource, ImageFormat};
use longshore::mover::image::blocks::{BLOCK_BYTES, Blocks, ROOT_CONTEXT};
use longshore::mover::image::{ImageSet, ToCopy};
use longshore::mover::protocol::{ByteSource, CopiedDisk, CopyDisk};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes that occur once in the pattern.
const MARK: &[u8] = b"the mark that is looked for";
const MARK_OFFSET: u64 = 3 * MIB + 4242;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A process that ends with the test.
struct Peer(Child);

impl Peer {
    /// Starts a server and waits for its socket.
    fn serve(program: &str, arguments: &[&str], socket: &Path) -> Self {
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
        let peer = Self(child.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}")));
        until(|| std::os::unix::net::UnixStream::connect(socket).is_ok());
        peer
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn until(condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder with a source, a staging directory and a directory for sockets.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("odd, na=me 'ü\"").tempdir().unwrap();
        fs::create_dir(folder.path().join("staging")).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn images(&self) -> ImageSet {
        ImageSet::new(self.path("staging"), self.folder.path().to_owned())
    }

    fn image(&self) -> PathBuf {
        self.path("staging/vda.qcow2")
    }

    /// A raw volume: data, written zeros, holes, a block with little in it, and a length that is no multiple of anything.
    fn raw(&self, name: &str) -> PathBuf {
        let (path, length) = (self.path(name), 40 * MIB + 1000);
        let file = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        file.set_len(length).unwrap();
        file.write_all_at(&noise(3 * MIB as usize + 777), MIB).unwrap();
        file.write_all_at(MARK, MARK_OFFSET).unwrap();
        file.write_all_at(&vec![0; 5 * MIB as usize], 10 * MIB).unwrap();
        file.write_all_at(b"alone", 20 * MIB + 300_000).unwrap();
        file.write_all_at(&noise(1000), length - 1000).unwrap();
        path
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut bytes);
    bytes
}

fn volume(path: &Path, format: ImageFormat) -> CopyDisk {
    let source = DiskSource::File { path: path.to_owned(), format };
    let source = ByteSource::Volume { source, bitmap: None };
    CopyDisk {
        target: "vda".parse().unwrap(),
        source,
        virtual_bytes: None,
        format: Some(format),
        base: None,
        since: None,
    }
}

/// Into images that stand alone.
fn all(disks: impl IntoIterator<Item = CopyDisk>) -> Vec<ToCopy> {
    disks.into_iter().map(ToCopy::from).collect()
}

fn export(socket: &Path, target: &str) -> CopyDisk {
    let source = ByteSource::Export { socket: socket.to_owned(), name: String::new(), dirty: None };
    CopyDisk { target: target.parse().unwrap(), source, virtual_bytes: None, format: None, base: None, since: None }
}

fn ignore(_: u64, _: u64, _: u64) {}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(outcome: Result<T, Failure>, expected: Code) {
    let failure = outcome.unwrap_err();
    assert_eq!(failure.code, expected, "{failure:#}");
}

/// Hashes and root of a raw file, worked out without the program's own walk.
fn assert_hashes_fit(blocks_file: &Path, raw: &Path, copied: &CopiedDisk) {
    let content = fs::read(raw).unwrap();
    let blocks = Blocks::decode(&fs::read(blocks_file).unwrap()).unwrap();
    assert_eq!(blocks.virtual_bytes(), content.len() as u64);
    let mut root = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
    root.update(&(content.len() as u64).to_be_bytes()).update(&(BLOCK_BYTES as u32).to_be_bytes());
    for (index, block) in content.chunks(BLOCK_BYTES as usize).enumerate() {
        let hash = blake3::hash(block);
        root.update(hash.as_bytes());
        let expected = block.iter().any(|byte| *byte != 0).then_some(*hash.as_bytes());
        assert_eq!(blocks.get(index as u64).copied(), expected, "block {index}");
    }
    assert_eq!(copied.content_root, root.finalize().to_hex().to_string());
    assert_eq!(copied.virtual_bytes, content.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_volume_is_copied_whole_and_stays_sparse() {
    let scene = Scene::new();
    let source = scene.raw("a, b=c.raw");
    let (mut images, last) = (scene.images(), std::sync::Mutex::new((0, 0, 0)));
    let progress = |done, total, data| *last.lock().unwrap() = (done, total, data);
    // What the hypervisor says of a raw file is its length, whatever QEMU rounds it up to.
    let disk = CopyDisk { virtual_bytes: Some(40 * MIB + 1000), ..volume(&source, ImageFormat::Raw) };
    let copied = images.copy(all([disk]), &progress).await.unwrap();
    images.compare(&ignore).await.unwrap();
    images.sources_unchanged(&ignore).await.unwrap();
    images.check().await.unwrap();

    let size = (40 * MIB + 1000).next_multiple_of(512);
    let data = copied[0].data_bytes;
    assert_eq!(last.into_inner().unwrap(), (size, size, data));
    // Three MiB and a bit touch 49 clusters, and the two small pieces one each, the last cut off by the end of the disk.
    assert_eq!(data, 50 * 65536 + size % 65536);
    let allocated = fs::metadata(scene.image()).unwrap().blocks() * 512;
    assert!(allocated < data + MIB, "{allocated} bytes allocated for {data}");
    assert_eq!(fs::metadata(scene.image()).unwrap().mode() & 0o777, 0o600);
    // QEMU shows a raw file rounded up to sectors.
    OpenOptions::new().write(true).open(&source).unwrap().set_len(size).unwrap();
    run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "qcow2",
            &format!("file:{}", text(&source)),
            &format!("file:{}", text(&scene.image())),
        ],
    );
    assert_hashes_fit(&scene.path("staging/vda.blocks"), &source, &copied[0]);
    assert!(
        fs::read_dir(scene.folder.path()).unwrap().all(|e| !e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("nbd"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_a_backing_chain_is_copied_as_the_guest_sees_it() {
    let scene = Scene::new();
    let (raw, base, top) = (scene.raw("raw"), scene.path("base"), scene.path("top"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&base)]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&base), text(&top)]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 30M 1M", "-c", "write -z 1M 512k", text(&top)]);
    let mut images = scene.images();
    let copied = images.copy(all([volume(&top, ImageFormat::Qcow2)]), &ignore).await.unwrap();
    images.compare(&ignore).await.unwrap();
    images.sources_unchanged(&ignore).await.unwrap();
    images.check().await.unwrap();
    let flat = scene.path("flat");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(&top), text(&flat)]);
    assert_hashes_fit(&scene.path("staging/vda.blocks"), &flat, &copied[0]);
    let image = format!("file:{}", text(&scene.image()));
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&flat), &image]);
    assert!(!run("qemu-img", &["info", "-f", "qcow2", &image]).contains("backing"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_a_backing_file_is_a_change_of_the_source() {
    let scene = Scene::new();
    let (raw, top) = (scene.raw("raw"), scene.path("top"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", text(&raw), text(&top)]);
    let mut images = scene.images();
    images.copy(all([volume(&top, ImageFormat::Qcow2)]), &ignore).await.unwrap();
    images.sources_unchanged(&ignore).await.unwrap();
    OpenOptions::new().write(true).open(&raw).unwrap().write_all_at(b"x", 0).unwrap();
    assert_fails(images.sources_unchanged(&ignore).await, Code::SourceChanged);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_exports_are_copied_each_to_its_own_image() {
    let scene = Scene::new();
    let raw = scene.raw("raw");
    let (one, two) = (scene.path("s1"), scene.path("s2"));
    let _one = Peer::serve("qemu-nbd", &["-t", "-r", "-e", "4", "-f", "raw", "-k", text(&one), text(&raw)], &one);
    let _two = Peer::serve("nbdkit", &["-f", "-U", text(&two), "pattern", "7M"], &two);
    let mut images = scene.images();
    let copied = images.copy(all([export(&one, "vda"), export(&two, "vdb")]), &ignore).await.unwrap();
    images.compare(&ignore).await.unwrap();
    images.sources_unchanged(&ignore).await.unwrap();
    images.check().await.unwrap();
    assert_eq!(copied.iter().map(|disk| disk.target.as_str()).collect::<Vec<_>>(), ["vda", "vdb"]);
    assert_eq!((copied[1].virtual_bytes, copied[1].data_bytes), (7 * MIB, 7 * MIB));
    let image = format!("file:{}", text(&scene.path("staging/vdb.qcow2")));
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &format!("nbd:unix:{}", text(&two)), &image]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_flipped_between_writing_and_reading_back_is_found_where_it_is() {
    let scene = Scene::new();
    let mut images = scene.images();
    images.copy(all([volume(&scene.raw("raw"), ImageFormat::Raw)]), &ignore).await.unwrap();
    let content = fs::read(scene.image()).unwrap();
    let at = content.windows(MARK.len()).position(|bytes| bytes == MARK).unwrap();
    let image = OpenOptions::new().write(true).open(scene.image()).unwrap();
    image.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
    let failure = images.compare(&ignore).await.unwrap_err();
    assert!(
        failure.code == Code::ContentMismatch
            && failure.text.contains("`vda`")
            && failure.text.contains(&format!("offset {MARK_OFFSET}:")),
        "{failure}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_no_longer_holds_what_was_hashed_is_found_by_its_hash() {
    let scene = Scene::new();
    let raw = scene.raw("raw");
    let mut images = scene.images();
    images.copy(all([volume(&raw, ImageFormat::Raw)]), &ignore).await.unwrap();
    // The same change on both sides: alike, and both wrong.
    OpenOptions::new().write(true).open(&raw).unwrap().write_all_at(&[0xaa; 65536], 30 * MIB).unwrap();
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 0xaa 30M 64k", &format!("file:{}", text(&scene.image()))]);
    let failure = images.compare(&ignore).await.unwrap_err();
    assert!(failure.code == Code::ContentMismatch && failure.text.contains("hashed"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_image_is_damaged() {
    let scene = Scene::new();
    let mut images = scene.images();
    images.copy(all([volume(&scene.raw("raw"), ImageFormat::Raw)]), &ignore).await.unwrap();
    let image = OpenOptions::new().write(true).open(scene.image()).unwrap();
    image.set_len(image.metadata().unwrap().len() - 65536).unwrap();
    assert_fails(images.compare(&ignore).await, Code::ContentMismatch);
    assert_fails(images.check().await, Code::ImageDamaged);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_replaced_is_not_ours_any_more() {
    let scene = Scene::new();
    let mut images = scene.images();
    images.copy(all([volume(&scene.raw("raw"), ImageFormat::Raw)]), &ignore).await.unwrap();
    fs::copy(scene.image(), scene.path("other")).unwrap();
    fs::rename(scene.path("other"), scene.image()).unwrap();
    assert_fails(images.check().await, Code::RepositoryUnsafe);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_can_start_while_its_volume_is_read_and_that_is_noticed() {
    let scene = Scene::new();
    let raw = scene.raw("raw");
    let (mut images, started) = (scene.images(), AtomicBool::new(false));
    let start = |_, _, _| {
        if !started.swap(true, Ordering::SeqCst) {
            run("qemu-io", &["-f", "raw", "-c", "write -P 9 39M 64k", text(&raw)]);
        }
    };
    images.copy(all([volume(&raw, ImageFormat::Raw)]), &start).await.unwrap();
    assert!(started.into_inner());
    assert_fails(images.sources_unchanged(&ignore).await, Code::SourceChanged);
}

/// Opens an image as an instance that starts does, with locks and for writing, again and again until it is told to stop.
/// Returns how often, and what it heard when it was refused.
fn start_again_and_again(image: &Path, stop: &AtomicBool) -> (u32, Option<String>) {
    let mut starts = 0;
    while !stop.load(Ordering::SeqCst) {
        let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", "length", text(image)]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() || said.contains("lock") {
            return (starts, Some(said));
        }
        starts += 1;
    }
    (starts, None)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_moment_of_a_backup_keeps_an_instance_from_starting() {
    let folder = Scene::new();
    let (raw, base, top) = (folder.raw("raw"), folder.path("base"), folder.path("top"));
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&base)]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&base), text(&top)]);
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let starting = {
        let (stop, top) = (stop.clone(), top.clone());
        std::thread::spawn(move || start_again_and_again(&top, &stop))
    };
    for _ in 0..15 {
        let scene = Scene::new();
        let mut images = scene.images();
        // Whether it succeeds depends on the moment at which it meets the writer, and is not what is asked here.
        if images.copy(all([volume(&top, ImageFormat::Qcow2)]), &ignore).await.is_ok() {
            let _met_the_writer = images.compare(&ignore).await;
        }
    }
    stop.store(true, Ordering::SeqCst);
    let (starts, refused) = starting.join().unwrap();
    assert_eq!(refused, None, "after {starts} starts");
    assert!(starts > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_a_writer_is_in_use_elsewhere() {
    for (format, name) in [(ImageFormat::Raw, "raw"), (ImageFormat::Qcow2, "qcow2")] {
        let scene = Scene::new();
        let (path, socket) = (scene.path("disk"), scene.path("s"));
        run("qemu-img", &["create", "-q", "-f", name, text(&path), "8M"]);
        let _writer =
            Peer::serve("qemu-nbd", &["-t", "-e", "2", "-f", name, "-k", text(&socket), text(&path)], &socket);
        assert_fails(scene.images().copy(all([volume(&path, format)]), &ignore).await, Code::InUseElsewhere);
        assert!(!scene.image().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_cannot_be_read_say_why_before_a_byte_is_written() {
    let scene = Scene::new();
    let raw = scene.raw("raw");
    let network = serde_json::from_str(r#"{"network":{"protocol":"nfs","name":"export/disk"}}"#).unwrap();
    let disk =
        |source| CopyDisk { source: ByteSource::Volume { source, bitmap: None }, ..volume(&raw, ImageFormat::Raw) };
    let file = |path| DiskSource::File { path, format: ImageFormat::Raw };
    let other_size = CopyDisk { virtual_bytes: Some(MIB), ..volume(&raw, ImageFormat::Raw) };
    for (disk, expected) in [
        (disk(network), Code::DiskUnsupported),
        (disk(file(scene.path("missing"))), Code::SourceReadFailed),
        (disk(file("/dev/null".into())), Code::DiskUnsupported),
        (disk(file("relative".into())), Code::DiskUnsupported),
        (volume(&raw, ImageFormat::Qcow2), Code::SourceReadFailed),
        (other_size, Code::SourceReadFailed),
        (export(&scene.path("no-socket"), "vda"), Code::SourceReadFailed),
    ] {
        assert_fails(scene.images().copy(all([disk.clone()]), &ignore).await, expected);
        assert_eq!(fs::read_dir(scene.path("staging")).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_at_the_targets_name_already_is_not_touched() {
    let scene = Scene::new();
    let (raw, precious) = (scene.raw("raw"), scene.path("precious"));
    fs::write(&precious, "precious").unwrap();
    symlink(&precious, scene.image()).unwrap();
    assert_fails(scene.images().copy(all([volume(&raw, ImageFormat::Raw)]), &ignore).await, Code::RepositoryIo);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_error_of_the_source_fails_the_copy() {
    let scene = Scene::new();
    let (socket, trigger) = (scene.path("s"), scene.path("broken"));
    let file = format!("error-file={}", text(&trigger));
    let arguments = [
        "-f",
        "-U",
        text(&socket),
        "--filter=error",
        "pattern",
        "64M",
        "error-pread=EIO",
        "error-pread-rate=100%",
        &file,
    ];
    let _peer = Peer::serve("nbdkit", &arguments, &socket);
    let break_it = |done: u64, _, _| {
        if done >= 8 * MIB {
            fs::write(&trigger, "").unwrap();
        }
    };
    assert_fails(scene.images().copy(all([export(&socket, "vda")]), &break_it).await, Code::SourceReadFailed);
}

/// A block device that goes with the test.
struct Loop(String);

impl Loop {
    fn over(raw: &Path) -> (Self, CopyDisk) {
        OpenOptions::new().write(true).open(raw).unwrap().set_len(40 * MIB).unwrap();
        let device = Self(run("losetup", &["--find", "--show", text(raw)]).trim().to_owned());
        let source = DiskSource::Block { path: PathBuf::from(&device.0), format: ImageFormat::Raw };
        (device, CopyDisk { source: ByteSource::Volume { source, bitmap: None }, ..volume(raw, ImageFormat::Raw) })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _checked_by_the_next_run = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_has_no_times_so_it_is_compared() {
    let scene = Scene::new();
    let (_device, disk) = Loop::over(&scene.raw("raw"));
    let mut images = scene.images();
    images.copy(all([disk]), &ignore).await.unwrap();
    let done = std::sync::Mutex::new(Vec::new());
    images.sources_unchanged(&|passed, _, _| done.lock().unwrap().push(passed)).await.unwrap();
    let done = done.into_inner().unwrap();
    assert!(done.len() > 2 && done.is_sorted() && done.last() == Some(&(40 * MIB)), "{done:?}");
    images.check().await.unwrap();
    assert!(fs::metadata(scene.image()).unwrap().blocks() * 512 < 6 * MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_that_changed_is_not_what_was_copied() {
    let scene = Scene::new();
    let (device, disk) = Loop::over(&scene.raw("raw"));
    let mut images = scene.images();
    images.copy(all([disk]), &ignore).await.unwrap();
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 39M 64k", &device.0]);
    assert_fails(images.sources_unchanged(&ignore).await, Code::ContentMismatch);
}

/// A small file system that is unmounted with the test.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Self {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", text(at)]);
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _checked_by_the_next_run = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_the_room_ends_the_copy_fails_or_is_whole() {
    let scene = Scene::new();
    let raw = scene.raw("raw");
    let mut whole = scene.images();
    whole.copy(all([volume(&raw, ImageFormat::Raw)]), &ignore).await.unwrap();
    let needed = fs::metadata(scene.image()).unwrap().blocks() * 512 / 1024;
    let (mut failed, mut succeeded) = (0, 0);
    // From the last of the data, over the tables that are written at the end, to enough.
    for kibibytes in (needed - 300..needed + 60).step_by(20) {
        let scene = Scene::new();
        let _small = Small::mount(&scene.path("staging"), &format!("{kibibytes}k"));
        let mut images = scene.images();
        match images.copy(all([volume(&raw, ImageFormat::Raw)]), &ignore).await {
            Ok(_) => {
                images.compare(&ignore).await.unwrap();
                images.check().await.unwrap();
                succeeded += 1;
            }
            Err(failure) => {
                assert_eq!(failure.code, Code::RepositoryFull, "{kibibytes} KiB: {failure:#}");
                failed += 1;
            }
        }
    }
    assert!(failed > 3 && succeeded > 0, "{failed} failed, {succeeded} succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_byte_is_a_backup_too() {
    let scene = Scene::new();
    let source = scene.path("empty");
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&source), "0"]);
    let mut images = scene.images();
    let copied = images.copy(all([volume(&source, ImageFormat::Qcow2)]), &ignore).await.unwrap();
    images.compare(&ignore).await.unwrap();
    images.check().await.unwrap();
    assert_eq!((copied[0].virtual_bytes, copied[0].data_bytes), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_copy_leaves_no_process() {
    let scene = Scene::new();
    let socket = scene.path("s");
    let _peer =
        Peer::serve("nbdkit", &["-f", "-U", text(&socket), "--filter=delay", "pattern", "64M", "rdelay=60"], &socket);
    let ours = || {
        let commands =
            fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
        let staging = scene.path("staging");
        commands
            .filter(|command| String::from_utf8_lossy(command).replace("\\\"", "\"").contains(text(&staging)))
            .count()
    };
    let mut images = scene.images();
    let disks = [export(&socket, "vda")];
    {
        let copy = images.copy(all(disks.clone()), &ignore);
        let started = async {
            while ours() == 0 || !scene.image().exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            outcome = copy => panic!("the copy ended: {outcome:?}"),
            started = tokio::time::timeout(PATIENCE, started) => started.unwrap(),
        }
    }
    until(|| ours() == 0);
}
