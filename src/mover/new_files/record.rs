//! Files beside the images of a backup: read, held against the manifest, and written anew.

use crate::failure::{Code, Failure};
use crate::model::id::{BackupId, InstanceId};
use crate::model::manifest::{Manifest, RecordFile};
use crate::mover::image::damaged;
use crate::mover::publish;
use crate::mover::share::{Dir, Sent, must_be_stored, plain_file_name};

use super::place::{Prepared, io};

/// Longest record that is read, bytes: the frame that it may have to pass is longer.
const RECORD_BYTES_MAX: u64 = 15 * 1024 * 1024;

/// How a qcow2 image begins, which can name any file of the host as what it is based on.
const IMAGE: &[u8] = b"QFI\xfb";

/// Reads one. `backup_damaged`: it is not what the manifest says.
pub(in crate::mover) fn read(
    root: &Dir,
    instance: InstanceId,
    backup: BackupId,
    file: &str,
) -> Result<Vec<u8>, Failure> {
    let (Manifest { records, .. }, dir) = publish::open(root, instance, backup)?;
    let known = records.iter().find(|record| record.file == file && plain_file_name(file));
    let Some(RecordFile { bytes, blake3, .. }) = known else {
        return Err(Failure::new(
            Code::BackupDamaged,
            format!("backup `{backup}` has no record `{}`", file.escape_debug()),
        ));
    };
    let content = dir.read(file, RECORD_BYTES_MAX).map_err(|error| match error.is_missing() {
        true => damaged(&dir, file, "it is missing"),
        false => Failure::from(error),
    })?;
    match content.len() as u64 == *bytes && blake3::hash(&content).to_hex().as_str() == blake3 {
        true => Ok(content),
        false => Err(damaged(&dir, file, "its content is another")),
    }
}

/// Writes one, durably, and reads it back from the storage. `definition_refused`: it is an image.
pub(in crate::mover) fn write(prepared: &Prepared, content: &[u8]) -> Result<(), Failure> {
    let Prepared { dir, fresh } = prepared;
    if content.starts_with(IMAGE) {
        // QEMU might look into it, and whoever wrote the backup says what is below.
        let text = format!("what was to become `{}` is an image, and no plain file", dir.path().join(fresh).display());
        return Err(Failure::new(Code::DefinitionRefused, text));
    }
    let name = fresh.to_string_lossy();
    dir.write_new(fresh, content).map_err(io)?;
    must_be_stored(dir, &name, &Sent::of(content)).map_err(|failure| match failure.code {
        // Whose storage it is, the share's own check does not know.
        Code::RepositoryIo => Failure { code: Code::VolumeIo, ..failure },
        _ => failure,
    })
}
