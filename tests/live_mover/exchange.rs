//! New volumes that take the places of the old ones: cut off, on bad storage, and while somebody starts the instance.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use longshore::failure::Code;
use longshore::host::mover::Mover;
use longshore::mover::protocol::{Reply, Request, RestoredVolume};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};

use super::contract::{SOON, Stands, World, done, eventually, exchange, published, refused, started};
use super::restore::{made, two};
use super::volumes::volume;
use super::{DISK_BYTES, Faulty, Real};

#[tokio::test]
async fn a_new_mover_finishes_an_exchange_wherever_it_was_cut_off() {
    let real = Real::new();
    let old = real.volume();
    let (mut mover, manifest) = published(&real, "cut-off").await;
    let volumes = two(&manifest, &old);
    let untouched: fn(&RestoredVolume) = |_| {};
    let moved_away: fn(&RestoredVolume) = |one| fs::rename(one.place.volume(), one.place.previous().unwrap()).unwrap();
    let in_place: fn(&RestoredVolume) = |one| {
        fs::rename(one.place.volume(), one.place.previous().unwrap()).unwrap();
        fs::rename(one.place.fresh().unwrap(), one.place.volume()).unwrap();
    };
    let states = [("untouched", untouched), ("moved away", moved_away), ("in place", in_place)];
    for (one, prepare_one) in &states {
        for (other, prepare_other) in &states {
            made(&mut mover, &manifest, &volumes).await;
            prepare_one(&volumes[0]);
            prepare_other(&volumes[1]);
            let mut next = started(&real, "finishes").await;
            done(&mut next, exchange(&volumes)).await;
            next.stop().await.unwrap();
            for volume in &volumes {
                assert_eq!(real.stands(volume.place.volume()), Stands::Restored, "{one}, {other}");
                assert_eq!(real.stands(volume.place.previous().unwrap()), Stands::Old, "{one}, {other}");
                assert_eq!(real.stands(volume.place.fresh().unwrap()), Stands::Nothing, "{one}, {other}");
                fs::rename(volume.place.previous().unwrap(), volume.place.volume()).unwrap();
            }
        }
    }
    mover.stop().await.unwrap();
}

/// What an instance's start does with its disks.
fn opens_to_write(path: &Path) -> Result<(), String> {
    let output = Command::new("qemu-io").args(["-f", "qcow2", "-c", "length"]).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() && said.is_empty() { Ok(()) } else { Err(said) }
}

/// Somebody holds one of QEMU's locks on a volume.
fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 100,
        l_len: 104,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
    i32::from(lock.l_type) != libc::F_UNLCK
}

#[tokio::test]
async fn a_start_amid_the_exchange_is_refused() {
    let faulty = Faulty::new();
    let (mut mover, volumes) = restored_on(&faulty).await;
    mover.stop().await.unwrap();
    let [web, _] = &volumes;
    assert_eq!(opens_to_write(web.place.volume()), Ok(()));
    let mut mover = started(&faulty.real, "exchanges").await;
    let (_, inner) = faulty.real.outer_and_inner();
    // Slow enough to be stopped between its locks and its end.
    faulty.orders(r#"{"delay_ms": 300}"#);
    let started_amid = async {
        eventually("the volume is locked", || {
            is_locked(web.place.volume()) || is_locked(web.place.previous().unwrap())
        })
        .await;
        kill(inner, Signal::SIGSTOP).unwrap();
        faulty.orders("{}");
        // What the kernel does for it is still done.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let old = if web.place.volume().exists() { web.place.volume() } else { web.place.previous().unwrap() };
        let refusals = (opens_to_write(old), opens_to_write(web.place.volume()));
        kill(inner, Signal::SIGCONT).unwrap();
        refusals
    };
    let (exchanged, refusals) = tokio::join!(mover.ask(exchange(&volumes), SOON), started_amid);
    assert_eq!(exchanged.unwrap(), Reply::Done);
    let (of_old, of_volume) = (refusals.0.unwrap_err(), refusals.1.unwrap_err());
    assert!(of_old.contains("lock"), "{of_old}");
    assert!(of_volume.contains("lock") || of_volume.contains("No such file"), "{of_volume}");
    mover.stop().await.unwrap();
    for volume in &volumes {
        assert_eq!(faulty.real.stands(volume.place.volume()), Stands::Restored);
        assert_eq!(opens_to_write(volume.place.volume()), Ok(()), "afterwards nothing is locked");
    }
}

/// Two volumes on the faulty share itself, for which a mover that still runs has made new ones.
async fn restored_on(faulty: &Faulty) -> (Box<dyn Mover>, [RestoredVolume; 2]) {
    let old = volume(&faulty.real.share(), DISK_BYTES);
    let (mut mover, manifest) = published(&faulty.real, "restores").await;
    let volumes = two(&manifest, &old);
    made(&mut mover, &manifest, &volumes).await;
    done(&mut mover, Request::Compare).await;
    done(&mut mover, Request::Release).await;
    (mover, volumes)
}

fn both_stand(faulty: &Faulty, volumes: &[RestoredVolume], wanted: Stands) {
    for one in volumes {
        assert_eq!(faulty.real.stands(one.place.volume()), wanted, "{}", one.place.volume().display());
    }
}

#[tokio::test]
async fn an_exchange_that_fails_amid_leaves_all_old_volumes_in_their_places() {
    let faulty = Faulty::new();
    let (mut mover, volumes) = restored_on(&faulty).await;
    for orders in [
        r#"{"mode": "eio", "file": "data.previous"}"#,
        r#"{"mode": "enospc", "file": "web.previous"}"#,
        r#"{"mode": "eio", "file": "data.qcow2"}"#,
    ] {
        faulty.orders(orders);
        let failure = refused(&mut mover, exchange(&volumes)).await;
        assert!([Code::VolumeIo, Code::VolumeFull].contains(&failure.code), "{orders}: {failure:#}");
        faulty.orders("{}");
        both_stand(&faulty, &volumes, Stands::Old);
        assert!(
            volumes.iter().all(|one| one.place.fresh().unwrap().exists() && !one.place.previous().unwrap().exists()),
            "{orders}"
        );
    }
    done(&mut mover, exchange(&volumes)).await;
    both_stand(&faulty, &volumes, Stands::Restored);
    mover.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_seen_or_put_back_is_not_known_and_can_be_asked_for_again() {
    let faulty = Faulty::new();
    let (mut mover, volumes) = restored_on(&faulty).await;
    mover.stop().await.unwrap();
    let mut mover = started(&faulty.real, "exchanges").await;
    faulty.orders(r#"{"mode": "estale"}"#);
    let reply = mover.ask(exchange(&volumes), SOON).await.unwrap();
    assert!(matches!(&reply, Reply::NotKnown { failure } if failure.code == Code::VolumeIo), "{reply:?}");
    faulty.orders("{}");
    both_stand(&faulty, &volumes, Stands::Old);
    // One is in its place when the other can neither go there nor back.
    for one in &volumes {
        fs::rename(one.place.volume(), one.place.previous().unwrap()).unwrap();
    }
    faulty.orders(r#"{"mode": "eio", "file": "data.qcow2"}"#);
    let reply = mover.ask(exchange(&volumes), SOON).await.unwrap();
    assert!(matches!(&reply, Reply::NotKnown { failure } if failure.code == Code::VolumeIo), "{reply:?}");
    assert!(!volumes[1].place.volume().exists(), "nobody can start the instance with some of each");
    faulty.orders("{}");
    done(&mut mover, exchange(&volumes)).await;
    both_stand(&faulty, &volumes, Stands::Restored);
    mover.stop().await.unwrap();
}
