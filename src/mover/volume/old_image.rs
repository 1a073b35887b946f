//! What a qcow2 image holds besides what its guest sees now, by its header (QEMU's docs/interop/qcow2.txt): snapshots of its own, and
//! a file in which its data is. A backup has neither.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the header that are looked at.
const HEADER_BYTES: usize = 80;
const MAGIC: &[u8] = b"QFI\xfb";
/// The data is in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

/// What is lost with the image, in words; none for what is no qcow2 image. Blocks.
pub(super) fn only_here(image: &File) -> io::Result<Option<String>> {
    let mut header = [0; HEADER_BYTES];
    match image.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(|()| in_header(&header)),
    }
}

fn in_header(header: &[u8; HEADER_BYTES]) -> Option<String> {
    let (magic, rest) = header.split_first_chunk::<4>()?;
    if magic != MAGIC {
        return None;
    }
    let version = u32::from_be_bytes(*rest.first_chunk()?);
    let snapshots = u32::from_be_bytes(header.get(60..64)?.try_into().ok()?);
    // Version 2 ends before them.
    let features = if version < 3 { 0 } else { u64::from_be_bytes(header.get(72..80)?.try_into().ok()?) };
    match (snapshots, features & EXTERNAL_DATA) {
        (0, 0) => None,
        (0, _) => Some("its data in another file".to_owned()),
        (count, _) => Some(format!("{count} internal snapshots")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    fn header(version: u8, snapshots: u8, features: u8) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(MAGIC);
        (header[7], header[63], header[79]) = (version, snapshots, features);
        header
    }

    #[test]
    fn snapshots_and_data_elsewhere_are_seen_and_nothing_else() {
        assert_eq!(in_header(&header(3, 0, 0)), None);
        assert_eq!(in_header(&header(3, 0, 0b1010)), None);
        assert_eq!(in_header(&header(2, 0, 0xff)), None, "version 2 has no features there");
        assert_eq!(in_header(&header(2, 2, 0)).as_deref(), Some("2 internal snapshots"));
        assert_eq!(in_header(&header(3, 0, 0b100)).as_deref(), Some("its data in another file"));
        assert_eq!(in_header(&[7; HEADER_BYTES]), None);
    }
}
