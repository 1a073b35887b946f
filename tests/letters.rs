//! Dead letters, from what lies in the queue to the job that is asked for again, with the broker inside the process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "support/dead_job.rs"]
mod dead_job;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use longshore::broker::letters::ReadLettersError;
use longshore::broker::memory::{MemoryServer, MemorySettings};
use longshore::broker::topology::{DEAD_QUEUE, JOBS_EXCHANGE, jobs_key, jobs_queue, urgent_jobs_queue};
use longshore::broker::{Broker, Outgoing, Properties};
use longshore::failure::Code;
use longshore::letters::replay::{NotReplayed, Wish, draft};
use longshore::letters::{
    Content, Deal, Dealt, Deed, Edit, Filter, GroupBy, Letter, Marks, STRAY_AFTER, Strays, Summary, deal, groups, look,
    mark_superseded,
};
use longshore::message::dead_letter::Original;
use longshore::message::job::{CredentialsPart, JobMessage, SealedPart};
use longshore::message::{Encoding, decode_dead_letter, decode_job, decode_superseded, encode_job};
use tokio_util::sync::CancellationToken;

use crate::dead_job::{HOST, dead, dead_long_ago, dead_of, host, job, mark};

fn read(outgoing: &Outgoing) -> Letter {
    let properties = Properties { user_id: Some(HOST.to_owned()), ..outgoing.properties.clone() };
    Letter::read(outgoing.routing_key.clone(), false, properties, outgoing.body.clone())
}

fn letter(job: &JobMessage) -> Letter {
    read(&dead(job, Code::MountFailed, HOST, Encoding::MessagePack))
}

fn refused(letter: &Letter, wish: &Wish) -> String {
    let refusal = match draft(letter, wish) {
        Ok(draft) => draft.message(Timestamp::now()).err(),
        Err(refusal) => Some(refusal),
    };
    refusal.expect("it was replayed").to_string()
}

fn with(edits: &[&str]) -> Wish {
    Wish { edits: edits.iter().map(|edit| edit.parse::<Edit>().unwrap()).collect(), ..Wish::default() }
}

#[test]
fn a_letter_is_told_apart_by_what_its_job_says() {
    let jobs = [job(1), job(1)];
    let codes = [Code::MountFailed, Code::InvalidField];
    let letters: Vec<_> =
        jobs.iter().zip(codes).map(|(job, code)| read(&dead(job, code, HOST, Encoding::Json))).collect();
    let summaries: Vec<_> = letters.iter().map(Summary::of).collect();
    assert_eq!((summaries[0].instance.as_deref(), summaries[0].attempts), (Some("web"), 3));
    assert_eq!(summaries[0].doubt, None);
    let taken = |filter: Filter| summaries.iter().map(|summary| filter.takes(summary)).collect::<Vec<_>>();
    assert!(Filter::default().is_open());
    assert_eq!(taken(Filter::default()), [true, true]);
    assert_eq!(taken(Filter { codes: ["mount_failed".to_owned()].into(), ..Filter::default() }), [true, false]);
    let label = |value: &str| [("schedule".to_owned(), value.to_owned())].into();
    assert_eq!(taken(Filter { labels: label("nightly"), ..Filter::default() }), [true, true]);
    assert_eq!(taken(Filter { labels: label("weekly"), ..Filter::default() }), [false, false]);
    assert_eq!(taken(Filter { until: Some(Timestamp::UNIX_EPOCH), ..Filter::default() }), [false, false]);
    assert_eq!(taken(Filter { jobs: [jobs[1].job_id.parse().unwrap()].into(), ..Filter::default() }), [false, true]);
    assert_eq!(taken(Filter { hosts: [host("kvm-08")].into(), ..Filter::default() }), [false, false]);
    let counted: Vec<_> = groups(&summaries, GroupBy::Code).into_iter().map(|g| (g.key.unwrap(), g.count)).collect();
    assert_eq!(counted, [("invalid_field".to_owned(), 1), ("mount_failed".to_owned(), 1)]);
    assert_eq!(groups(&summaries, GroupBy::Instance)[0].count, 2);
}

