//! What an error of storage means. Whose storage it is, is said by the code of its I/O errors, the `device`: `repository_io`,
//! `volume_io`, `source_read_failed`. Pure.

use nix::errno::Errno;

use crate::failure::Code;

/// The code where it has no room.
pub(super) fn full(device: Code) -> Code {
    match device {
        Code::RepositoryIo => Code::RepositoryFull,
        Code::VolumeIo => Code::VolumeFull,
        other => other,
    }
}

/// The code where something else was put in the place of a file that is being written.
pub(super) fn replaced(device: Code) -> Code {
    if device == Code::RepositoryIo { Code::RepositoryUnsafe } else { device }
}

/// The code of an error of the file system.
pub(super) fn refused(device: Code, errno: Option<Errno>) -> Code {
    match errno {
        Some(Errno::ENOSPC | Errno::EDQUOT) => full(device),
        Some(Errno::EROFS | Errno::EACCES | Errno::EPERM) if device == Code::RepositoryIo => Code::RepositoryReadOnly,
        _ => device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_storage_has_codes_of_its_own() {
        assert_eq!(refused(Code::RepositoryIo, Some(Errno::EDQUOT)), Code::RepositoryFull);
        assert_eq!(refused(Code::RepositoryIo, Some(Errno::EROFS)), Code::RepositoryReadOnly);
        assert_eq!(refused(Code::VolumeIo, Some(Errno::ENOSPC)), Code::VolumeFull);
        assert_eq!(refused(Code::VolumeIo, Some(Errno::EROFS)), Code::VolumeIo);
        assert_eq!(refused(Code::SourceReadFailed, Some(Errno::ENOSPC)), Code::SourceReadFailed);
        assert_eq!(refused(Code::VolumeIo, None), Code::VolumeIo);
    }
}
