//! What the worker and its guard say to each other: one JSON object a line, an [`Order`] down the guard's stdin and one
//! [`Answer`] for each up its stdout. The end of stdin means that the worker is gone, or has left the guard to its work.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::GuardDuty;
use crate::failure::Failure;

/// Longest line either side accepts, bytes. An order to arm names a scratch file for each disk.
const LINE_BYTES_MAX: u64 = 1024 * 1024;

/// What the worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Connect and stand by. The first order, and only the first.
    Arm {
        /// The libvirt to connect to.
        libvirt_uri: String,
        /// What to answer for.
        duty: GuardDuty,
    },
    /// The backup job is about to be begun: a pause by an I/O error may be its doing from now on.
    Beginning,
    /// The guest is about to be frozen.
    Freezing,
    /// The guest is thawed.
    Thawed,
    /// Has anything been done?
    Fired,
    /// Thaw the guest and end our job now, and go on with that.
    Rescue,
    /// Nothing is left to guard.
    Disarm,
}

/// What the guard says to an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The order was not followed.
    pub(super) refused: Option<Failure>,
    /// What the guard has done by itself so far, if anything.
    pub(super) fired: Option<Failure>,
}

/// Writes one line.
pub(super) async fn write_line<T: Serialize>(pipe: &mut (impl AsyncWrite + Unpin), line: &T) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    pipe.write_all(&bytes).await?;
    pipe.flush().await
}

/// Reads one line; none at the end of the pipe. A line that is cut off by the end is no line.
pub(super) async fn read_line<T: DeserializeOwned>(
    pipe: &mut (impl AsyncBufRead + Unpin),
) -> std::io::Result<Option<T>> {
    let mut bytes = Vec::new();
    pipe.take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).await?;
    if bytes.last() != Some(&b'\n') {
        let cut = bytes.len() as u64 == LINE_BYTES_MAX;
        return if cut { Err(std::io::Error::other("a line over 1 MiB")) } else { Ok(None) };
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> std::io::Result<Option<Order>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read_line::<Order>(&mut { bytes }))
    }

    #[test]
    fn an_order_is_one_line() {
        assert_eq!(read(b"\"freezing\"\n").unwrap(), Some(Order::Freezing));
        assert_eq!(read(b"").unwrap(), None);
        assert_eq!(read(b"\"disarm\"").unwrap(), None, "a worker that died while it wrote gave no order");
        assert!(read(&vec![b'x'; LINE_BYTES_MAX as usize + 1]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }
    }
}
