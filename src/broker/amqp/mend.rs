//! Makes what the broker sends fit for lapin, whose parser ends the connection, or overflows its stack, over properties that AMQP
//! allows.
//!
//! A short string need not be UTF-8, a table may be nested as deep as a frame is long, and RabbitMQ passes both on as they came.
//! To lapin the first is a parse error and the second a recursion without a limit. Either would come back with every new
//! connection, since the message is still in its queue: one of them would make a worker deaf for ever, or kill it. So the two
//! kinds of frames that carry what a publisher wrote are looked at before lapin sees them, and changed in place, their length
//! kept: a byte that is not ASCII in a short string that is not UTF-8 becomes `?`, and headers that lapin could not take are
//! replaced by a single one that counts as `CC`, so that nobody mistakes such a message for one that went straight to us. The
//! message then goes its way, and is refused with a letter if its body is no better.

/// Deepest nesting of tables and arrays in the headers, the headers themselves counted. Nothing that we read is nested.
const DEPTH_MAX: usize = 16;
/// Class and method of `basic.deliver`.
const BASIC_DELIVER: [u8; 4] = [0, 60, 0, 60];
/// What a content header has in front of its properties' flags: class, weight and the body's size.
const BEFORE_FLAGS: usize = 12;
/// Name of the header that stands in place of headers that cannot be read.
const REPLACED_BY: &[u8; 2] = b"CC";

/// What a property is, in the order of their flags, from the highest.
#[derive(Clone, Copy)]
enum Property {
    Short,
    Table,
    Fixed(usize),
}

use Property::{Fixed, Short, Table};

/// `content-type`, `content-encoding`, `headers`, `delivery-mode`, `priority`, `correlation-id`, `reply-to`, `expiration`,
/// `message-id`, `timestamp`, `type`, `user-id`, `app-id`, `cluster-id`.
const PROPERTIES: [Property; 14] =
    [Short, Short, Table, Fixed(1), Fixed(1), Short, Short, Short, Short, Fixed(8), Short, Short, Short, Short];

/// Mends the payload of a method frame, if it is a `basic.deliver`. What cannot be one is left to lapin.
pub(super) fn method(payload: &mut [u8]) {
    if !payload.starts_with(&BASIC_DELIVER) {
        return;
    }
    // Consumer tag; delivery tag and the bit for redelivered; exchange, routing key.
    let fields = [Short, Fixed(9), Short, Short];
    _ = fields.into_iter().try_fold(BASIC_DELIVER.len(), |at, field| property(payload, at, field));
}

/// Mends the payload of a content header frame. What cannot be one is left to lapin.
pub(super) fn content_header(payload: &mut [u8]) {
    let Some(flags) = number::<2>(payload, BEFORE_FLAGS) else { return };
    let present = (0..PROPERTIES.len()).filter(|place| flags & (1 << (15 - place)) != 0);
    _ = present
        .filter_map(|place| PROPERTIES.get(place).copied())
        .try_fold(BEFORE_FLAGS + 2, |at, kind| property(payload, at, kind));
}

/// Mends one property that begins at `at`. Gives where it ends, or nothing if it is not whole.
fn property(payload: &mut [u8], at: usize, kind: Property) -> Option<usize> {
    match kind {
        Fixed(bytes) => payload.get(at..at + bytes).map(|_| at + bytes),
        Short => {
            let begin = at + 1;
            let end = begin + usize::from(*payload.get(at)?);
            let text = payload.get_mut(begin..end)?;
            if std::str::from_utf8(text).is_err() {
                text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
            }
            Some(end)
        }
        Table => {
            let begin = at + 4;
            let end = begin.checked_add(number::<4>(payload, at)?)?;
            let table = payload.get_mut(begin..end)?;
            if entries(table, true, 1).is_none() {
                replace(table);
            }
            Some(end)
        }
    }
}

/// Whether lapin can read the entries of a table (with names) or of an array (without).
fn entries(mut rest: &[u8], named: bool, depth: usize) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    while !rest.is_empty() {
        if named {
            let (bytes, after) = rest.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*bytes))?;
            std::str::from_utf8(name).ok()?;
            rest = after;
        }
        let (kind, after) = rest.split_first()?;
        let fixed = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' | b'A' | b'F' => 4 + number::<4>(after, 0)?,
            _ => return None,
        };
        let (value, after) = after.split_at_checked(fixed)?;
        if matches!(kind, b'A' | b'F') {
            entries(value.get(4..)?, *kind == b'F', depth + 1)?;
        }
        rest = after;
    }
    Some(())
}