#[test]
fn an_earlier_run_of_a_job_that_is_dead_again_is_marked() {
    let first = job(1);
    let second = JobMessage { run: 2, ..first.clone() };
    let mut summaries = [first, second, job(1)].map(|job| Summary::of(&letter(&job)));
    mark_superseded(&mut summaries);
    assert_eq!(summaries.map(|summary| summary.superseded_by), [Some(2), None, None]);
}

#[test]
fn what_nobody_vouches_for_supersedes_nothing_and_what_contradicts_itself_is_not_replayed() {
    let first = job(1);
    let claimed = dead(&JobMessage { run: 9, ..first.clone() }, Code::MountFailed, HOST, Encoding::Json);
    let properties = Properties { user_id: Some("kvm-66".to_owned()), ..claimed.properties.clone() };
    let forged = Letter::read(claimed.routing_key, false, properties, claimed.body);
    let mut summaries = [Summary::of(&letter(&first)), Summary::of(&forged)];
    mark_superseded(&mut summaries);
    assert_eq!(summaries[0].superseded_by, None);

    let encoded = encode_job(&job(7), Encoding::Json, Timestamp::now()).unwrap();
    let other = read(&dead_of(Original::new(&encoded.properties, &encoded.body), &first, Code::MountFailed, HOST));
    assert!(refused(&other, &Wish::default()).contains("another job or run"));
}

#[test]
fn what_its_host_has_taken_already_is_not_asked_for_once_more() {
    for code in [Code::RunBodyDiffers, Code::RunSuperseded] {
        let letter = read(&dead(&job(1), code, HOST, Encoding::Json));
        assert!(matches!(draft(&letter, &Wish::default()), Err(NotReplayed::WasTaken(_))));
    }
}

#[test]
fn the_same_letter_is_replayed_as_the_same_next_run_in_its_own_encoding() {
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        let outgoing = dead(&job(3), Code::MountFailed, &format!("{HOST}.urgent"), encoding);
        let bodies: BTreeSet<_> = (0..2)
            .map(|_| {
                let draft = draft(&read(&outgoing), &Wish::default()).unwrap();
                assert_eq!((draft.run, draft.urgent, &draft.changed[..]), (4, true, &[][..]));
                let encoded = draft.message(Timestamp::now()).unwrap();
                assert_eq!(encoded.properties.content_type, encoding.content_type());
                let job = decode_job(&encoded.properties, &encoded.body, &host(HOST)).unwrap();
                assert_eq!((job.key.run, job.labels["schedule"].as_str()), (4, "nightly"));
                encoded.body
            })
            .collect();
        assert_eq!(bodies.len(), 1);
    }
}

#[test]
fn fields_that_this_version_does_not_know_stay_in_the_job() {
    let job = job(1);
    let encoded = encode_job(&job, Encoding::Json, Timestamp::now()).unwrap();
    let mut fields: serde_json::Value = serde_json::from_slice(&encoded.body).unwrap();
    fields["priority"] = 7.into();
    let original = Original::new(&encoded.properties, &serde_json::to_vec(&fields).unwrap());
    let replayed = draft(&read(&dead_of(original, &job, Code::MountFailed, HOST)), &Wish::default()).unwrap();
    let body = replayed.message(Timestamp::now()).unwrap().body;
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["priority"], 7);
}

#[test]
fn a_job_can_be_changed_and_only_into_one_that_a_host_would_take() {
    let letter = letter(&job(1));
    let changed = draft(&letter, &with(&["repository.address=other:/backups", "backup.quiesce=require"])).unwrap();
    let encoded = changed.message(Timestamp::now()).unwrap();
    let job = decode_job(&encoded.properties, &encoded.body, &host(HOST)).unwrap();
    assert_eq!(changed.changed, ["repository.address", "backup.quiesce"]);
    assert_eq!(job.repository.address, "other:/backups");
    for (edit, said) in [
        ("backup.quiesce=perhaps", "not one that a host would take"),
        ("deadline_seconds=soon", "not one that a host would take"),
        ("repository.options=password=x", "not one that a host would take"),
        ("backup.quiet=true", "no field `backup.quiet`"),
        ("deadline_seconds.x=1", "not one that a host would take"),
        ("start_before=2020-01-01T00:00:00Z", "has passed"),
    ] {
        let refusal = refused(&letter, &with(&[edit]));
        assert!(refusal.contains(said), "{edit}: {refusal}");
    }
}

