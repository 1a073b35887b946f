//! Whether an image that another process has written is whole to its last table.
//!
//! QEMU's push job flushes nothing, and what fails when it closes an image is told to nobody (`block.c`, `bdrv_close`): libvirt
//! calls the backup a success. Where neither a table nor the counts of what it names have arrived, `qemu-img check` finds no
//! fault, since nothing contradicts anything: the data is in the file and belongs to nothing. But a file that was written once,
//! from its beginning to its end, has no cluster that is free. So each one has to be counted.
//!
//! The header comes first: what wrote the image may have been taken over by its guest, and tools that run as root follow what a header
//! says. Nothing opens the image before it is known to be the plain one that it was made as.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::target::CLUSTER_BYTES;

/// Bytes of the header that are read: all of version 3's fixed part.
const HEADER_BYTES: usize = 104;
/// Bits of a count, as a power of two: images of our making have 16.
const REFCOUNT_ORDER: u32 = 4;
/// Counts in one block of them.
const COUNTS_A_BLOCK: usize = CLUSTER_BYTES / 2;
/// Longest name of a backing file, bytes: what the format allows.
const BACKING_BYTES_MAX: usize = 1023;
/// Largest table of count blocks, in clusters: for a file of 4 PiB.
const TABLE_CLUSTERS_MAX: u32 = 256;

/// The backing file that the header names, if any; or what is wrong with the header, in words, where it is none that we had an image
/// made with.
pub(super) fn backing_file(file: &File) -> io::Result<Result<Option<String>, String>> {
    let mut header = [0; HEADER_BYTES];
    let table = match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(Err("it ends within its header".to_owned()));
        }
        read => read.map(|()| Table::of(&header))?,
    };
    let Some(Table { backing_offset, backing_bytes, .. }) = table else { return Ok(Err(not_as_made())) };
    if backing_offset == 0 {
        return Ok(Ok(None));
    }
    let mut name = vec![0; backing_bytes];
    match file.read_exact_at(&mut name, backing_offset) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(not_as_made())),
        read => read.map(|()| String::from_utf8(name).map(Some).map_err(|_| not_as_made())),
    }
}

