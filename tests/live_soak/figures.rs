//! What a worker and its host use between two jobs, and whether it grows.

use std::path::{Path, PathBuf};

use crate::lab::variable;
use crate::slate::everything_in;

/// How much more of a figure the last quarter may have than the first, both by their least: a share of it, and so much beside.
pub struct Tolerance {
    share: f64,
    beside: u64,
}

/// One look.
pub struct Figures {
    pub backups: usize,
    pub runs: usize,
    values: [u64; NAMES.len()],
}

/// What is looked at, in the order of the columns, each with the growth that is borne. Pages of memory that were read once stay, so
/// each may grow by the noise of the allocator; a descriptor or a thread that is left per round would be there twenty times and more.
const NAMES: [(&str, Option<Tolerance>); 13] = [
    ("RSS, KiB", Some(Tolerance { share: 0.05, beside: 2048 })),
    ("PSS, KiB", Some(Tolerance { share: 0.05, beside: 2048 })),
    ("private, KiB", Some(Tolerance { share: 0.05, beside: 2048 })),
    ("descriptors", Some(Tolerance { share: 0.0, beside: 2 })),
    ("threads", Some(Tolerance { share: 0.0, beside: 2 })),
    ("processes", Some(Tolerance { share: 0.0, beside: 0 })),
    ("in scratch", Some(Tolerance { share: 0.0, beside: 0 })),
    ("in run", Some(Tolerance { share: 0.0, beside: 0 })),
    // It keeps what has ended for a day, so that it grows with the runs of a day: what each adds is looked at instead.
    ("journal, KiB", None),
    ("its log, KiB", Some(Tolerance { share: 0.5, beside: 8192 })),
    ("libvirtd RSS, KiB", None),
    ("libvirtd descriptors", None),
    ("libvirtd threads", None),
];
const JOURNAL: usize = 8;

impl Figures {
    /// Those of now. The worker is at rest.
    pub fn take(worker: u32, folder: &Path, backups: usize, runs: usize) -> Self {
        let rollup = std::fs::read_to_string(format!("/proc/{worker}/smaps_rollup")).unwrap();
        let state = folder.join("state");
        let bytes = |name| std::fs::metadata(state.join(name)).map_or(0, |file| file.len()) >> 10;
        let in_folder = |name| everything_in(&folder.join(name)).len() as u64;
        let libvirtd = PathBuf::from(variable("LONGSHORE_LAB_DIR")).join("libvirt/run/libvirtd.pid");
        let libvirtd = std::fs::read_to_string(&libvirtd).unwrap().trim().parse().unwrap();
        let values = [
            kib(&rollup, "Rss:"),
            kib(&rollup, "Pss:"),
            kib(&rollup, "Private_Dirty:"),
            entries(worker, "fd"),
            entries(worker, "task"),
            crate::slate::processes_of(folder).len() as u64,
            in_folder("scratch"),
            in_folder("run"),
            bytes("journal.sqlite"),
            bytes("journal.sqlite-wal"),
            kib(&std::fs::read_to_string(format!("/proc/{libvirtd}/status")).unwrap(), "VmRSS:"),
            entries(libvirtd, "fd"),
            entries(libvirtd, "task"),
        ];
        Self { backups, runs, values }
    }

    pub fn show_names() {
        let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
        println!("| backups | runs | {} |", names.join(" | "));
        println!("|{}", "---|".repeat(names.len() + 2));
    }

    pub fn show(&self) {
        let values: Vec<_> = self.values.iter().map(u64::to_string).collect();
        println!("| {} | {} | {} |", self.backups, self.runs, values.join(" | "));
    }
}

/// What has grown by more than is borne, in words: the least of the last quarter beside the least of the first one, so that what one look
/// finds by chance is nothing. What the first quarter warms up, such as caches, is to be left out by the caller.
pub fn growth(figures: &[Figures]) -> Vec<String> {
    let quarter = (figures.len() / 4).max(1);
    let (first, last) = (&figures[..quarter], &figures[figures.len() - quarter..]);
    let least =
        |figures: &[Figures], column: usize| figures.iter().map(|figures| figures.values[column]).min().unwrap();
    let mut grown = Vec::new();
    for (column, (name, tolerance)) in NAMES.iter().enumerate() {
        let (before, after) = (least(first, column), least(last, column));
        let Some(Tolerance { share, beside }) = tolerance else { continue };
        let most = before + (before as f64 * share) as u64 + beside;
        if after > most {
            grown.push(format!("{name}: {before} before and {after} after, and {most} are borne"));
        }
    }
    let per_run = |figures: &[Figures]| {
        let [from, .., to] = figures else { return 0.0 };
        (to.values[JOURNAL] as f64 - from.values[JOURNAL] as f64) / (to.runs - from.runs) as f64
    };
    let (half, all) = (per_run(&figures[..figures.len() / 2]), per_run(figures));
    println!("\nthe journal: {half:.1} KiB a run in the first half, {all:.1} KiB in all");
    // Twice as much a run as before is no kept row any more.
    if all > 2.0 * half + 4.0 {
        grown.push(format!("the journal: {half:.1} KiB a run at first, and {all:.1} in all"));
    }
    grown
}

fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn entries(process: u32, folder: &str) -> u64 {
    std::fs::read_dir(format!("/proc/{process}/{folder}")).unwrap().count() as u64
}

#[test]
fn what_grows_is_named_and_what_only_jumps_is_not() {
    let look = |number: usize, descriptors: u64, scratch: u64| {
        let mut values = [1000; NAMES.len()];
        (values[3], values[6]) = (descriptors, scratch);
        Figures { backups: number, runs: number, values }
    };
    let calm: Vec<_> = (0..16).map(|number| look(number, if number == 15 { 90 } else { 20 }, 0)).collect();
    assert_eq!(growth(&calm), [] as [String; 0]);
    let leaks: Vec<_> = (0..16).map(|number| look(number, 20 + number as u64, number as u64)).collect();
    assert_eq!(growth(&leaks).len(), 2, "{:?}", growth(&leaks));
}