#[test]
fn a_job_goes_to_the_host_whose_letter_it_is_unless_another_is_named() {
    let there = Wish { to_host: Some(host("kvm-08")), ..Wish::default() };
    let sent = draft(&letter(&job(1)), &there).unwrap();
    assert_eq!((sent.host.as_str(), &sent.changed[..]), ("kvm-08", &["host".to_owned()][..]));
    assert!(sent.message(Timestamp::now()).is_ok());

    let for_other = letter(&JobMessage { host: "kvm-09".to_owned(), ..job(1) });
    assert!(matches!(draft(&for_other, &Wish::default()), Err(NotReplayed::OtherHost { .. })));
    assert!(draft(&for_other, &there).is_ok());

    let forged = Letter::read(
        for_other.routing_key.clone(),
        false,
        Properties { user_id: Some("kvm-66".to_owned()), ..for_other.properties.clone() },
        for_other.body.clone(),
    );
    assert!(matches!(draft(&forged, &there), Err(NotReplayed::Doubted(_))));
}

#[test]
fn sealed_credentials_do_not_travel_to_another_host() {
    let part = SealedPart { enc: "AAAA".to_owned(), ciphertext: "AAAA".to_owned() };
    let mut sealed = job(1);
    sealed.repository.repository_type = "cifs".to_owned();
    sealed.repository.address = "//nas/backups".to_owned();
    sealed.repository.credentials = Some(CredentialsPart { reference: None, sealed: Some(part) });
    let letter = letter(&sealed);
    let there = Wish { to_host: Some(host("kvm-08")), ..Wish::default() };
    assert!(matches!(draft(&letter, &there), Err(NotReplayed::SealedToOther(to)) if to == host(HOST)));
    let mut brings = draft(&letter, &Wish { brings_credentials: true, ..there }).unwrap();
    brings.bring(&CredentialsPart { reference: Some("nas".to_owned()), sealed: None }).unwrap();
    let encoded = brings.message(Timestamp::now()).unwrap();
    assert!(decode_job(&encoded.properties, &encoded.body, &host("kvm-08")).is_ok());
    assert!(draft(&letter, &Wish::default()).is_ok(), "the host to which they are sealed can open them again");
}

#[test]
fn what_was_taken_out_of_a_letter_has_to_be_put_back() {
    let mut secret = job(1);
    secret.repository.repository_type = "cifs".to_owned();
    secret.repository.address = "//nas/backups".to_owned();
    secret.repository.options = "vers=3.0,password=hunter2".to_owned();
    let letter = letter(&secret);
    assert!(refused(&letter, &Wish::default()).contains("taken out of `repository.options`"));
    let encoded = draft(&letter, &with(&["repository.options=vers=3.0"])).unwrap().message(Timestamp::now()).unwrap();
    assert!(!String::from_utf8_lossy(&encoded.body).contains("hunter2"));
}

#[test]
fn what_is_no_letter_can_be_seen_and_not_replayed() {
    let nonsense =
        Letter::read("backup.internal.kvm-07".to_owned(), false, Properties::default(), b"\xff\x00".to_vec());
    assert!(matches!(nonsense.content, Content::Unreadable { .. }));
    assert_eq!((nonsense.code().as_str(), nonsense.doubt.is_some()), ("unreadable_letter", true));

    let encoded = encode_job(&job(2), Encoding::Json, Timestamp::now()).unwrap();
    let mut properties = encoded.properties;
    properties.headers.insert("x-first-death-reason".to_owned(), "delivery_limit".to_owned());
    properties.user_id = Some("fleet.planner".to_owned());
    let given_up = Letter::read(format!("{HOST}.urgent"), false, properties.clone(), encoded.body.clone());
    assert_eq!((given_up.code().as_str(), given_up.host()), ("broker_delivery_limit", Some(host(HOST))));
    let replayed = draft(&given_up, &Wish::default()).unwrap();
    assert_eq!((replayed.run, replayed.urgent), (2, true), "no host has had this run");
    assert_eq!(replayed.message(Timestamp::now()).unwrap().body, given_up.body, "should one have it all the same");
    assert_eq!(draft(&given_up, &with(&["deadline_seconds=60"])).unwrap().run, 3, "it is another body");
    let claimed = Letter::read(format!("backup.internal.{HOST}"), false, properties, encoded.body);
    assert!(
        matches!(claimed.content, Content::Unreadable { .. }),
        "a host says of its message that the broker gave it up"
    );
}

