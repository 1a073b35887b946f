//! The restore in place of an instance on a bare block device, which is written over: only where the job asks for that, and never twice.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use longshore::message::event::{BackupSummary, Completed, RestoreSummary, RunDetail};
use longshore::message::job::JobMessage;
use longshore::model::id::JobId;

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::fleet::{Fleet, JOB};
use crate::lab::{LabInstance, virsh};
use crate::loops::Loop;
use crate::share::Share;
use crate::volumes::User;

/// The next worker waits for the lease of the dead one, which is known to be gone: less than the two minutes that another host would wait.
const TAKEN_OVER: Duration = Duration::from_secs(100);

/// How the warning begins where not every process of this machine can be looked at.
const UNSEEN: &str = "it cannot be seen whether ";

/// A stopped instance whose first disk is a block device, with a backup, and both disks damaged since.
struct OnDevice {
    bare: LabInstance,
    device: Loop,
    backup: BackupSummary,
    references: [Vec<u8>; 2],
}

impl OnDevice {
    fn new(fleet: &Fleet, share: &Share) -> Self {
        let bare = LabInstance::bare_off_with("vda:raw:8,vdb:raw:4");
        let device = Loop::of(bare.folder.join("vda.raw"));
        let definition = virsh(&["dumpxml", "--inactive", &bare.name]);
        let of_file = format!("file='{}'", device.file.display());
        let (before, after) = definition.split_once(&of_file).expect("the disk is in the definition");
        let (before, kept) = before.rsplit_once("type='file'").unwrap();
        define(&bare, format!("{before}type='block'{kept}dev='{}'{after}", device.path.display()));
        let backup = fleet.completed(fleet.back_up(&bare, share, "off"));
        let on_device = Self {
            references: [device.content(), fs::read(bare.folder.join("vdb.raw")).unwrap()],
            bare,
            device,
            backup,
        };
        for path in [&on_device.device.path, &on_device.file()] {
            let mut content = fs::read(path).unwrap();
            content[1 << 20..3 << 20].fill(0xee);
            fs::write(path, content).unwrap();
        }
        assert_eq!(on_device.is_restored(), [false; 2]);
        on_device
    }

    /// Starts the instance by another node of the device, as libvirt makes one in a `/dev` of QEMU's own: the locks by which QEMU would refuse to
    /// start on what is being written are each node's own. Stopped, it has the device as before.
    fn is_started_and_stopped_by_a_node_of_its_own(&self, meanwhile: impl FnOnce()) {
        let (node, device) = (self.bare.folder.join("node"), &self.device.path);
        let number = fs::metadata(device).unwrap().rdev();
        mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number).unwrap();
        let before = virsh(&["dumpxml", "--inactive", &self.bare.name]);
        let [of_device, of_node] = [device, &node].map(|path| format!("dev='{}'", path.display()));
        define(&self.bare, before.replace(&of_device, &of_node));
        self.bare.start();
        meanwhile();
        self.bare.stop();
        define(&self.bare, before);
        fs::remove_file(node).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.bare.folder.join("vdb.raw")
    }

    fn is_restored(&self) -> [bool; 2] {
        [self.device.content() == self.references[0], fs::read(self.file()).unwrap() == self.references[1]]
    }

    fn job(&self, fleet: &Fleet, share: &Share, overwrite: bool) -> JobMessage {
        let mut job = fleet.restore_job(&self.bare, share, &self.backup);
        job.restore.as_mut().unwrap().overwrite = overwrite;
        job
    }

    /// The job completes, with a warning at most of what cannot be looked at on this machine.
    fn restored(fleet: &Fleet, job: JobId, limit: Duration) -> RestoreSummary {
        let RunDetail::Completed(Completed { warnings, left_overs, restore, .. }) = fleet.heard.end_of(job, limit)
        else {
            panic!("it did not complete")
        };
        assert!(warnings.iter().all(|said| said.starts_with(UNSEEN)) && left_overs.is_empty(), "{warnings:?}");
        *restore.unwrap()
    }

    fn has_no_other_files(&self) {
        let names = fs::read_dir(&self.bare.folder).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| name.to_string_lossy().contains("longshore-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_block_device_is_written_over_where_the_job_asks_for_that_and_nobody_has_it_open() {
    let fleet = Fleet::start("on-device");
    let share = fleet.share();
    let on_device = OnDevice::new(&fleet, &share);
    let refused = fleet.failed(fleet.publish(&on_device.job(&fleet, &share, false))).failure;
    assert_eq!(refused.code, "disk_unsupported");
    assert!(refused.text.contains("`overwrite`") && refused.text.contains("`vda`"), "{refused:?}");
    let user = User::of(&on_device.device.path, "raw");
    let mut used = on_device.job(&fleet, &share, true);
    used.retry.as_mut().unwrap().attempts = Some(1);
    let refused = fleet.failed(fleet.publish(&used)).failure;
    assert_eq!(refused.code, "in_use_elsewhere");
    assert!(refused.text.contains("qemu-io"), "{refused:?}");
    drop(user);
    assert_eq!(on_device.is_restored(), [false; 2]);
    let (directory, backup) = (share.path.to_str().unwrap(), on_device.backup.backup_id.to_string());
    let plan = |options: &[&str]| {
        let arguments = [&["backup", "plan-restore", directory, &backup], options].concat();
        let output = fleet.command_on_host(&arguments).output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap()).concat())
    };
    let (code, said) = plan(&[]);
    assert!(code == Some(5) && said.contains("disk_unsupported"), "{said}");
    let device = on_device.device.path.display();
    let on_top = Loop::of(on_device.device.path.clone());
    let (code, said) = plan(&["--overwrite"]);
    let refused =
        format!("as it is now, this is refused: the loop device `{}`", on_top.path.file_name().unwrap().display());
    assert!(code == Some(3) && said.contains(&refused), "{said}");
    drop(on_top);
    let (code, said) = plan(&["--overwrite"]);
    assert!(code == Some(0) || (code == Some(3) && said.contains(UNSEEN) && !said.contains("refused")), "{said}");
    assert!(
        said.contains(&format!("would write over  {device} (raw)")) && said.contains("there is no way back"),
        "{said}"
    );
    assert!(said.contains(&format!("would replace  {} (raw)", on_device.file().display())), "{said}");
    assert_eq!(on_device.is_restored(), [false; 2]);
    let restored = OnDevice::restored(&fleet, fleet.publish(&on_device.job(&fleet, &share, true)), JOB);
    let volumes: Vec<_> = restored.volumes.iter().map(|volume| (volume.volume.as_str(), &volume.previous)).collect();
    assert_eq!(
        volumes,
        [(on_device.device.path.to_str().unwrap(), &None), (on_device.file().to_str().unwrap(), &None)]
    );
    assert_eq!(on_device.is_restored(), [true; 2]);
    on_device.has_no_other_files();
    on_device.bare.start();
    on_device.bare.stop();
    fleet.finish(&[&on_device.bare], &[&share]);
}

