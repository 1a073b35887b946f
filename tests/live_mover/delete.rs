//! Backups that go from a real share, on real images: what is left is compared byte by byte, by QEMU's own tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::failure::Code;
use longshore::host::mover::Mover;
use longshore::model::deletion::{self, DeleteMode};
use longshore::model::id::BackupId;
use longshore::model::manifest::Manifest;
use longshore::model::pin::Pin;
use longshore::mover::protocol::{Reply, Request};
use longshore::mover::share;
use nix::sys::signal::{Signal, kill};

use super::chains::{Image, Next, content, directory, put_child, put_full, write_manifest};
use super::contract::deletion::{chain_of_three, chains, delete, delete_merged, merge};
use super::contract::{SOON, World, done, lease, opened, refused, restored, started};
use super::restore::made;
use super::volumes::{flip, tool};
use super::{Real, small_file_system};

/// Bytes of the disks.
const MIB: u64 = 1 << 20;

impl Real {
    fn instances(&self) -> PathBuf {
        self.share().join(share::INSTANCES)
    }

    /// The backup as it is on the share now.
    fn found(&self, backup: &Manifest) -> Manifest {
        share::find_backup(&self.share(), backup.backup_id).unwrap()
    }
}

/// What every disk of these backups holds.
struct Before {
    held: BTreeMap<(BackupId, String), Vec<u8>>,
}

impl Before {
    fn look(real: &Real, backups: &[&Manifest]) -> Self {
        let instances = real.instances();
        let held = backups.iter().flat_map(|backup| {
            let of_disk = |disk: &longshore::model::manifest::ManifestDisk| {
                let name = disk.target.to_string();
                ((backup.backup_id, name.clone()), content(&instances, backup, &name))
            };
            backup.disks.iter().map(of_disk).collect::<Vec<_>>()
        });
        Self { held: held.collect() }
    }

    /// Every backup that is listed holds what it held, and is what its manifest says.
    fn still_holds(&self, real: &Real) {
        for manifest in real.published() {
            let instances = real.instances();
            let directory = directory(&instances, &manifest);
            for disk in &manifest.disks {
                let name = disk.target.to_string();
                let held = &self.held[&(manifest.backup_id, name.clone())];
                assert!(*held == content(&instances, &manifest, &name), "{name} of {}", manifest.number);
                tool("qemu-img", &["check", "-q", "-f", "qcow2", directory.join(&disk.file).to_str().unwrap()]);
            }
        }
    }

    /// Likewise, and headers, lengths and instructions agree with the manifests.
    fn is_settled(&self, real: &Real) {
        self.still_holds(real);
        for manifest in real.published() {
            let instances = real.instances();
            let directory = directory(&instances, &manifest);
            for disk in &manifest.disks {
                let image = directory.join(&disk.file);
                assert_eq!(fs::metadata(&image).unwrap().len(), disk.file_bytes);
                let named = disk.based_on.as_ref().map(|below| format!("../{}/{}", below.backup_id, disk.file));
                assert_eq!(backing(&image), named);
            }
            if let (Some(parent), Ok(readme)) =
                (manifest.parent(), fs::read_to_string(directory.join("README-RESTORE.txt")))
            {
                assert!(readme.contains(&format!("../{parent}")), "{readme}");
            }
        }
    }
}

