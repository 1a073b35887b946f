//! The NBD client against real servers: `qemu-nbd` and `nbdkit`. Fails where they are not installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use longshore::mover::nbd::{ALLOCATION, Connection, Limits, NbdError};

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends with the test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    assert!(
        status.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}")).success(),
        "{program} {arguments:?}"
    );
}

fn serve(program: &str, arguments: &[&str]) -> Peer {
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
    Peer(child.unwrap_or_else(|e| panic!("{program} is needed for this test: {e}")))
}

async fn connect(socket: &Path, contexts: &[&str], limits: Limits) -> Result<Connection, NbdError> {
    let started = Instant::now();
    loop {
        match Connection::open(socket, "", contexts, limits).await {
            Err(error) if error.nobody_listens() && started.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            outcome => return outcome,
        }
    }
}

fn qemu_nbd(directory: &Path, size: &str) -> (Peer, std::path::PathBuf) {
    let (image, socket) = (directory.join("disk.qcow2"), directory.join("s"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", image.to_str().unwrap(), size]);
    let arguments = ["-t", "-f", "qcow2", "--discard=unmap", "-k", socket.to_str().unwrap(), image.to_str().unwrap()];
    (serve("qemu-nbd", &arguments), socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_qemu_is_read_back_and_its_extents_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let (_peer, socket) = qemu_nbd(directory.path(), "8M");
    let contexts = ["qemu:no-such-context", ALLOCATION];
    let connection = connect(&socket, &contexts, Limits::default()).await.unwrap();
    let export = connection.export();
    assert_eq!((export.size, export.read_only, export.can_flush), (8 * MIB, false, true));
    assert!(matches!(export.contexts[..], [None, Some(_)]), "{export:?}");

    let pattern: Vec<u8> = (0..MIB).map(|i| (i % 251) as u8).collect();
    let back = connection.write(MIB, pattern.clone(), 0..pattern.len()).await.unwrap();
    assert_eq!(back, pattern);
    connection.write(5 * MIB, back, 65536..131072).await.unwrap();
    connection.write_zeroes(MIB, 65536).await.unwrap();
    connection.flush().await.unwrap();

    let (first, second) =
        tokio::join!(connection.read(MIB, vec![1; MIB as usize]), connection.read(5 * MIB, vec![1; 65536]));
    let first = first.unwrap();
    assert!(first[..65536].iter().all(|byte| *byte == 0) && first[65536..] == pattern[65536..]);
    assert_eq!(second.unwrap(), pattern[65536..131072]);

    let extents = connection.block_status(0, 8 * MIB).await.unwrap().remove(0);
    let mut at = 0;
    let data: Vec<(u64, u64)> = extents
        .iter()
        .filter_map(|extent| {
            at += extent.length;
            (!extent.reads_as_zeros()).then_some((at - extent.length, extent.length))
        })
        .collect();
    assert_eq!(data, [(MIB + 65536, MIB - 65536), (5 * MIB, 65536)]);
    connection.disconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_in_flight_come_back_to_those_who_asked() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    // nbdkit's pattern plugin: each eight bytes hold their own offset, big-endian.
    let _peer =
        serve("nbdkit", &["-f", "-U", socket.to_str().unwrap(), "--filter=delay", "pattern", "64M", "rdelay=5ms"]);
    let connection = connect(&socket, &[ALLOCATION], Limits::default()).await.unwrap();
    let reads = (0..200u64).map(|i| {
        let (connection, offset) = (&connection, (i * 7919 * 512) % (63 * MIB) / 512 * 512);
        async move { (offset, connection.read(offset, vec![0; 4096]).await.unwrap()) }
    });
    for (offset, bytes) in futures_util::future::join_all(reads).await {
        for (i, eight) in bytes.chunks(8).enumerate() {
            assert_eq!(u64::from_be_bytes(eight.try_into().unwrap()), offset + 8 * i as u64);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_error_is_told_with_its_number_and_the_connection_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, trigger) = (directory.path().join("s"), directory.path().join("broken"));
    let file = format!("error-file={}", trigger.display());
    let arguments = [
        "-f",
        "-U",
        socket.to_str().unwrap(),
        "--filter=error",
        "memory",
        "16M",
        "error-pread=EIO",
        "error-pread-rate=100%",
        &file,
    ];
    let _peer = serve("nbdkit", &arguments);
    let connection = connect(&socket, &[], Limits::default()).await.unwrap();
    assert!(connection.read(0, vec![1; 512]).await.unwrap().iter().all(|byte| *byte == 0));
    std::fs::write(&trigger, "").unwrap();
    let error = connection.read(0, vec![1; 512]).await.unwrap_err();
    assert!(matches!(error, NbdError::Refused { number: 5, .. }), "{error:?}");
    std::fs::remove_file(&trigger).unwrap();
    connection.read(0, vec![1; 512]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_given_up_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let _peer =
        serve("nbdkit", &["-f", "-U", socket.to_str().unwrap(), "--filter=delay", "memory", "16M", "rdelay=60"]);
    let limits = Limits { request: Duration::from_millis(300), ..Limits::default() };
    let connection = connect(&socket, &[], limits).await.unwrap();
    let started = Instant::now();
    let error = connection.read(0, vec![0; 512]).await.unwrap_err();
    assert!(matches!(error, NbdError::Deadline { .. }), "{error:?}");
    assert!(started.elapsed() < PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_fails_what_is_under_way() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let mut peer =
        serve("nbdkit", &["-f", "-U", socket.to_str().unwrap(), "--filter=delay", "memory", "16M", "rdelay=60"]);
    let connection = connect(&socket, &[], Limits::default()).await.unwrap();
    let read = connection.read(0, vec![0; 512]);
    let (error, _) = tokio::join!(read, async { peer.0.kill().unwrap() });
    assert!(matches!(error, Err(NbdError::Socket { .. })), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_export_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let (_peer, socket) = qemu_nbd(directory.path(), "1M");
    connect(&socket, &[], Limits::default()).await.unwrap().disconnect().await;
    let error = Connection::open(&socket, "vdz", &[ALLOCATION], Limits::default()).await.unwrap_err().to_string();
    assert!(error.contains("vdz"), "{error}");
}