fn define(bare: &LabInstance, definition: String) {
    let file = bare.folder.join("on-device.xml");
    fs::write(&file, definition).unwrap();
    virsh(&["define", file.to_str().unwrap()]);
    fs::remove_file(file).unwrap();
}

/// A restore that has begun to write the device over, and hardly goes on with it.
fn writes_over(fleet: &Fleet, share: &Share, on_device: &OnDevice) -> JobId {
    // What is read is held up by no bandwidth.
    share.order(r#"{"delay_ms": 50}"#);
    let job = fleet.publish(&on_device.job(fleet, share, true));
    fleet.is_moving(job, "overwrite");
    share.order(r#"{"delay_ms": 3000}"#);
    job
}

#[test]
fn a_start_amid_the_writing_ends_it_for_good_and_another_run_restores_all() {
    let fleet = Fleet::start("device-started");
    let share = Share::faulty("device-started");
    let on_device = OnDevice::new(&fleet, &share);
    let job = writes_over(&fleet, &share, &on_device);
    on_device.is_started_and_stopped_by_a_node_of_its_own(|| {
        let failed = fleet.failed(job);
        assert_eq!((failed.failure.code.as_str(), failed.attempts), ("restore_unfinished", 1));
        assert!(failed.failure.text.contains(on_device.device.path.to_str().unwrap()), "{failed:?}");
        assert!(!on_device.is_restored()[1], "the file is as it was");
    });
    share.heal();
    OnDevice::restored(&fleet, fleet.publish(&on_device.job(&fleet, &share, true)), JOB);
    assert_eq!(on_device.is_restored(), [true; 2]);
    on_device.has_no_other_files();
    fleet.finish(&[&on_device.bare], &[&share]);
}

#[test]
fn a_worker_that_is_killed_amid_the_writing_is_followed_by_one_that_writes_nothing() {
    let mut fleet = Fleet::start("device-killed");
    let share = Share::faulty("device-killed");
    let on_device = OnDevice::new(&fleet, &share);
    let job = writes_over(&fleet, &share, &on_device);
    fleet.kill_worker();
    share.heal();
    fleet.start_worker();
    let RunDetail::Failed(failed) = fleet.heard.end_of(job, JOB) else { panic!("it did not fail") };
    assert_eq!(failed.failure.code, "restore_unfinished");
    assert!(failed.failure.text.contains(on_device.device.path.to_str().unwrap()), "{failed:?}");
    assert!(!on_device.is_restored()[1]);
    on_device.has_no_other_files();
    let again = fleet.publish(&on_device.job(&fleet, &share, true));
    OnDevice::restored(&fleet, again, TAKEN_OVER);
    assert_eq!(on_device.is_restored(), [true; 2]);
    fleet.finish(&[&on_device.bare], &[&share]);
}