#[test]
fn a_mark_is_on_its_letter_wherever_it_lies_and_is_no_letter_itself() {
    let jobs = [job(1), job(1), job(1), job(1)];
    let [first, second, third, fourth] = jobs.each_ref().map(dead_long_ago);
    let moment = old();
    let before = Timestamp::now() - 3 * STRAY_AFTER;
    let mut marks = Marks::default();
    // One host may have written two letters of one run, of which one refused what came a second time.
    let refused = dead(&jobs[3], Code::RunBodyDiffers, HOST, Encoding::Json);
    let among = [
        mark(&second, moment),
        first.clone(),
        second,
        mark(&dead_long_ago(&job(1)), moment),
        mark(&third, before),
        third,
        mark(&first, moment - Duration::from_secs(1)),
        mark(&first, moment),
        mark(&fourth, moment),
        refused,
    ];
    let letters: Vec<_> = among.iter().filter_map(|message| marks.take(read(message))).collect();
    let mut summaries: Vec<_> = letters.iter().map(Summary::of).collect();
    assert_eq!(marks.put(&mut summaries), 2, "two are on letters that are not there");
    let times: Vec<_> = summaries.iter().map(|letter| letter.made_good_by.as_ref().map(|by| by.time)).collect();
    assert_eq!(times, [Some(moment), Some(moment), None, None], "a success before the letter has not superseded it");
    let groups = groups(&summaries, GroupBy::Code);
    assert_eq!(groups.iter().map(|group| (group.count, group.made_good)).collect::<Vec<_>>(), [(3, 2), (1, 0)]);
}

#[test]
fn a_mark_that_nobody_vouches_for_or_that_is_on_what_is_always_wanted_marks_nothing() {
    let dead = dead(&job(1), Code::MountFailed, HOST, Encoding::Json);
    let mut summaries = [Summary::of(&read(&dead))];
    let sent = mark(&dead, Timestamp::now());
    let with_user = |user: &str| {
        let properties = Properties { user_id: Some(user.to_owned()), ..sent.properties.clone() };
        Letter::read(sent.routing_key.clone(), false, properties, sent.body.clone())
    };
    let with_key = |key: &str| read(&Outgoing { routing_key: key.to_owned(), ..sent.clone() });
    let with_body = |key: &str, from: &str, to: &str| {
        let body = String::from_utf8(sent.body.clone()).unwrap().replace(from, to).into_bytes();
        read(&Outgoing { body, routing_key: key.to_owned(), ..sent.clone() })
    };
    let doubted = [
        with_user("kvm-66"),
        with_body(&sent.routing_key, "\"guest\"", "\"kvm-66\""),
        with_key(HOST),
        with_key(&format!("{HOST}.urgent")),
        with_key(&format!("backup.internal.{HOST}")),
        with_key(&format!("repo-validate.superseded.{HOST}")),
        Letter::read(sent.routing_key.clone(), true, read(&sent).properties, sent.body.clone()),
        read(&mark(&dead, Timestamp::now() + STRAY_AFTER + Duration::from_secs(60))),
    ];
    for (place, message) in doubted.iter().enumerate() {
        assert!(message.doubt.is_some(), "{place}: {message:?}");
    }
    let of_restore = with_body(&format!("restore.superseded.{HOST}"), "\"backup\"", "\"restore\"");
    let mut marks = Marks::default();
    for message in doubted.into_iter().chain([of_restore]) {
        let shown = marks.take(message).expect("it is shown as what it is");
        assert_eq!(shown.code(), "unreadable_letter");
        assert!(Summary::of(&shown).text.contains("a mark that run 1 of job"), "{shown:?}");
        assert!(draft(&shown, &Wish::default()).is_err());
    }
    assert_eq!((marks.put(&mut summaries), &summaries[0].made_good_by), (0, &None));
    let a_little = mark(&dead, Timestamp::now() + Duration::from_secs(60));
    assert!(marks.take(read(&a_little)).is_none(), "clocks differ");
    assert_eq!(marks.put(&mut summaries), 0);
    assert!(summaries[0].made_good_by.is_some());
}