/// What is wrong, in words; none where every cluster of the file belongs to something, and the header names `backing`.
pub(super) fn fault(file: &File, backing: Option<&str>) -> io::Result<Option<String>> {
    match backing_file(file)? {
        Ok(found) if found.as_deref() == backing => {}
        Ok(_) => return Ok(Some(not_as_made())),
        Err(fault) => return Ok(Some(fault)),
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let Some(table) = Table::of(&header) else { return Ok(Some(not_as_made())) };
    let cluster = bytes_of(CLUSTER_BYTES);
    let clusters = file.metadata()?.len().div_ceil(cluster);
    let mut entries = vec![0; usize::try_from(u64::from(table.clusters) * cluster).unwrap_or(0)];
    file.read_exact_at(&mut entries, table.offset)?;
    let mut counts = vec![0; CLUSTER_BYTES];
    let mut first = 0;
    for entry in entries.chunks_exact(8) {
        if first >= clusters {
            return Ok(None);
        }
        let offset = number(entry);
        if offset == 0 {
            return Ok(Some(belongs_to_nothing(first)));
        }
        file.read_exact_at(&mut counts, offset)?;
        let here = usize::try_from(clusters - first).unwrap_or(usize::MAX).min(COUNTS_A_BLOCK);
        if let Some(free) = counts.chunks_exact(2).take(here).position(|count| count == [0, 0]) {
            return Ok(Some(belongs_to_nothing(first + bytes_of(free))));
        }
        first += bytes_of(COUNTS_A_BLOCK);
    }
    Ok((first < clusters).then(|| belongs_to_nothing(first)))
}

/// Where the count blocks are listed, and the name of the backing file.
struct Table {
    offset: u64,
    clusters: u32,
    /// 0 where there is none.
    backing_offset: u64,
    backing_bytes: usize,
}

impl Table {
    /// None where the header says anything else than we had it made with.
    fn of(header: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| header.get(at..at + 4).map(|bytes| u32::try_from(number(bytes)).unwrap_or(u32::MAX));
        let u64_at = |at: usize| header.get(at..at + 8).map(number);
        let ours = u32_at(0)? == 0x5146_49fb
            && u32_at(4)? == 3
            && 1_usize.checked_shl(u32_at(20)?) == Some(CLUSTER_BYTES)
            && u32_at(60)? == 0
            // Neither dirty, nor corrupt, nor with its data in another file, which may be any that root can read.
            && u64_at(72)? == 0
            && u32_at(32)? == 0
            && u32_at(96)? == REFCOUNT_ORDER;
        let (offset, clusters) = (u64_at(48)?, u32_at(56)?);
        let (backing_offset, backing_bytes) = (u64_at(8)?, usize::try_from(u32_at(16)?).ok()?);
        let table = Self { offset, clusters, backing_offset, backing_bytes };
        (ours && backing_bytes <= BACKING_BYTES_MAX && (1..=TABLE_CLUSTERS_MAX).contains(&clusters)).then_some(table)
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn bytes_of(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn not_as_made() -> String {
    "its header is not the one that it was made with".to_owned()
}

fn belongs_to_nothing(cluster: u64) -> String {
    let at = cluster.saturating_mul(bytes_of(CLUSTER_BYTES));
    format!("what is stored at {at} of the file belongs to nothing: tables of the image were lost")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Header, table of count blocks, one block of them, and `data` clusters; each counted once.
    fn image(data: usize) -> Vec<u8> {
        let mut image = vec![0; (3 + data) * CLUSTER_BYTES];
        for (at, number) in [(0, 0x5146_49fb_u32), (4, 3), (20, 16), (56, 1), (96, 4)] {
            image[at..at + 4].copy_from_slice(&number.to_be_bytes());
        }
        image[48..56].copy_from_slice(&bytes_of(CLUSTER_BYTES).to_be_bytes());
        image[CLUSTER_BYTES..CLUSTER_BYTES + 8].copy_from_slice(&bytes_of(2 * CLUSTER_BYTES).to_be_bytes());
        for cluster in 0..3 + data {
            image[2 * CLUSTER_BYTES + cluster * 2 + 1] = 1;
        }
        image
    }

    fn of(image: &[u8]) -> Option<String> {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, image).unwrap();
        fault(&file, None).unwrap()
    }

    #[test]
    fn every_cluster_has_to_belong_to_something() {
        assert_eq!(of(&image(0)), None);
        assert_eq!(of(&image(40)), None);
        for free in [3, 20, 42] {
            let mut image = image(40);
            image[2 * CLUSTER_BYTES + free * 2 + 1] = 0;
            assert!(of(&image).unwrap().contains(&format!("at {} ", free * CLUSTER_BYTES)), "{free}");
        }
        let mut cut = image(40);
        cut.truncate(cut.len() - CLUSTER_BYTES / 2);
        assert_eq!(of(&cut), None, "a last cluster that is not written whole is QEMU's way");
    }

    #[test]
    fn counts_that_are_not_there_count_nothing() {
        let mut lost = image(1);
        lost[CLUSTER_BYTES..CLUSTER_BYTES + 8].fill(0);
        assert!(of(&lost).unwrap().contains("belongs to nothing"));
        let beyond = [image(1), vec![0; COUNTS_A_BLOCK * CLUSTER_BYTES]].concat();
        assert!(of(&beyond).is_some());
    }

    #[test]
    fn a_header_that_we_did_not_have_made_is_a_fault_and_reading_past_the_end_an_error() {
        for (at, byte) in [
            (0, 0),
            (7, 2),
            (15, 8),
            (23, 12),
            (63, 1),
            (79, 1),
            (79, 2),
            (79, 4),
            (79, 8),
            (79, 16),
            (72, 1),
            (35, 1),
            (99, 3),
            (56, 1),
            (59, 0),
        ] {
            let mut image = image(1);
            image[at] = byte;
            assert!(of(&image).unwrap().contains("header"), "{at}");
        }
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &image(1)[..HEADER_BYTES]).unwrap();
        assert!(fault(&file, None).is_err());
        assert_eq!(backing_file(&file).unwrap(), Ok(None));
        file.set_len(HEADER_BYTES as u64 - 1).unwrap();
        assert!(backing_file(&file).unwrap().unwrap_err().contains("within its header"));
    }

    #[test]
    fn the_backing_file_is_what_the_header_names_and_a_dense_image_has_none() {
        let named = |name: &[u8], bytes: usize| {
            let mut image = image(1);
            image[8..16].copy_from_slice(&200_u64.to_be_bytes());
            image[16..20].copy_from_slice(&u32::try_from(bytes).unwrap().to_be_bytes());
            image[200..200 + name.len()].copy_from_slice(name);
            assert!(of(&image).unwrap().contains("header"));
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, &image).unwrap();
            let found = backing_file(&file).unwrap();
            if let Ok(Some(name)) = &found {
                assert_eq!(fault(&file, Some(name)).unwrap(), None);
                assert!(fault(&file, Some("../y/vda.qcow2")).unwrap().unwrap().contains("header"));
            }
            found
        };
        assert_eq!(named(b"../x/vda.qcow2", 14), Ok(Some("../x/vda.qcow2".into())));
        assert!(named(b"\xff", 1).is_err());
        assert!(named(b"", BACKING_BYTES_MAX + 1).is_err());
    }
}
