//! One lease on the share: the directory `<n>` and its three small files. All of it blocks.

use std::os::unix::fs::FileExt;

use super::HolderFile;
use crate::failure::{Code, Failure};
use crate::mover::share::{self, Dir, NUMBER_MAX, ShareError};

const HOLDER: &str = "holder";
const COUNTER: &str = "counter";
const RELEASED: &str = "released";
/// Longest `holder` that is read, bytes.
const HOLDER_BYTES_MAX: u64 = 16 * 1024;
/// Longest `counter` that is read, bytes; ours is 21.
const COUNTER_BYTES_MAX: u64 = 64;
/// Leases of one instance, beyond which the directory is not one of ours: one an hour for 22 years.
const LEASES_MAX: usize = 200_000;

/// What a watcher sees of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Its holder let go.
    Released,
    /// The counter's bytes as they are; none where the holder has not written one yet.
    Counter(Option<Vec<u8>>),
}

/// The highest number taken so far; 0 for none. One after which there is no room for more was not taken by any of us.
pub(super) fn highest(slots: &Dir) -> Result<u64, Failure> {
    let entries = slots.list(LEASES_MAX)?;
    let highest = entries.iter().filter_map(|entry| number(entry.name.to_str()?)).max().unwrap_or(0);
    if highest >= NUMBER_MAX {
        let text = format!("`{}` on the share has a lease {highest}", slots.path().display());
        return Err(Failure::new(Code::RepositoryUnsafe, text));
    }
    Ok(highest)
}

/// A name that we would give to a lease: `007` and `+7` are not lease 7.
fn number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// Tries to become the holder of lease `number`; none when somebody else is.
///
/// An answer may be lost on its way from a file server, so no error of the calls is taken for a "no" or a "yes": what
/// stands in `holder` decides. That it is made exclusively is what makes one of two the holder.
pub(super) fn claim(slots: &Dir, number: u64, holder: &HolderFile) -> Result<Option<Dir>, Failure> {
    let made = match slots.create_dir(number.to_string()) {
        Ok(()) => true,
        Err(error) if error.is_taken() => return Ok(None),
        Err(error) if is_lost_answer(&error) => false,
        Err(error) => return Err(error.into()),
    };
    let own = slots.open_dir(number.to_string())?;
    match sign(slots, &own, holder) {
        Ok(true) => Ok(Some(own)),
        Ok(false) => Ok(None),
        Err(failure) => {
            // Or everybody would have to watch for minutes that nobody holds it. Whether it works is seen by the next one.
            let _released = made.then(|| release(&own));
            Err(failure)
        }
    }
}

/// Makes the lease in `own` ours; false when somebody else was faster.
fn sign(slots: &Dir, own: &Dir, holder: &HolderFile) -> Result<bool, Failure> {
    let content = serde_json::to_vec(holder)
        .map_err(|error| Failure::new(Code::Internal, "cannot write the holder of a lease").because(&error))?;
    let written = own.write_new(HOLDER, &content);
    match read_holder(own) {
        Ok(Some(found)) if found.token == holder.token => {}
        Ok(Some(_)) => return Ok(false),
        Ok(None) | Err(_) => {
            written?;
            let text = format!("cannot read back who holds `{}`", own.path().display());
            return Err(Failure::new(Code::RepositoryIo, text));
        }
    }
    own.write_new(COUNTER, counter_bytes(0).as_bytes())?;
    slots.sync()?;
    Ok(true)
}

/// An error after which the call may still have been carried out.
fn is_lost_answer(error: &ShareError) -> bool {
    use nix::errno::Errno;
    matches!(error, ShareError::Refused { errno: Errno::EIO | Errno::ETIMEDOUT | Errno::EINTR | Errno::EREMOTEIO, .. })
}

/// Who holds a lease; none where nobody has signed it yet or the file says nothing.
pub(super) fn read_holder(slot: &Dir) -> Result<Option<HolderFile>, Failure> {
    match slot.read(HOLDER, HOLDER_BYTES_MAX) {
        Ok(content) => Ok(serde_json::from_slice(&content).ok()),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Looks at lease `number`, from the directory down, so that a network client asks its server and not its cache.
pub(super) fn look(slots: &Dir, number: u64) -> Result<(Seen, Option<HolderFile>), Failure> {
    let slot = slots.open_dir(number.to_string())?;
    if slot.stat(RELEASED)?.is_some() {
        return Ok((Seen::Released, None));
    }
    let counter = match slot.read(COUNTER, COUNTER_BYTES_MAX) {
        Ok(content) => Some(content),
        Err(error) if error.is_missing() => None,
        Err(error) => return Err(error.into()),
    };
    Ok((Seen::Counter(counter), read_holder(&slot)?))
}

/// When the holder of lease `number` wrote its counter last, by the share's clock; none where it has let go.
pub(super) fn heard_of(slots: &Dir, number: u64) -> Result<Option<Option<i64>>, Failure> {
    let slot = slots.open_dir(number.to_string())?;
    if slot.stat(RELEASED)?.is_some() {
        return Ok(None);
    }
    Ok(Some(slot.stat(COUNTER)?.map(|counter| counter.st_mtime)))
}

/// Writes the holder's counter; false when somebody else has taken the lease after it.
///
/// In place, and opened anew each time: that is what other clients of a network file system are promised to see.
pub(super) fn beat(slots: &Dir, own: &Dir, number: u64, counter: u64) -> Result<bool, Failure> {
    if slots.stat(number.saturating_add(1).to_string())?.is_some() {
        return Ok(false);
    }
    let failed = |error: std::io::Error| {
        Failure::new(Code::RepositoryIo, format!("cannot write `{COUNTER}` in `{}`", own.path().display()))
            .because(&error)
    };
    let file = own.open_file(COUNTER, true)?;
    file.write_all_at(counter_bytes(counter).as_bytes(), 0).map_err(failed)?;
    share::sync(&file).map_err(failed)?;
    nix::unistd::close(file).map_err(|errno| failed(errno.into()))?;
    Ok(true)
}

/// Marks a lease as given back; once more is no error.
pub(super) fn release(own: &Dir) -> Result<(), Failure> {
    match own.write_new(RELEASED, b"") {
        Err(error) if error.is_taken() => {}
        written => written?,
    }
    own.sync()?;
    Ok(())
}

/// Always of the same length, so that rewriting it in place never shows a mixture of two lengths.
fn counter_bytes(counter: u64) -> String {
    format!("{counter:020}\n")
}