#[test]
fn a_letter_is_named_by_either_end_of_its_id_and_one_that_is_whole_means_no_longer_one() {
    let letters: Vec<_> = [job(1), job(1)].iter().map(|job| Summary::of(&letter(job))).collect();
    let named = |word: &str| Filter { letters: [word.to_owned()].into(), ..Filter::default() }.resolved(&letters);
    let id = &letters[0].letter_id;
    let filter = named(&id[id.len() - 12..]).unwrap();
    assert_eq!(letters.iter().map(|letter| filter.takes(letter)).collect::<Vec<_>>(), [true, false]);
    assert!(named(&id[..6]).unwrap_err().to_string().contains("stands for 2"), "both are of these hours");
    let mut longer = letters[1].clone();
    longer.letter_id = format!("{id}0");
    assert!(named(id).unwrap().takes(&letters[0]) && !named(id).unwrap().takes(&longer));
    let of_job = Filter { jobs: [letters[1].job_id.unwrap().to_string()[24..].to_owned()].into(), ..Filter::default() };
    let of_job = of_job.resolved(&letters).unwrap();
    assert_eq!(letters.iter().map(|letter| of_job.takes(letter)).collect::<Vec<_>>(), [false, true]);
}

/// A broker in the process with letters of [`HOST`], and what a reader wants with them.
struct Desk {
    server: MemoryServer,
    broker: Arc<dyn Broker>,
    dead: Vec<Outgoing>,
    selection: BTreeSet<longshore::letters::Fingerprint>,
}

impl Desk {
    async fn new(jobs: &[JobMessage]) -> Self {
        let server = MemoryServer::new();
        let settings = MemorySettings { publish_wait: Duration::from_millis(50), ..MemorySettings::default() };
        let broker = server.client(settings);
        let of = |job| dead(job, Code::MountFailed, HOST, Encoding::MessagePack);
        let dead: Vec<_> = jobs.iter().map(of).collect();
        for letter in &dead {
            broker.publisher().publish(letter.clone()).await.unwrap();
        }
        let mut selection = BTreeSet::new();
        let see = |letter: Letter| {
            selection.insert(letter.fingerprint());
            ControlFlow::Continue(())
        };
        look(broker.as_ref(), see).await.unwrap();
        Self { server, broker, dead, selection }
    }

    /// Replays all of the selection; gives what was told.
    async fn replay(&self) -> Vec<Dealt> {
        let deed = |letter: &Letter| {
            let draft = draft(letter, &Wish::default()).map_err(|error| error.to_string())?;
            let encoded = draft.message(Timestamp::now()).map_err(|error| error.to_string())?;
            let routing_key = jobs_key(&draft.host);
            let job =
                Outgoing { exchange: JOBS_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body };
            Ok(Deed { job: Some(job), event: None })
        };
        let mut told = Vec::new();
        deal(self.broker.as_ref(), self.wish(&deed), |_, dealt| told.push(dealt)).await.unwrap();
        told
    }

    fn wish<'d>(&self, deed: &'d dyn Fn(&Letter) -> Result<Deed, String>) -> Deal<'d> {
        let selection = self.selection.clone();
        Deal { selection, deed, strays: Strays::Old, per_second: None, stop: CancellationToken::new() }
    }

    async fn publish(&self, messages: impl IntoIterator<Item = Outgoing>) {
        for message in messages {
            self.broker.publisher().publish(message).await.unwrap();
        }
    }

    fn letters(&self) -> usize {
        let depth = self.server.depth(DEAD_QUEUE).unwrap();
        assert_eq!(depth.unacked, 0, "nobody holds one");
        depth.ready
    }

    fn jobs(&self) -> Vec<Vec<u8>> {
        self.server.ready_messages(&jobs_queue(&host(HOST))).into_iter().map(|message| message.body).collect()
    }
}

