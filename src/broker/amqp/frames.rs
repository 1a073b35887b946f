//! The broker's bytes, frame by frame, with those frames that need it [mended](super::mend).

use std::io;

use super::mend;

/// What stands in front of a frame's payload: type, channel and size.
const HEAD_BYTES: usize = 7;
/// Longest payload of a frame that is held back to be looked at. RabbitMQ does not split a message's properties, whatever the
/// connection's limit says; its own default takes none over this from a publisher.
const HELD_BYTES_MAX: usize = 256 * 1024;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Where in the stream we are.
#[derive(Default)]
enum Place {
    /// In a frame's head, or in a frame that is held back.
    #[default]
    Frame,
    /// In a frame that passes, with so many bytes to come.
    Passing(usize),
    /// In something that is not AMQP, as when the broker speaks another version: all of it passes.
    Foreign,
}

/// The frames of one connection.
#[derive(Default)]
pub(super) struct Frames {
    place: Place,
    /// The frame that is not whole yet.
    held: Vec<u8>,
    /// What may pass, of which so many bytes are gone.
    ready: Vec<u8>,
    gone: usize,
}

impl Frames {
    /// Takes what may pass now, as much as there is room for. Nothing if there is nothing.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let waiting = self.ready.get(self.gone..).unwrap_or_default();
        let count = waiting.len().min(into.len());
        into.iter_mut().zip(waiting).for_each(|(to, from)| *to = *from);
        self.gone += count;
        if self.gone == self.ready.len() {
            self.ready.clear();
            self.gone = 0;
        }
        count
    }

    /// Adds what the broker has sent.
    pub(super) fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = match self.place {
                Place::Foreign => bytes.len(),
                Place::Passing(left) => left,
                Place::Frame => self.frame_bytes()? - self.held.len(),
            };
            let (now, later) = bytes.split_at(wanted.min(bytes.len()));
            bytes = later;
            match self.place {
                Place::Foreign => self.ready.extend(now),
                Place::Passing(left) => {
                    self.ready.extend(now);
                    self.place = if left == now.len() { Place::Frame } else { Place::Passing(left - now.len()) };
                }
                Place::Frame => {
                    self.held.extend(now);
                    self.look();
                }
            }
        }
        Ok(())
    }

    /// How many bytes have to be held back: a head, or with it the whole frame.
    fn frame_bytes(&self) -> io::Result<usize> {
        match self.payload_bytes() {
            None => Ok(HEAD_BYTES),
            Some(bytes) if bytes <= HELD_BYTES_MAX => Ok(HEAD_BYTES + bytes + 1),
            Some(bytes) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message's properties have {bytes} bytes, more than the {HELD_BYTES_MAX} that are read"),
            )),
        }
    }

    /// The payload's size, once the head is there.
    fn payload_bytes(&self) -> Option<usize> {
        let size = self.held.get(HEAD_BYTES - 4..HEAD_BYTES)?;
        Some(size.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Lets a frame pass whose head says that it may, or that is whole.
    fn look(&mut self) {
        let Some(&kind) = self.held.first() else { return };
        if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
            self.place = Place::Foreign;
            return self.ready.append(&mut self.held);
        }
        let Some(bytes) = self.payload_bytes() else { return };
        if matches!(kind, BODY | HEARTBEAT) {
            self.place = Place::Passing(bytes + 1);
            return self.ready.append(&mut self.held);
        }
        let whole = self.held.len() == HEAD_BYTES + bytes + 1;
        if let Some(payload) = self.held.get_mut(HEAD_BYTES..HEAD_BYTES + bytes).filter(|_| whole) {
            if kind == METHOD {
                mend::method(payload)
            } else {
                mend::content_header(payload)
            }
            self.ready.append(&mut self.held);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1][..], &u32::try_from(payload.len()).unwrap().to_be_bytes(), payload, &[0xce]].concat()
    }

    /// A content header whose message id is not UTF-8, and what becomes of it.
    fn bad_header() -> (Vec<u8>, Vec<u8>) {
        let payload = |id: &[u8]| [&[0; 12][..], &[0, 1 << 7, 2], id].concat();
        (frame(HEADER, &payload(b"a\xff")), frame(HEADER, &payload(b"a?")))
    }

    proptest! {
        #[test]
        fn however_the_bytes_come_the_frames_are_the_same(pieces in proptest::collection::vec(1usize..40, 1..60)) {
            let (bad, good) = bad_header();
            let others = [frame(METHOD, &[0, 60, 0, 80]), frame(BODY, &[0xff; 100]), frame(HEARTBEAT, &[])].concat();
            let sent = [others.clone(), bad.clone(), others.clone(), bad].concat();
            let wanted = [others.clone(), good.clone(), others, good].concat();
            let (mut frames, mut read, mut rest) = (Frames::default(), Vec::<u8>::new(), sent.as_slice());
            let mut sizes = pieces.into_iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                rest = later;
                frames.add(now).unwrap();
                let mut into = [0; 7];
                while let count @ 1.. = frames.take(&mut into) {
                    read.extend(&into[..count]);
                }
            }
            prop_assert_eq!(read, wanted);
        }
    }

    #[test]
    fn what_is_not_amqp_passes_and_properties_without_end_do_not() {
        let mut frames = Frames::default();
        frames.add(b"AMQP\0\0\x09\x01").unwrap();
        let mut into = [0; 20];
        assert_eq!(frames.take(&mut into), 8);
        let error = Frames::default().add(&[HEADER, 0, 1, 0, 16, 0, 0, 0, 0]).unwrap_err();
        assert!(error.to_string().contains("properties"), "{error}");
    }
}
