//! A lease among two, on a real directory, with short times.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use super::*;
use crate::model::id::InstallationId;
use crate::mover::share::NUMBER_MAX;

const TIMES: LeaseTimes = LeaseTimes {
    beat: Duration::from_millis(20),
    watch_interval: Duration::from_millis(60),
    read_limit: Duration::from_secs(5),
    keep_limit: Duration::from_secs(5),
};

struct Share {
    directory: tempfile::TempDir,
    instance: InstanceId,
}

impl Share {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        crate::mover::share::init(directory.path()).unwrap();
        Self { directory, instance: InstanceId::draw() }
    }

    fn slots(&self) -> PathBuf {
        self.directory.path().join(LOCKS).join(self.instance.to_string())
    }

    async fn take(&self, times: LeaseTimes) -> Result<Lease, Failure> {
        let root = Arc::new(Dir::open_root(self.directory.path()).unwrap());
        let holder =
            LeaseHolder { host: "kvm-07".parse().unwrap(), installation: InstallationId::draw(), job: "j/1".into() };
        let seat = Seat::own(Seat::namespace().unwrap());
        assert!(seat.is_some());
        take(root, self.instance, (holder, seat), times, &CancellationToken::new()).await
    }
}

async fn is_lost(lease: &Lease) -> Failure {
    tokio::time::timeout(Duration::from_secs(10), lease.lost()).await.unwrap()
}

#[tokio::test]
async fn numbers_only_grow_and_a_released_lease_is_free_at_once() {
    let share = Share::new();
    for number in 1..=3 {
        // With a watch of a minute between two reads: only the mark of release can make this fast.
        let times = LeaseTimes { watch_interval: Duration::from_secs(60), ..TIMES };
        let mut lease = share.take(times).await.unwrap();
        assert_eq!(lease.number(), number);
        lease.check().unwrap();
        lease.confirm().await.unwrap();
        lease.release().await.unwrap();
        assert!(share.slots().join(number.to_string()).join("released").exists());
    }
}

#[tokio::test]
async fn a_living_holder_is_not_taken_over() {
    let share = Share::new();
    let held = share.take(TIMES).await.unwrap();
    let failure = share.take(TIMES).await.err().unwrap();
    assert_eq!(failure.code, Code::LeaseHeld);
    assert!(failure.text.contains("`kvm-07`"), "{failure}");
    held.confirm().await.unwrap();
}

#[tokio::test]
async fn a_dead_holder_is_replaced_after_twelve_reads_and_not_before() {
    let share = Share::new();
    drop(share.take(TIMES).await.unwrap());
    let began = std::time::Instant::now();
    let lease = share.take(TIMES).await.unwrap();
    assert_eq!(lease.number(), 2);
    assert!(began.elapsed() >= TIMES.watch_interval * 11, "{:?}", began.elapsed());
}

/// A mover of this host that was killed: the lease of that number, as its process has left it.
fn died(share: &Share, number: u64, spoil: impl FnOnce(&mut serde_json::Value)) {
    let path = share.slots().join(number.to_string()).join("holder");
    let mut holder: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    holder["seat"]["pid"] = child.id().into();
    spoil(&mut holder["seat"]);
    std::fs::write(&path, serde_json::to_vec(&holder).unwrap()).unwrap();
}

#[tokio::test]
async fn a_dead_holder_of_this_host_is_replaced_after_three_reads_and_not_before() {
    let share = Share::new();
    drop(share.take(TIMES).await.unwrap());
    died(&share, 1, |_| {});
    let began = std::time::Instant::now();
    assert_eq!(share.take(TIMES).await.unwrap().number(), 2);
    assert!(began.elapsed() >= TIMES.watch_interval * 2, "{:?}", began.elapsed());
    assert!(began.elapsed() < TIMES.watch_interval * 11, "{:?}", began.elapsed());
}

#[tokio::test]
async fn of_another_boot_and_of_a_holder_that_does_not_say_twelve_reads_are_needed() {
    for spoil in [
        (|seat| seat["boot"] = "before".into()) as fn(&mut serde_json::Value),
        |seat| seat["namespace"] = "pid:[1]".into(),
        |seat| *seat = serde_json::Value::Null,
    ] {
        let share = Share::new();
        drop(share.take(TIMES).await.unwrap());
        died(&share, 1, spoil);
        let began = std::time::Instant::now();
        assert_eq!(share.take(TIMES).await.unwrap().number(), 2);
        assert!(began.elapsed() >= TIMES.watch_interval * 11, "{:?}", began.elapsed());
    }
}