#[tokio::test]
async fn a_replayed_job_is_in_its_queue_and_its_letter_is_gone() {
    let desk = Desk::new(&[job(1), job(1), job(5)]).await;
    desk.server.enrol(&host(HOST));
    let other = dead(&job(1), Code::MountFailed, HOST, Encoding::Json);
    desk.broker.publisher().publish(other).await.unwrap();
    let told = desk.replay().await;
    assert!(told.iter().all(|dealt| matches!(dealt, Dealt::Gone)) && told.len() == 3, "{told:?}");
    assert_eq!((desk.jobs().len(), desk.letters()), (3, 1), "what came after the look stays");
    assert_eq!(desk.server.depth(&urgent_jobs_queue(&host(HOST))).unwrap().ready, 0);
    assert_eq!(desk.replay().await.len(), 0);
}

#[tokio::test]
async fn a_letter_whose_job_nobody_takes_stays() {
    let desk = Desk::new(&[job(1)]).await;
    let told = desk.replay().await;
    assert!(matches!(&told[..], [Dealt::Kept(reason)] if reason.contains(HOST)), "{told:?}");
    assert_eq!(desk.letters(), 1);
}

#[tokio::test]
async fn a_replay_that_nobody_confirmed_is_the_same_message_again() {
    let desk = Desk::new(&[job(1)]).await;
    desk.server.enrol(&host(HOST));
    desk.server.lose_next_confirms(1);
    assert!(matches!(desk.replay().await[..], [Dealt::Failed(_)]));
    assert_eq!(desk.letters(), 1, "it is not known whether the job arrived");
    assert!(matches!(desk.replay().await[..], [Dealt::Gone]));
    let jobs = desk.jobs();
    assert_eq!((jobs.len(), desk.letters()), (2, 0));
    assert_eq!(jobs[0], jobs[1], "the host does it once");
}

