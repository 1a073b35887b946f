//! One frame: a big-endian `u32` length and that many bytes of MessagePack with field names. What comes in is bounded
//! before it is allocated, since either side may be broken.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::FRAME_BYTES_MAX;

/// A frame that can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The pipe failed, or ended within a frame.
    #[error("the pipe between worker and mover failed")]
    Pipe(#[source] io::Error),
    /// Longer than either side accepts.
    #[error("a frame of {bytes} bytes is longer than the {FRAME_BYTES_MAX} allowed")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// It can't be put into bytes.
    #[error("cannot encode a frame")]
    Encode(#[source] rmp_serde::encode::Error),
    /// Its bytes are not what was expected.
    #[error("cannot decode a frame")]
    Decode(#[source] rmp_serde::decode::Error),
}

/// A whole frame, length and all.
pub fn encode(value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let body = rmp_serde::to_vec_named(value).map_err(FrameError::Encode)?;
    match u32::try_from(body.len()) {
        Ok(bytes) if bytes <= FRAME_BYTES_MAX => Ok([&bytes.to_be_bytes()[..], &body].concat()),
        _ => Err(FrameError::TooLong { bytes: body.len() as u64 }),
    }
}

/// Reads the next frame; none where the pipe ended between two. Not to be dropped half-way: the rest of the frame would
/// be taken for the next.
pub async fn read<T: DeserializeOwned>(pipe: &mut (impl AsyncRead + Unpin)) -> Result<Option<T>, FrameError> {
    let mut length = [0; 4];
    let (first, rest) = length.split_at_mut(1);
    if pipe.read(first).await.map_err(FrameError::Pipe)? == 0 {
        return Ok(None);
    }
    pipe.read_exact(rest).await.map_err(FrameError::Pipe)?;
    let bytes = u32::from_be_bytes(length);
    if bytes > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: bytes.into() });
    }
    let mut body = vec![0; bytes as usize];
    pipe.read_exact(&mut body).await.map_err(FrameError::Pipe)?;
    rmp_serde::from_slice(&body).map(Some).map_err(FrameError::Decode)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{FromMover, Notice, Request, ToMover};
    use super::*;
    use crate::failure::{Code, Failure};

    #[tokio::test]
    async fn frames_are_read_back_one_after_the_other() {
        let one = FromMover::Answer { id: 7, result: Err(Failure::new(Code::LeaseHeld, "x").caused_by("y")) };
        let two = FromMover::Notice(Notice::Progress { done_bytes: 1, total_bytes: 2, data_bytes: 3 });
        let bytes = [encode(&one).unwrap(), encode(&two).unwrap()].concat();
        let mut pipe = bytes.as_slice();
        assert_eq!(read::<FromMover>(&mut pipe).await.unwrap(), Some(one));
        assert_eq!(read::<FromMover>(&mut pipe).await.unwrap(), Some(two));
        assert_eq!(read::<FromMover>(&mut pipe).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_frame_that_is_cut_off_too_long_or_garbage_is_an_error() {
        let whole = encode(&ToMover { id: 1, request: Request::Compare }).unwrap();
        for end in 1..whole.len() {
            assert!(read::<ToMover>(&mut &whole[..end]).await.is_err(), "{end}");
        }
        let too_long = (FRAME_BYTES_MAX + 1).to_be_bytes();
        assert!(matches!(read::<ToMover>(&mut &too_long[..]).await, Err(FrameError::TooLong { .. })));
        assert!(matches!(read::<ToMover>(&mut &[0, 0, 0, 1, 0xc1][..]).await, Err(FrameError::Decode(_))));
        let record = Request::Record { file: "x".into(), content: vec![0; FRAME_BYTES_MAX as usize] };
        assert!(matches!(encode(&ToMover { id: 1, request: record }), Err(FrameError::TooLong { .. })));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let _either = runtime.block_on(read::<ToMover>(&mut bytes.as_slice()));
            let _either = runtime.block_on(read::<FromMover>(&mut bytes.as_slice()));
        }
    }
}
