//! The names of new and old volumes beside the volume itself, by which an attempt's own are told from all others.
//!
//! ```text
//!   <volume>.longshore-<job>.<run>.<attempt>.new        until it takes the volume's place
//!   <volume>.longshore-<job>.<run>.<attempt>.previous   from then on, the old one
//! ```

use std::path::{Path, PathBuf};

/// Stands between the volume's name and the attempt's.
const MARK: &str = ".longshore-";

/// Longest name, bytes (`NAME_MAX`). That of an RBD image may be as long.
const NAME_BYTES_MAX: usize = 255;

/// Hexadecimal digits that stand for a job.
pub const JOB_DIGITS: usize = 12;

/// What has such a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The new volume.
    New,
    /// The old one.
    Previous,
}

impl Beside {
    const ALL: [Self; 2] = [Self::New, Self::Previous];

    const fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Previous => "previous",
        }
    }
}

/// What a name beside a volume's says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BesideName {
    /// The attempt's mover: job, run and attempt.
    pub mover: String,
    /// What has the name.
    pub what: Beside,
}

impl BesideName {
    /// Reads one; none where it is not beside that volume, or of no attempt.
    pub fn read(volume: &Path, other: &Path) -> Option<Self> {
        if volume.parent() != other.parent() {
            return None;
        }
        let rest = other.file_name()?.to_str()?.strip_prefix(volume.file_name()?.to_str()?)?.strip_prefix(MARK)?;
        let (mover, word) = rest.rsplit_once('.')?;
        let what = Beside::ALL.into_iter().find(|what| what.word() == word)?;
        is_attempt(mover).then(|| Self { mover: mover.to_owned(), what })
    }

    /// The name of the attempt's new or old volume beside that one; none where it would be too long.
    pub fn of(&self, volume: &Path, what: Beside) -> Option<PathBuf> {
        beside(volume, &self.mover, what)
    }
}

/// The name that an attempt, by that of its mover, gives to a new or an old volume; none where it would be too long.
pub fn beside(volume: &Path, mover: &str, what: Beside) -> Option<PathBuf> {
    let mut name = volume.file_name()?.to_owned();
    name.push(format!("{MARK}{mover}.{}", what.word()));
    (name.len() <= NAME_BYTES_MAX).then(|| volume.with_file_name(name))
}

/// `<job>.<run>.<attempt>`.
fn is_attempt(mover: &str) -> bool {
    let parts: Vec<&str> = mover.split('.').collect();
    let [job, run, attempt] = parts[..] else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    job.len() == JOB_DIGITS && job.bytes().all(is_hex) && is_number(run) && is_number(attempt)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MOVER: &str = "0123456789ab.1.2";

    #[test]
    fn what_an_attempt_names_is_read_back() {
        for volume in
            ["volumes/web", "volumes/space/web", "/images/web.raw", "volumes/web.longshore-0123456789ab.1.1.new"]
        {
            let volume = Path::new(volume);
            for what in Beside::ALL {
                let name = beside(volume, MOVER, what).unwrap();
                let read = BesideName::read(volume, &name).unwrap();
                assert_eq!(read, BesideName { mover: MOVER.to_owned(), what });
                assert_eq!(read.of(volume, what).unwrap(), name);
                assert_eq!(BesideName::read(volume, volume), None);
                assert_eq!(BesideName::read(&name, volume), None);
            }
        }
        let name = beside(Path::new("volumes/web"), MOVER, Beside::Previous).unwrap();
        assert_eq!(name, Path::new("volumes/web.longshore-0123456789ab.1.2.previous"));
        assert_eq!(beside(Path::new(&"a".repeat(230)), MOVER, Beside::Previous), None);
    }

    #[test]
    fn what_no_attempt_named_is_nobodys() {
        let volume = Path::new("volumes/web");
        for other in [
            "other/web.longshore-0123456789ab.1.2.new",
            "volumes/space/web.longshore-0123456789ab.1.2.new",
            "volumes/db.longshore-0123456789ab.1.2.new",
            "volumes/web2.longshore-0123456789ab.1.2.new",
            "volumes/web.longshore-0123456789ab.1.2.old",
            "volumes/web.longshore-0123456789ab.1.2.new.new",
            "volumes/web.longshore-0123456789ab.1.new",
            "volumes/web.longshore-0123456789AB.1.2.new",
            "volumes/web.longshore-0123456789a.1.2.new",
            "volumes/web.longshore-0123456789ab.1..new",
            "volumes/web.longshore-test.new",
            "volumes/web.longshore-0123456789ab.1.2.new@monday",
            "volumes/web.new",
            "volumes/web",
            "web.longshore-0123456789ab.1.2.new",
        ] {
            assert_eq!(BesideName::read(volume, Path::new(other)), None, "{other}");
        }
    }
}