/// The backing file in the header of an image.
fn backing(image: &Path) -> Option<String> {
    let info = tool("qemu-img", &["info", "--output=json", image.to_str().unwrap()]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    info["backing-filename"].as_str().map(str::to_owned)
}

/// A chain of four with two disks of their own lives: overwritten, zeroed, grown, and once stored whole.
fn two_disks(real: &Real) -> [Manifest; 4] {
    let instances = real.instances();
    let full = put_full(
        &instances,
        real.repository.id,
        &[("vda", 8 * MIB, &["write -P 1 0 8M"]), ("vdb", 3 * MIB + 512, &["write -P 9 0 2M"])],
    );
    let first = put_child(
        &instances,
        &full,
        &[
            Next::writes("vda", &["write -P 2 1M 2M", "write -z 4M 1M", "write -P 5 7M 100k"]),
            Next::writes("vdb", &["write -P 3 3M 512"]),
        ],
    );
    let second = put_child(
        &instances,
        &first,
        &[
            // Over its parent's, back to what the full one has, zeros over data and data over zeros.
            Next {
                virtual_bytes: Some(9 * MIB),
                ..Next::writes(
                    "vda",
                    &[
                        "write -P 4 2M 2M",
                        "write -P 1 1M 64k",
                        "write -z 0 64k",
                        "write -P 6 4M 64k",
                        "write -P 7 8M 1M",
                    ],
                )
            },
            Next::writes("vdb", &["write -P 8 2M 512k"]),
        ],
    );
    let third = put_child(
        &instances,
        &second,
        &[
            Next::writes("vda", &["write -P 10 5M 1M"]),
            Next { image: Image::Alone, ..Next::writes("vdb", &["write -P 11 0 1M"]) },
        ],
    );
    [full, first, second, third]
}

/// Another repository with the same content.
fn copy_of(original: &Real) -> Real {
    let mut copy = Real::new();
    copy.repository.id = original.repository.id;
    fs::remove_dir_all(copy.share()).unwrap();
    tool("cp", &["-a", original.share().to_str().unwrap(), copy.share().to_str().unwrap()]);
    copy
}

async fn holding(real: &Real, name: &str, of: &Manifest) -> Box<dyn Mover> {
    let mut mover = opened(real, name).await;
    done(&mut mover, lease(of.instance_id)).await;
    mover
}

async fn merged(mover: &mut Box<dyn Mover>, child: &Manifest, from: &Manifest) {
    let reply = mover.ask(merge(child, from), SOON).await;
    assert!(matches!(reply, Ok(Reply::Merged { .. })), "{reply:?}");
}

/// The whole way, as a job goes it.
async fn merge_away(mover: &mut Box<dyn Mover>, child: &Manifest, from: &Manifest) {
    merged(mover, child, from).await;
    done(mover, delete_merged(child, from)).await;
    done(mover, Request::RemoveDeleted { instance: child.instance_id }).await;
}

async fn leave(real: &Real, mut mover: Box<dyn Mover>) {
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
    mover.stop().await.unwrap();
    assert_eq!(real.staging(), Vec::<String>::new());
}

#[tokio::test]
async fn every_point_of_a_chain_can_go_whatever_its_disks_have_been_through() {
    let original = Real::new();
    let chain = two_disks(&original);
    // One after another until one is left.
    for order in [[1, 2, 0], [0, 1, 2], [2, 1, 0]] {
        let real = copy_of(&original);
        let before = Before::look(&real, &chain.each_ref());
        before.is_settled(&real);
        let mut mover = holding(&real, "points", &chain[0]).await;
        let mut left: Vec<usize> = vec![0, 1, 2, 3];
        for point in order {
            let at = left.iter().position(|one| *one == point).unwrap();
            let child = left[at + 1];
            merge_away(&mut mover, &chain[child], &chain[point]).await;
            left.remove(at);
            before.is_settled(&real);
            let listed: Vec<_> = real.published().iter().map(|found| found.backup_id).collect();
            assert_eq!(listed, left.iter().map(|one| chain[*one].backup_id).collect::<Vec<_>>());
            // As a restore reads it, and holds it against the hashes.
            let (last, volume) = (&chain[*left.last().unwrap()], real.volume());
            let volumes = [restored(last, &volume)];
            made(&mut mover, last, &volumes).await;
            done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
        }
        leave(&real, mover).await;
    }
}

#[tokio::test]
async fn a_merged_image_holds_only_what_its_new_base_has_not() {
    let real = Real::new();
    let chain = two_disks(&real);
    let mut mover = holding(&real, "small", &chain[0]).await;
    merge_away(&mut mover, &chain[2], &chain[1]).await;
    let [vda, vdb] = &real.found(&chain[2]).disks[..] else { panic!() };
    // 1M to 4M but for the 64k that are as in the full one; 64k of 1M of zeros over; 128k at 7M; 1M beyond its end.
    assert_eq!(vda.data_bytes, 3 * MIB - (64 << 10) + (64 << 10) + (128 << 10) + MIB);
    assert_eq!(vdb.data_bytes, (512 << 10) + 512);
    assert!(vda.file_bytes < vda.data_bytes + MIB, "{vda:?}");
    merge_away(&mut mover, &chain[2], &chain[0]).await;
    let found = real.found(&chain[2]);
    assert!(found.parent().is_none() && found.disks.iter().all(|disk| disk.full_reason.is_some()), "{found:?}");
    leave(&real, mover).await;
}

#[tokio::test]
async fn a_whole_chain_goes_leaf_first_and_others_stay() {
    let real = Real::new();
    let [full, first, second, third] = two_disks(&real);
    let side = put_child(&real.instances(), &full, &[Next::writes("vda", &["write -P 12 3M 1M"])]);
    let before = Before::look(&real, &[&full, &first, &second, &third, &side]);
    let mut mover = holding(&real, "chain", &full).await;
    done(&mut mover, delete(&[&third, &second, &first])).await;
    before.is_settled(&real);
    assert_eq!(real.staging().len(), 3, "on their way out");
    done(&mut mover, Request::RemoveDeleted { instance: full.instance_id }).await;
    assert_eq!(chains(&mut mover, full.instance_id).await.len(), 2);
    let failure = refused(&mut mover, delete(&[&full])).await;
    assert_eq!(failure.code, Code::BackupHasChildren);
    assert!(failure.text.contains(&side.backup_id.to_string()), "{failure:#}");
    before.is_settled(&real);
    leave(&real, mover).await;
}

/// What a deletion of the second of four does to the share, one rename after another.
struct ByHand {
    instance: PathBuf,
    chain: [Manifest; 4],
}

impl ByHand {
    const STEPS: usize = 7;

    /// The file that the mover has made to take the place of that one.
    fn merged(&self, file: &str) -> PathBuf {
        let child = &self.chain[2];
        self.instance.join(format!(".merging-{}.installation.1.{file}", child.backup_id))
    }

    fn step(&self, step: usize, told: &Manifest) {
        let of = |backup: &Manifest| self.instance.join(backup.backup_id.to_string());
        let (child, from) = (of(&self.chain[2]), of(&self.chain[1]));
        let on_its_way = self.instance.join(format!(".deleting-{}", self.chain[1].backup_id));
        match step {
            0 => fs::rename(self.merged("vda.qcow2"), child.join("vda.qcow2")).unwrap(),
            1 => fs::rename(self.merged("vdb.qcow2"), child.join("vdb.qcow2")).unwrap(),
            2 => fs::write(self.merged(Manifest::FILE), "{").unwrap(),
            3 => {
                fs::remove_file(self.merged(Manifest::FILE)).unwrap();
                write_manifest(&child, told);
            }
            4 => fs::create_dir(&on_its_way).unwrap(),
            5 => fs::rename(from, on_its_way.join(self.chain[1].backup_id.to_string())).unwrap(),
            6 => fs::remove_file(on_its_way.join(self.chain[1].backup_id.to_string()).join(Manifest::FILE)).unwrap(),
            _ => unreachable!(),
        }
    }
}

#[tokio::test]
async fn a_deletion_that_is_cut_off_anywhere_leaves_what_can_be_restored_and_is_gone_on_with() {
    let original = Real::new();
    let chain = two_disks(&original);
    let before = Before::look(&original, &chain.each_ref());
    // What the child is told to be, by a deletion that is not cut off.
    let told = {
        let real = copy_of(&original);
        let mut mover = holding(&real, "whole", &chain[0]).await;
        merge_away(&mut mover, &chain[2], &chain[1]).await;
        leave(&real, mover).await;
        real.found(&chain[2])
    };
    for steps in 0..=ByHand::STEPS {
        let real = copy_of(&original);
        let mut mover = holding(&real, "cut-off", &chain[0]).await;
        merged(&mut mover, &chain[2], &chain[1]).await;
        let by_hand =
            ByHand { instance: real.instances().join(chain[0].instance_id.to_string()), chain: chain.clone() };
        (0..steps).for_each(|step| by_hand.step(step, &told));
        before.still_holds(&real);
        // Its mover forgets what it made, and another one comes.
        done(&mut mover, Request::Release).await;
        mover.stop().await.unwrap();
        let mut mover = holding(&real, "next", &chain[0]).await;
        assert_eq!(real.staging(), Vec::<String>::new(), "what was made for it is taken away");
        before.still_holds(&real);
        let volume = real.volume();
        let volumes = [restored(&chain[3], &volume)];
        made(&mut mover, &chain[3], &volumes).await;
        done(&mut mover, Request::RemoveFresh { volumes: volumes.to_vec() }).await;
        if (1..4).contains(&steps) {
            // The full one has a child that no manifest tells of yet.
            let members = chains(&mut mover, chain[0].instance_id).await;
            let planned = deletion::plan(&members, chain[0].backup_id, DeleteMode::Only).unwrap_err();
            let asked = refused(&mut mover, delete_merged(&chain[1], &chain[0])).await;
            for refusal in [planned, asked] {
                assert_eq!(refusal.code, Code::BackupHasChildren, "{refusal:#}");
                assert!(refusal.text.contains(&format!("delete `{}` again", chain[1].backup_id)), "{refusal:#}");
            }
            before.still_holds(&real);
        }
        if steps < 4 {
            assert_eq!(refused(&mut mover, delete_merged(&chain[2], &chain[1])).await.code, Code::Interrupted);
            assert_eq!(real.staging(), Vec::<String>::new());
            merged(&mut mover, &chain[2], &chain[1]).await;
        }
        done(&mut mover, delete_merged(&chain[2], &chain[1])).await;
        done(&mut mover, Request::RemoveDeleted { instance: chain[0].instance_id }).await;
        before.is_settled(&real);
        assert_eq!(real.published().len(), 3, "after {steps} steps");
        assert_eq!(real.found(&chain[2]), told, "after {steps} steps");
        leave(&real, mover).await;
    }
}

#[tokio::test]
async fn a_mover_that_is_killed_while_it_merges_leaves_what_the_next_one_removes() {
    let real = Real::new();
    let chain = two_disks(&real);
    let before = Before::look(&real, &chain.each_ref());
    let mut mover = holding(&real, "killed", &chain[0]).await;
    let lost = mover.lost().unwrap();
    merged(&mut mover, &chain[2], &chain[1]).await;
    kill(real.outer_and_inner().0, Signal::SIGKILL).unwrap();
    assert_eq!(tokio::time::timeout(SOON, lost).await.unwrap().unwrap().code, Code::MoverDied);
    assert_eq!(real.staging().len(), 2);
    before.is_settled(&real);
    // As if its lease had been watched until it was clear that nobody holds it any more, which takes minutes.
    let locks = real.share().join(share::LOCKS).join(chain[0].instance_id.to_string());
    fs::write(locks.join("1/released"), "").unwrap();
    let mut next = holding(&real, "after-killed", &chain[0]).await;
    assert_eq!(real.staging(), Vec::<String>::new());
    merge_away(&mut next, &chain[2], &chain[1]).await;
    before.is_settled(&real);
    leave(&real, next).await;
}

#[tokio::test]
async fn a_merge_that_is_broken_off_is_discarded_and_one_without_room_is_not_begun() {
    let real = Real::with_share(small_file_system);
    let chain = two_disks_small(&real);
    let before = Before::look(&real, &chain.each_ref());
    let mut mover = holding(&real, "full", &chain[0]).await;
    let failure = refused(&mut mover, merge(&chain[2], &chain[1])).await;
    assert_eq!(failure.code, Code::RepositoryFull, "{failure:#}");
    before.is_settled(&real);
    // What needs no room goes all the same.
    done(&mut mover, delete(&[&chain[2]])).await;
    done(&mut mover, Request::RemoveDeleted { instance: chain[0].instance_id }).await;
    before.is_settled(&real);
    leave(&real, mover).await;
}

/// Three of a disk on a share of 4 MiB.
fn two_disks_small(real: &Real) -> [Manifest; 3] {
    let instances = real.instances();
    let full = put_full(&instances, real.repository.id, &[("vda", MIB, &["write -P 1 0 64k"])]);
    let first = put_child(&instances, &full, &[Next::writes("vda", &["write -P 2 64k 64k"])]);
    let second = put_child(&instances, &first, &[Next::writes("vda", &["write -P 3 128k 64k"])]);
    [full, first, second]
}

#[tokio::test]
async fn what_is_not_what_was_backed_up_is_not_merged() {
    let real = Real::new();
    let (mut mover, [full, middle, leaf]) = chain_of_three(&real, "damaged").await;
    for (backup, file) in
        [(&middle, "vda.qcow2"), (&leaf, "vda.blocks"), (&full, "vda.blocks"), (&middle, "manifest.json")]
    {
        let path = directory(&real.instances(), backup).join(file);
        let whole = fs::read(&path).unwrap();
        flip(&path, whole.len() as u64 / 2);
        let failure = refused(&mut mover, merge(&leaf, &middle)).await;
        let codes = [Code::BackupDamaged, Code::RepositoryUnsafe];
        assert!(codes.contains(&failure.code), "{file}: {failure:#}");
        done(&mut mover, Request::Discard).await;
        assert_eq!(real.staging(), Vec::<String>::new());
        fs::write(&path, whole).unwrap();
    }
    merge_away(&mut mover, &leaf, &middle).await;
    leave(&real, mover).await;
}

/// The command line, at this share.
fn longshore(arguments: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_longshore")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.code())
}

#[tokio::test]
async fn the_command_line_plans_pins_and_shows() {
    let real = Real::new();
    let [full, first, second, third] = two_disks(&real);
    let share = real.share();
    let share = share.to_str().unwrap();
    let plan = |backup: &Manifest, mode: &str| {
        longshore(&["backup", "plan-delete", share, &backup.backup_id.to_string(), "--mode", mode, "--json"])
    };
    let (said, code) = plan(&first, "chain");
    assert_eq!(code, Some(0), "{said}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let ids: Vec<_> = said["deleted"].as_array().unwrap().iter().map(|one| one["backup_id"].clone()).collect();
    assert_eq!(ids, [&third, &second, &first].map(|one| serde_json::json!(one.backup_id)));
    let (said, code) = plan(&first, "only");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(
        said["merged"],
        serde_json::json!({"backup_id": second.backup_id, "from": first.backup_id, "onto": full.backup_id})
    );
    let (said, code) = plan(&full, "leaf_only");
    assert!(
        code == Some(5) && said.contains("[backup_has_children]") && said.contains(&first.backup_id.to_string()),
        "{said}"
    );

    let id = second.backup_id.to_string();
    let (said, code) = longshore(&["backup", "pin", share, &id, "--reason", "an audit", "--by", "ops"]);
    assert_eq!(code, Some(0), "{said}");
    let (said, _) = longshore(&["backup", "list", share]);
    let pinned: Vec<_> = said.lines().filter(|line| line.contains("pinned: an audit")).collect();
    assert!(pinned.len() == 1 && pinned[0].contains(&id), "{said}");
    let (said, _) = longshore(&["backup", "show", share, &id]);
    let shown: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&shown["pin"]["reason"], &shown["pin"]["pinned_by"]), (&"an audit".into(), &"ops".into()));
    assert!(directory(&real.instances(), &second).join(Pin::FILE).exists());
    let (said, code) = plan(&first, "chain");
    assert!(code == Some(5) && said.contains("[backup_pinned]") && said.contains(&id), "{said}");
    let (said, code) = longshore(&["backup", "unpin", share, &id]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(plan(&first, "chain").1, Some(0));
    let mut mover = started(&real, "stays").await;
    assert_eq!(real.published().len(), 4, "nothing was deleted");
    mover.stop().await.unwrap();
}