/// Makes one entry of a whole table: with an array of bytes as its value, or of no value where there is no room for one.
fn replace(table: &mut [u8]) {
    let head = 1 + REPLACED_BY.len() + 1 + 4;
    let mut entry = Vec::with_capacity(table.len());
    if let Some(value) = table.len().checked_sub(head) {
        entry.push(REPLACED_BY.len() as u8);
        entry.extend(REPLACED_BY);
        entry.push(b'x');
        entry.extend(u32::try_from(value).unwrap_or_default().to_be_bytes());
        table.iter_mut().zip(entry).for_each(|(byte, new)| *byte = new);
    } else if let Some(name) = table.len().checked_sub(2) {
        // Too short for a value, so too short for a real header of that name as well.
        entry.push(u8::try_from(name).unwrap_or_default());
        entry.resize(1 + name, b'?');
        entry.push(b'V');
        table.copy_from_slice(&entry);
    }
}

/// The number of `N` bytes at `at`, if it is there.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(N)?)?;
    Some(bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lapin::protocol::basic::parse_properties;
    use proptest::prelude::*;

    use super::super::convert::from_lapin;
    use super::*;

    /// Class, weight and size, then the flags and what follows them.
    fn payload(flags: u16, properties: &[u8]) -> Vec<u8> {
        [&[0; BEFORE_FLAGS][..], &flags.to_be_bytes(), properties].concat()
    }

    fn headers(table: &[u8]) -> Vec<u8> {
        payload(1 << 13, &[&u32::try_from(table.len()).unwrap().to_be_bytes(), table].concat())
    }

    fn mended(mut payload: Vec<u8>) -> (crate::broker::Properties, bool) {
        let bytes = payload.len();
        content_header(&mut payload);
        assert_eq!(payload.len(), bytes);
        let (rest, properties) = parse_properties(&payload[BEFORE_FLAGS..]).unwrap();
        assert!(rest.is_empty());
        from_lapin(&properties)
    }

    #[test]
    fn a_short_string_that_is_no_utf8_is_mended_and_others_are_not() {
        // Message id and type.
        let (properties, has_cc) = mended(payload(1 << 7 | 1 << 5, b"\x04a\xff\xfeb\x04Zo\xc3\xab"));
        assert_eq!((properties.message_id.as_str(), properties.message_type.as_str(), has_cc), ("a??b", "Zoë", false));
    }

    #[test]
    fn headers_that_lapin_could_not_read_count_as_one_that_is_not_trusted() {
        let nested = |levels: u32| {
            let arrays = (1..=levels).fold(Vec::new(), |inner: Vec<u8>, _| {
                [&b"A"[..], &u32::try_from(inner.len()).unwrap().to_be_bytes(), &inner].concat()
            });
            headers(&[&b"\x01a"[..], &arrays].concat())
        };
        assert!(!mended(nested(15)).1);
        for bad in [nested(16), nested(25_000), headers(b"\x02a\xffS\0\0\0\x01x"), headers(b"\x01aS\0\0\0\x09xyz")] {
            let (properties, has_cc) = mended(bad);
            assert!(has_cc && properties.headers.is_empty());
        }
        assert!(mended(headers(b"\x05abcd")).0.headers.is_empty(), "too short to name it");
    }

    #[test]
    fn good_headers_are_left_as_they_are() {
        let table = b"\x0btraceparentS\0\0\0\x03a-b\x02ccA\0\0\0\x07S\0\0\0\x02\xff\xfe\x01tt\x01\x01vV";
        let mut kept = headers(table);
        content_header(&mut kept);
        assert_eq!(kept, headers(table));
        let (properties, has_cc) = mended(kept);
        assert_eq!(properties.headers["traceparent"], "a-b");
        assert!(has_cc);
    }

    #[test]
    fn a_routing_key_that_is_no_utf8_is_mended() {
        let mut deliver = [&BASIC_DELIVER[..], b"\x03tag", &[0; 9], b"\x01x", b"\x09kvm-07.\xc3\x28"].concat();
        method(&mut deliver);
        assert!(deliver.ends_with(b"\x09kvm-07.?("));
        let mut other = [&[0, 60, 0, 61][..], b"\x01\xff"].concat();
        method(&mut other);
        assert!(other.ends_with(b"\x01\xff"));
    }

    proptest! {
        #[test]
        fn whatever_whole_properties_hold_lapin_reads_them(
            table in proptest::collection::vec(any::<u8>(), 2..60), text in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let (table_bytes, text_bytes) = (u32::try_from(table.len()).unwrap(), u8::try_from(text.len()).unwrap());
            let parts = [&table_bytes.to_be_bytes()[..], &table, &[text_bytes], &text].concat();
            let mut payload = payload(1 << 13 | 1 << 7, &parts);
            content_header(&mut payload);
            prop_assert!(parse_properties(&payload[BEFORE_FLAGS..]).is_ok());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            content_header(&mut bytes.clone());
            method(&mut [&BASIC_DELIVER[..], &bytes].concat());
        }
    }
}
