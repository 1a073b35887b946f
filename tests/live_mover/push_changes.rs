//! Images into which somebody else has written what has changed since an earlier backup, and what is not taken for one.

use std::fs;
use std::path::{Path, PathBuf};

use longshore::failure::{Code, Failure};
use longshore::host::mover::{Mover, Movers};
use longshore::model::id::{BackupId, InstanceId};
use longshore::model::manifest::{ChangesFoundBy, Manifest};
use longshore::mover::protocol::{BaseDisk, CopiedDisk, PushTarget, Reply, Request};

use super::contract::{self, SOON, done, lease, opened, publish, stage};
use super::volumes::{flip, tool};
use super::{DISK_BYTES, Real};

const KIB: u64 = 1 << 10;

/// A repository with a backup of an instance, and the next one of it.
struct Scene {
    real: Real,
    instance: InstanceId,
    full: Manifest,
}

impl Scene {
    async fn new() -> Self {
        let (real, instance) = (Real::new(), InstanceId::draw());
        let mut mover = opened(&real, "copy").await;
        let full = contract::sealed(&real, &mut mover, instance, BackupId::draw()).await;
        publish(&mut mover, &full).await;
        closed(mover).await;
        Self { real, instance, full }
    }

    fn image(&self) -> PathBuf {
        self.real.instance(self.instance).join(self.full.backup_id.to_string()).join("vda.qcow2")
    }

    /// Somebody does what those commands of qemu-io say, on top of nothing, and that many bytes had to be written. Answers what becomes
    /// of the disk and, where it is sealed, its header's backing file.
    async fn pushed(
        &self,
        commands: &[&str],
        changes: bool,
        written_bytes: Option<u64>,
    ) -> Result<(CopiedDisk, Option<String>), Failure> {
        let mut mover = opened(&self.real, "push").await;
        done(&mut mover, lease(self.instance)).await;
        done(&mut mover, stage(self.instance, BackupId::draw())).await;
        let place = self.real.folder.path().join("place");
        fs::create_dir(&place).unwrap();
        let disk = &self.full.disks[0];
        let (backup, content_root) = (self.full.backup_id, disk.content_root.clone());
        let base = Some(BaseDisk { backup, virtual_bytes: disk.virtual_bytes, content_root });
        let target = PushTarget { target: disk.target.clone(), virtual_bytes: DISK_BYTES, base };
        let expose = Request::Expose { place: place.clone(), disks: vec![target], writer: std::process::id() };
        assert_eq!(mover.ask(expose, SOON).await.unwrap(), Reply::Exposed { unusable: Vec::new() });
        let image = place.join("vda.qcow2");
        assert_eq!(backing(&image), None, "its writer opens no other");
        for command in commands {
            tool("qemu-io", &["-f", "qcow2", "-c", command, image.to_str().unwrap()]);
        }
        let changes_of = changes.then(|| disk.target.clone()).into_iter().collect();
        let inspected = mover.ask(Request::Inspect { changes_of, written_bytes }, SOON).await;
        let named = backing(&image);
        self.real.movers.unmount(&place).await.unwrap();
        let sealed = match &inspected {
            Ok(_) => Some(mover.ask(Request::Seal, SOON).await),
            Err(_) => None,
        };
        done(&mut mover, Request::Discard).await;
        closed(mover).await;
        let Reply::Copied { disks, warnings } = inspected? else { panic!("it was not inspected") };
        assert!(warnings.is_empty() && matches!(sealed, Some(Ok(Reply::Sealed { .. }))), "{warnings:?}, {sealed:?}");
        Ok((disks[0].clone(), named))
    }
}

async fn closed(mut mover: Box<dyn Mover>) {
    done(&mut mover, Request::Release).await;
    let reply = mover.ask(Request::Close, SOON).await.unwrap();
    assert_eq!(reply, Reply::Closed { warnings: Vec::new() }, "no tool holds the share any more");
    mover.stop().await.unwrap();
}

fn backing(image: &Path) -> Option<String> {
    let info: serde_json::Value =
        serde_json::from_str(&tool("qemu-img", &["info", "-U", "--output=json", image.to_str().unwrap()])).unwrap();
    info["backing-filename"].as_str().map(str::to_owned)
}

#[tokio::test]
async fn changes_are_put_on_their_base_only_if_all_of_them_are_there_and_it_is_what_it_was() {
    let scene = Scene::new().await;
    let write = ["write -P 0x5a 64k 64k", "write -z 1M 64k"];
    let (disk, named) = scene.pushed(&write, true, Some(128 * KIB)).await.unwrap();
    let based_on = disk.based_on.unwrap();
    assert_eq!((based_on.backup_id, based_on.found_by), (scene.full.backup_id, ChangesFoundBy::Bitmap));
    assert_eq!((disk.data_bytes, named), (64 * KIB, Some(format!("../{}/vda.qcow2", scene.full.backup_id))));

    // Nothing of it contradicts anything: what became zeros was lost with the table that said so.
    let code = |result: Result<_, Failure>| result.map(|(disk, _)| disk).unwrap_err().code;
    assert_eq!(code(scene.pushed(&write[..1], true, Some(128 * KIB)).await), Code::ImageDamaged);
    assert_eq!(code(scene.pushed(&[], true, Some(64 * KIB)).await), Code::ImageDamaged);
    assert_eq!(code(scene.pushed(&write, true, None).await), Code::Internal, "nobody knows whether it is all");

    // What was written in full after all needs no other.
    let (disk, named) = scene.pushed(&write, false, None).await.unwrap();
    assert_eq!((disk.based_on, disk.data_bytes, named), (None, 64 * KIB, None));

    // In the block that is written to in part there would be a new hash for what was damaged.
    let map = tool("qemu-img", &["map", "--output=json", scene.image().to_str().unwrap()]);
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let data = map.iter().find(|extent| extent["data"] == true).unwrap();
    assert_eq!(data["start"].as_u64(), Some(0));
    flip(&scene.image(), data["offset"].as_u64().unwrap() + 17);
    assert_eq!(code(scene.pushed(&write, true, Some(128 * KIB)).await), Code::BackupDamaged);
}
