//! What one durable write costs on the disk that the journal and the broker use here.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::spread::Spread;

const WRITES: u64 = 500;
const BLOCK: [u8; 4096] = [7; 4096];

/// Median time of a write of 4 KiB behind the last one, with its fdatasync, in milliseconds.
pub fn sync_milliseconds() -> f64 {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = File::create(folder.path().join("written")).unwrap();
    let write = |number| {
        let begun = Instant::now();
        file.write_all_at(&BLOCK, number * BLOCK.len() as u64).unwrap();
        file.sync_data().unwrap();
        begun.elapsed().as_secs_f64() * 1e3
    };
    (0..WRITES).map(write).collect::<Spread>().median()
}