#[tokio::test]
async fn who_comes_second_is_told_so_and_changes_nothing() {
    let desk = Desk::new(&[job(1)]).await;
    let reader = desk.broker.read_letters().await.unwrap();
    let second = look(desk.broker.as_ref(), |_| ControlFlow::Continue(())).await;
    assert!(matches!(second, Err(ReadLettersError::InUse { .. })), "{second:?}");
    reader.close().await.unwrap();
    assert_eq!(desk.letters(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_so_many_are_replayed_within_a_second() {
    let desk = Desk::new(&(0..5).map(|_| job(1)).collect::<Vec<_>>()).await;
    let deed = |_: &Letter| Ok(Deed::default());
    let wish = Deal { per_second: Some(2), ..desk.wish(&deed) };
    let (began, mut told) = (tokio::time::Instant::now(), Vec::new());
    deal(desk.broker.as_ref(), wish, |_, _| told.push(began.elapsed().as_millis())).await.unwrap();
    assert_eq!((&told[..], desk.letters()), (&[0, 500, 1000, 1500, 2000][..], 0));
}

#[tokio::test]
async fn one_who_stops_leaves_the_rest_where_it_is() {
    let desk = Desk::new(&[job(1), job(1), job(1)]).await;
    let (stop, deed) = (CancellationToken::new(), |_: &Letter| Ok(Deed::default()));
    let wish = Deal { per_second: Some(1), stop: stop.clone(), ..desk.wish(&deed) };
    deal(desk.broker.as_ref(), wish, |_, _| ()).await.map(|_| stop.cancel()).unwrap();
    assert_eq!(desk.letters(), 0);
    let desk = Desk::new(&[job(1), job(1), job(1)]).await;
    let wish = Deal { stop, ..desk.wish(&deed) };
    deal(desk.broker.as_ref(), wish, |_, _| ()).await.unwrap();
    assert_eq!(desk.letters(), 3);
}

/// So old that a letter which is not there is not on its way.
fn old() -> Timestamp {
    Timestamp::now() - STRAY_AFTER
}

/// Ids of jobs that the marks in the queue are on.
fn marked(desk: &Desk) -> BTreeSet<String> {
    let messages = desk.server.ready_messages(DEAD_QUEUE);
    let marks = messages.iter().filter_map(|message| decode_superseded(&message.properties, &message.body).ok());
    marks.map(|mark| mark.job_id.to_string()).collect()
}

fn ids<'j>(jobs: impl IntoIterator<Item = &'j JobMessage>) -> BTreeSet<String> {
    jobs.into_iter().map(|job| job.job_id.clone()).collect()
}

/// A letter of a job that is not there.
fn elsewhere(job: &JobMessage) -> Outgoing {
    dead(job, Code::MountFailed, HOST, Encoding::Json)
}

#[tokio::test]
async fn a_mark_goes_with_its_letter_and_one_without_goes_when_its_letter_would_have_come() {
    let (gone, stays) = (job(1), job(1));
    let desk = Desk::new(std::slice::from_ref(&gone)).await;
    desk.server.enrol(&host(HOST));
    let (came_late, lost) = (job(1), job(1));
    let left = elsewhere(&stays);
    desk.publish([left.clone(), mark(&desk.dead[0], Timestamp::now()), mark(&left, old())]).await;
    desk.publish([mark(&elsewhere(&came_late), Timestamp::now()), mark(&elsewhere(&lost), old())]).await;
    assert!(matches!(desk.replay().await[..], [Dealt::Gone]));
    assert_eq!(marked(&desk), ids([&stays, &came_late]));
    assert_eq!(desk.letters(), 3);
}

#[tokio::test]
async fn marks_without_letters_are_counted_and_go_at_once_for_who_wants_all_away() {
    let (stays, young, aged) = (job(1), job(1), job(1));
    let desk = Desk::new(&[]).await;
    let left = elsewhere(&stays);
    desk.publish([mark(&elsewhere(&young), Timestamp::now()), mark(&elsewhere(&aged), old())]).await;
    desk.publish([left.clone(), mark(&left, Timestamp::now())]).await;
    let deed = |_: &Letter| Ok(Deed::default());
    let dealt =
        async |strays| deal(desk.broker.as_ref(), Deal { strays, ..desk.wish(&deed) }, |_, _| ()).await.unwrap();
    assert_eq!(dealt(Strays::Old).await, 1);
    assert_eq!(marked(&desk), ids([&stays, &young]));
    assert_eq!(dealt(Strays::All).await, 1);
    assert_eq!((marked(&desk), desk.letters()), (ids([&stays]), 2));
    assert_eq!(dealt(Strays::All).await, 0);
}

#[tokio::test]
async fn a_mark_stays_as_long_as_its_letter() {
    let job = job(1);
    let desk = Desk::new(std::slice::from_ref(&job)).await;
    desk.publish([mark(&desk.dead[0], old())]).await;
    assert!(matches!(desk.replay().await[..], [Dealt::Kept(_)]), "nobody takes its job");
    desk.server.enrol(&host(HOST));
    desk.server.lose_next_confirms(1);
    assert!(matches!(desk.replay().await[..], [Dealt::Failed(_)]));
    assert_eq!((desk.letters(), marked(&desk)), (2, ids([&job])));
    // Of two messages with the id of the letter one goes.
    let mut copy = desk.dead[0].clone();
    copy.properties.content_type = Encoding::Json.content_type().to_owned();
    copy.body = serde_json::to_vec(&decode_dead_letter(&desk.dead[0].properties, &desk.dead[0].body).unwrap()).unwrap();
    desk.publish([copy]).await;
    assert!(matches!(desk.replay().await[..], [Dealt::Gone]));
    assert_eq!((desk.letters(), marked(&desk)), (2, ids([&job])));
}

#[tokio::test]
async fn who_is_cut_off_between_a_letter_and_its_mark_leaves_the_mark() {
    let job = job(1);
    let desk = Desk::new(std::slice::from_ref(&job)).await;
    desk.publish([mark(&desk.dead[0], old())]).await;
    let deed = |_: &Letter| Ok(Deed::default());
    let ended = deal(desk.broker.as_ref(), desk.wish(&deed), |_, dealt| {
        assert!(matches!(dealt, Dealt::Gone));
        desk.server.go_down();
    });
    assert!(ended.await.is_err(), "the broker is gone");
    desk.server.go_up();
    assert_eq!((desk.letters(), marked(&desk)), (1, ids([&job])), "a mark that went first would lie about its letter");
    deal(desk.broker.as_ref(), desk.wish(&deed), |_, _| ()).await.unwrap();
    assert_eq!(desk.letters(), 0, "the next one takes it away");
}
