//! Tests of the whole client against scripted servers that lie.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::{ALLOCATION, Connection, Limits, NbdError, wire};

const SIZE: u64 = 8 << 20;
const CONTEXT: u32 = 7;
const LIMITS: Limits = Limits { handshake: Duration::from_millis(500), request: Duration::from_millis(500) };
/// Nothing may take longer, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(20);

fn chunk(flags: u16, kind: u16, cookie: u64, content: &[u8]) -> Vec<u8> {
    chunk_of_length(flags, kind, cookie, content.len() as u32, content)
}

fn chunk_of_length(flags: u16, kind: u16, cookie: u64, length: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = wire::STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend([flags.to_be_bytes(), kind.to_be_bytes()].concat());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(content);
    bytes
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [&wire::SIMPLE_REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

fn data(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], bytes].concat()
}

fn hole(offset: u64, length: u32) -> Vec<u8> {
    [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat()
}

fn option_reply(option: u32, kind: u32, content: &[u8]) -> Vec<u8> {
    let numbers = [option, kind, content.len() as u32].map(u32::to_be_bytes).concat();
    [&wire::OPTION_REPLY_MAGIC.to_be_bytes()[..], &numbers, content].concat()
}

/// The server's half of an honest handshake, in one piece: what the client sends does not change it.
fn honest_handshake() -> Vec<u8> {
    let (structured, contexts, go) = (wire::OPTION_STRUCTURED_REPLY, wire::OPTION_SET_META_CONTEXT, wire::OPTION_GO);
    let context = [&CONTEXT.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
    let flags = wire::HAS_FLAGS | wire::SEND_FLUSH | wire::SEND_WRITE_ZEROES;
    let export = [&wire::INFO_EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
    [
        wire::MAGIC.to_be_bytes().to_vec(),
        wire::OPTION_MAGIC.to_be_bytes().to_vec(),
        (wire::FIXED_NEWSTYLE | wire::NO_ZEROES).to_be_bytes().to_vec(),
        option_reply(structured, wire::REPLY_ACK, &[]),
        option_reply(contexts, wire::REPLY_META_CONTEXT, &context),
        option_reply(contexts, wire::REPLY_ACK, &[]),
        option_reply(go, wire::REPLY_INFO, &export),
        option_reply(go, wire::REPLY_ACK, &[]),
    ]
    .concat()
}

/// What a server does after its last word.
#[derive(Clone, Copy)]
enum Then {
    Listen,
    Close,
    /// Keeps the socket open and never reads again.
    Deaf,
}

/// Runs a client against a server that plays `greeting` at once, and `answer` when the first request is there.
async fn against<T, F>(
    (greeting, answer): (Vec<u8>, Vec<u8>),
    then: Then,
    client: impl FnOnce(Connection) -> F,
) -> Result<T, NbdError>
where
    F: Future<Output = Result<T, NbdError>>,
{
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = tokio::spawn(async move {
        let mut heard = Vec::new();
        let mut said = theirs.write_all(&greeting).await;
        while said.is_ok() && !heard.windows(4).any(|four| four == wire::REQUEST_MAGIC.to_be_bytes()) {
            if answer.is_empty() || theirs.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                break;
            }
        }
        said = theirs.write_all(&answer).await;
        if matches!(then, Then::Listen) && said.is_ok() {
            let _heard = tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await;
        } else if matches!(then, Then::Deaf) {
            std::future::pending::<()>().await;
        }
    });
    let late = NbdError::Deadline { request: "handshake".into(), deadline: LIMITS.handshake };
    let both = async {
        let opening = Connection::over(ours, "disk", &[ALLOCATION], LIMITS);
        client(tokio::time::timeout(LIMITS.handshake, opening).await.unwrap_or(Err(late))?).await
    };
    let outcome = tokio::time::timeout(PATIENCE, both).await.expect("the client hung");
    server.abort();
    outcome
}

async fn read_answered_with(answer: Vec<u8>) -> Result<Vec<u8>, NbdError> {
    let read = |connection: Connection| async move { connection.read(4096, vec![0xee; 1024]).await };
    against((honest_handshake(), answer), Then::Listen, read).await
}

fn is_protocol<T: std::fmt::Debug>(outcome: &Result<T, NbdError>) -> bool {
    matches!(outcome, Err(NbdError::Protocol(_)))
}

#[tokio::test]
async fn an_honest_answer_in_pieces_out_of_order_is_put_together() {
    let answer = [
        chunk(0, wire::CHUNK_OFFSET_DATA, 1, &data(4096 + 512, &[2; 512])),
        chunk(0, wire::CHUNK_OFFSET_HOLE, 1, &hole(4096, 256)),
        chunk(wire::CHUNK_DONE, wire::CHUNK_OFFSET_DATA, 1, &data(4096 + 256, &[1; 256])),
    ];
    let bytes = read_answered_with(answer.concat()).await.unwrap();
    assert_eq!(bytes, [vec![0; 256], vec![1; 256], vec![2; 512]].concat());
}

#[tokio::test]
async fn lies_about_bytes_break_the_protocol() {
    let done = wire::CHUNK_DONE;
    let whole = data(4096, &[1; 1024]);
    for (lie, answer) in [
        ("wrong magic", vec![0xff; 64]),
        ("unknown cookie", chunk(done, wire::CHUNK_OFFSET_DATA, 99, &whole)),
        ("more than asked", chunk(done, wire::CHUNK_OFFSET_DATA, 1, &data(4096, &[1; 1025]))),
        ("before the range", chunk(done, wire::CHUNK_OFFSET_DATA, 1, &data(4095, &[1; 1024]))),
        ("after the range", chunk(done, wire::CHUNK_OFFSET_DATA, 1, &data(4097, &[1; 1024]))),
        ("at the end of numbers", chunk(done, wire::CHUNK_OFFSET_DATA, 1, &data(u64::MAX, &[1; 1024]))),
        ("hole beyond the request", chunk(done, wire::CHUNK_OFFSET_HOLE, 1, &hole(4096, 1025))),
        ("endless hole", chunk(done, wire::CHUNK_OFFSET_HOLE, 1, &hole(4096, u32::MAX))),
        ("hole of nothing", chunk(0, wire::CHUNK_OFFSET_HOLE, 1, &hole(4096, 0))),
        ("no data", chunk(0, wire::CHUNK_OFFSET_DATA, 1, &data(4096, &[]))),
        (
            "overlap",
            [chunk(0, wire::CHUNK_OFFSET_DATA, 1, &whole), chunk(done, wire::CHUNK_OFFSET_HOLE, 1, &hole(4608, 8))]
                .concat(),
        ),
        ("missing end", chunk(done, wire::CHUNK_OFFSET_DATA, 1, &data(4096, &[1; 1023]))),
        ("nothing at all", chunk(done, wire::CHUNK_NONE, 1, &[])),
        ("giant length", chunk_of_length(0, wire::CHUNK_OFFSET_DATA, 1, u32::MAX, &[])),
        ("giant error", chunk_of_length(0, 0x8001, 1, u32::MAX, &[])),
        ("error without a number", chunk(done, 0x8001, 1, &[0; 6])),
        ("words longer than the error", chunk(done, 0x8001, 1, &[0, 0, 0, 5, 0xff, 0xff])),
        ("extents for a read", chunk(done, wire::CHUNK_BLOCK_STATUS, 1, &[0; 12])),
        ("unknown type", chunk(done, 77, 1, &[])),
        ("simple success", simple(0, 1)),
        ("nothing, but not done", chunk(0, wire::CHUNK_NONE, 1, &[])),
    ] {
        let outcome = read_answered_with(answer).await;
        assert!(is_protocol(&outcome), "{lie}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_disk_error_fails_the_read_and_not_the_connection() {
    let error = [&5u32.to_be_bytes()[..], &9u16.to_be_bytes(), b"bad\x1bblock", &4096u64.to_be_bytes()].concat();
    let done = chunk(wire::CHUNK_DONE, wire::CHUNK_NONE, 1, &[]);
    let second = chunk(wire::CHUNK_DONE, wire::CHUNK_OFFSET_HOLE, 2, &hole(0, 512));
    let answers = [chunk(0, 0x8002, 1, &error), done, second].concat();
    let read_twice = |connection: Connection| async move {
        let (first, second) = tokio::join!(connection.read(4096, vec![0; 1024]), connection.read(0, vec![1; 512]));
        assert_eq!(second.unwrap(), vec![0; 512]);
        first
    };
    let refused = against((honest_handshake(), answers), Then::Listen, read_twice).await.unwrap_err();
    assert!(matches!(&refused, NbdError::Refused { number: 5, words, .. } if words == " (badblock)"), "{refused:?}");
}

#[tokio::test]
async fn silence_ends_at_the_deadline_and_so_does_every_other_request() {
    let both = |connection: Connection| async move {
        let first = connection.read(0, vec![0; 512]).await;
        let second = connection.read(0, vec![0; 512]).await;
        assert_eq!(format!("{:?}", first.as_ref().unwrap_err()), format!("{:?}", second.unwrap_err()));
        first
    };
    let outcome = against((honest_handshake(), vec![]), Then::Listen, both).await;
    assert!(matches!(outcome, Err(NbdError::Deadline { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_trickles_is_not_waited_for_longer_than_one_that_is_silent() {
    let half = chunk_of_length(wire::CHUNK_DONE, wire::CHUNK_OFFSET_DATA, 1, 1032, &data(4096, &[1; 100]));
    let outcome = read_answered_with(half).await;
    assert!(matches!(outcome, Err(NbdError::Deadline { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_answers_a_write_before_it_has_read_it_is_not_waited_for_longer() {
    let answer = chunk(wire::CHUNK_DONE, wire::CHUNK_NONE, 1, &[]);
    let write = |connection: Connection| async move { connection.write(0, vec![1; 1 << 20], 0..1 << 20).await };
    let outcome = against((honest_handshake(), answer), Then::Deaf, write).await;
    assert!(matches!(outcome, Err(NbdError::Deadline { .. })), "{:?}", outcome.map(|buffer| buffer.len()));
}

#[tokio::test]
async fn extents_that_lie_break_the_protocol() {
    let status = |pairs: &[(u32, u32)]| {
        let extents = pairs.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()]);
        [CONTEXT.to_be_bytes()].into_iter().chain(extents).flatten().collect::<Vec<u8>>()
    };
    for content in [status(&[(0, 0)]), status(&[]), status(&[(u32::MAX, 0)]), vec![0; 12], vec![0; 11]] {
        let answer = chunk(wire::CHUNK_DONE, wire::CHUNK_BLOCK_STATUS, 1, &content);
        let status = |connection: Connection| async move { connection.block_status(0, SIZE).await };
        let outcome = against((honest_handshake(), answer), Then::Listen, status).await;
        assert!(is_protocol(&outcome), "{content:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn handshakes_that_lie_break_the_protocol() {
    let greeting = &honest_handshake()[..18];
    let structured = wire::OPTION_STRUCTURED_REPLY;
    let mut oldstyle = honest_handshake();
    oldstyle[8..16].copy_from_slice(&0x0000_4202_8186_1253u64.to_be_bytes());
    let mut endless = greeting.to_vec();
    (0..200).for_each(|_| endless.extend(option_reply(structured, wire::REPLY_INFO, b"more")));
    let mut giant = [greeting, &option_reply(structured, wire::REPLY_ACK, &[])].concat();
    giant[34..38].copy_from_slice(&u32::MAX.to_be_bytes());
    for (lie, script) in [
        ("no greeting", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("oldstyle", oldstyle),
        ("endless answers", endless),
        ("giant answer", giant),
        ("answer to another option", [greeting, &option_reply(99, wire::REPLY_ACK, &[])].concat()),
    ] {
        let outcome = against((script, vec![]), Then::Listen, |_| async { Ok(()) }).await;
        assert!(is_protocol(&outcome), "{lie}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_unknown_export_is_told_by_name() {
    let mut script = honest_handshake();
    let go = 2 * wire::OPTION_REPLY_BYTES + 12;
    script.truncate(script.len() - go);
    script.extend(option_reply(wire::OPTION_GO, wire::REPLY_ERROR_BIT | 6, b"never heard of it"));
    let text = against((script, vec![]), Then::Listen, |_| async { Ok(()) }).await.unwrap_err().to_string();
    assert!(text.contains("`disk`") && text.contains("no such export (never heard of it)"), "{text}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn hostile_answer() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0u16..8, 0x8000u16..0x8004];
    let content = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (0u64..9000, 0usize..1100).prop_map(|(offset, length)| data(offset, &vec![1; length])),
        (4000u64..6000, 0u32..1100).prop_map(|(offset, length)| hole(offset, length)),
    ];
    let honest = (0u16..2, kind, 1u64..4, content).prop_map(|(flags, kind, cookie, c)| chunk(flags, kind, cookie, &c));
    let part = prop_oneof![4 => honest, 1 => (0u32..3, 1u64..4).prop_map(|(e, c)| simple(e, c)),
        1 => prop::collection::vec(any::<u8>(), 0..40)];
    prop::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_answer_makes_the_client_panic_hang_or_give_bytes_that_were_not_sent(answer in hostile_answer()) {
        let requests = |connection: Connection| async move {
            let (read, status, _) = tokio::join!(
                connection.read(4096, vec![0xee; 1024]), connection.block_status(0, SIZE), connection.flush());
            if let Ok(status) = status {
                assert!(status.iter().flatten().map(|extent| extent.length).sum::<u64>() <= SIZE);
            }
            read
        };
        let outcome = runtime().block_on(against((honest_handshake(), answer), Then::Close, requests));
        if let Ok(bytes) = outcome {
            prop_assert_eq!(bytes.len(), 1024);
            prop_assert!(bytes.iter().all(|byte| *byte <= 1));
        }
    }

    #[test]
    fn a_handshake_with_flipped_bytes_is_refused_or_sane(
        flips in prop::collection::vec((0usize..200, any::<u8>()), 1..4), cut in prop::option::of(0usize..200),
    ) {
        let mut script = honest_handshake();
        let length = script.len();
        flips.iter().for_each(|(at, value)| script[at % length] = *value);
        script.truncate(cut.unwrap_or(length));
        let export = |connection: Connection| async move { Ok(connection.export().clone()) };
        let outcome = runtime().block_on(against((script, vec![]), Then::Close, export));
        if let Ok(export) = outcome {
            prop_assert_eq!(export.size % u64::from(export.min_block), 0);
            prop_assert!(export.size <= i64::MAX as u64);
        }
    }
}