/// As on a host that was copied while it ran: its process is not among those that can be seen.
#[tokio::test]
async fn a_counter_that_moves_proves_more_than_a_process_that_is_not_there() {
    let share = Share::new();
    let held = share.take(TIMES).await.unwrap();
    died(&share, 1, |_| {});
    assert_eq!(share.take(TIMES).await.err().unwrap().code, Code::LeaseHeld);
    held.confirm().await.unwrap();
}

#[tokio::test]
async fn a_holder_that_died_before_signing_is_replaced_too() {
    let share = Share::new();
    std::fs::create_dir_all(share.slots().join("7")).unwrap();
    assert_eq!(share.take(TIMES).await.unwrap().number(), 8);
}

#[tokio::test]
async fn only_the_names_that_we_give_count_as_leases() {
    let share = Share::new();
    for name in ["09", "+9", " 9", "9a", "18446744073709551616"] {
        std::fs::create_dir_all(share.slots().join(name)).unwrap();
    }
    assert_eq!(share.take(TIMES).await.unwrap().number(), 1);
}

#[tokio::test]
async fn a_lease_that_could_not_be_given_back_is_still_held() {
    let share = Share::new();
    let mut lease = share.take(TIMES).await.unwrap();
    // Gone: a mark can be put into it no more.
    std::fs::remove_dir_all(share.slots().join("1")).unwrap();
    for _ in 0..2 {
        assert_eq!(lease.release().await.unwrap_err().code, Code::RepositoryIo);
    }
}

#[tokio::test]
async fn a_holder_learns_that_it_was_taken_over() {
    let share = Share::new();
    let old = share.take(TIMES).await.unwrap();
    std::fs::create_dir(share.slots().join("2")).unwrap();
    assert_eq!(is_lost(&old).await.code, Code::LeaseLost);
    assert_eq!(old.check().unwrap_err().code, Code::LeaseLost);
    assert_eq!(old.confirm().await.unwrap_err().code, Code::LeaseLost);
}

#[tokio::test]
async fn a_holder_that_cannot_write_its_counter_gives_up_in_time() {
    let share = Share::new();
    let times = LeaseTimes { keep_limit: Duration::from_millis(300), ..TIMES };
    let lease = share.take(times).await.unwrap();
    let counter = share.slots().join("1/counter");
    std::fs::remove_file(&counter).unwrap();
    std::fs::create_dir(&counter).unwrap();
    assert_eq!(is_lost(&lease).await.code, Code::LeaseLost);
    assert!(lease.check().is_err());
}

#[tokio::test]
async fn of_many_at_once_exactly_one_holds_it() {
    let share = Arc::new(Share::new());
    let tries: Vec<_> = (0..8)
        .map(|_| {
            let share = share.clone();
            tokio::spawn(async move { share.take(TIMES).await })
        })
        .collect();
    let mut held = Vec::new();
    for tried in tries {
        match tried.await.unwrap() {
            Ok(lease) => held.push(lease),
            Err(failure) => assert_eq!(failure.code, Code::LeaseHeld),
        }
    }
    assert_eq!(held.len(), 1);
}

#[tokio::test]
async fn a_link_in_place_of_the_lock_directory_is_not_followed() {
    let share = Share::new();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), share.slots()).unwrap();
    assert_eq!(share.take(TIMES).await.err().unwrap().code, Code::RepositoryUnsafe);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_lease_beyond_all_bounds_is_not_one_of_ours() {
    for planted in [u64::MAX, u64::MAX - 1, NUMBER_MAX] {
        let share = Share::new();
        std::fs::create_dir_all(share.slots().join(planted.to_string())).unwrap();
        assert_eq!(share.take(TIMES).await.err().unwrap().code, Code::RepositoryUnsafe, "{planted}");
    }
}

#[tokio::test]
async fn watching_can_be_broken_off() {
    let share = Share::new();
    drop(share.take(TIMES).await.unwrap());
    let cancel = CancellationToken::new();
    cancel.cancel();
    let root = Arc::new(Dir::open_root(share.directory.path()).unwrap());
    let slots = Arc::new(root.open_dir(LOCKS).unwrap().open_dir(share.instance.to_string()).unwrap());
    let times = LeaseTimes { watch_interval: Duration::from_secs(600), ..TIMES };
    assert_eq!(watch::until_free(&slots, 1, None, times, &cancel).await.unwrap_err().code, Code::LeaseHeld);
}
