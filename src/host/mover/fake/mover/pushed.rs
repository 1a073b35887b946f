//! Images that QEMU is said to write itself.

use std::path::PathBuf;

use super::super::repository::FakeFile;
use super::{FakeMover, IMAGE_BYTES, out_of_order};
use crate::failure::{Code, Failure};
use crate::model::id::DiskTarget;
use crate::model::manifest::{BasedOn, ChangesFoundBy};
use crate::mover::protocol::{PushTarget, Reply};

impl FakeMover {
    pub(super) fn expose(&mut self, place: PathBuf, disks: Vec<PushTarget>) -> Result<Reply, Failure> {
        self.check_lease("expose")?;
        let (instance, ..) = self.staging.clone().ok_or_else(|| out_of_order("expose", "stage"))?;
        let mut unusable = Vec::new();
        for PushTarget { target, base, .. } in &disks {
            self.write(format!("{target}.qcow2"), FakeFile::Image(IMAGE_BYTES))?;
            let held = base.as_ref().map_or(Ok(()), |base| self.share(|share| share.holds(instance, base, target)));
            unusable.extend(held.err().map(|failure| (target.clone(), format!("{failure:#}"))));
        }
        self.movers.world().exposed.insert(place);
        self.pushed = Some(disks);
        Ok(Reply::Exposed { unusable })
    }

    pub(super) fn inspect(&mut self, changes_of: &[DiskTarget], written_bytes: Option<u64>) -> Result<Reply, Failure> {
        let pushed = self.pushed.take().ok_or_else(|| out_of_order("inspect", "expose"))?;
        if !changes_of.is_empty() && written_bytes.is_none() {
            return Err(Failure::new(Code::Internal, "nobody said how much was to be written"));
        }
        let disks = pushed.iter().map(|disk| (disk.target.clone(), disk.virtual_bytes)).collect();
        let mut reply = self.record_blocks(disks)?;
        if let Reply::Copied { disks: copied, .. } = &mut reply {
            for (pushed, copied) in pushed.iter().zip(copied) {
                let base = pushed.base.as_ref().filter(|_| changes_of.contains(&pushed.target));
                copied.based_on = base.map(|base| BasedOn {
                    backup_id: base.backup,
                    content_root: base.content_root.clone(),
                    found_by: ChangesFoundBy::Bitmap,
                });
            }
        }
        // Whole, but without a source to compare with.
        (self.copied_bytes, self.inspected) = (None, true);
        Ok(reply)
    }
}
