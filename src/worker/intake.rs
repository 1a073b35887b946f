//! From a delivery to a run in the journal: decode, write down, acknowledge. In that order, so that a crash at any point leaves the
//! message either with the broker or with us, and never twice.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use super::announce;
use super::conclude::cancel;
use super::drain::{self, DrainWish};
use super::pause;
use super::report::{host_draft, letter_draft, origin, stored};
use super::run::Run;
use super::shared::{Settings, Shared};
use crate::broker::{Delivery, HostQueue};
use crate::failure::{Code, Failure};
use crate::journal::{Admission, Draft, StoredMessage, Taken};
use crate::message::dead_letter::Original;
use crate::message::envelope::{Properties, TRACEPARENT};
use crate::message::event::{Accepted, FailureReport, HostDetail, MessageRefused, RunDetail};
use crate::message::{Cancel, Control, DeadLetter, Encoding, Refusal, decode_control, decode_job, masked, vouch};
use crate::model::job::{Job, RunKey};

/// Pause before a delivery that could not be written down is tried again; doubles up to the longest.
const JOURNAL_PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause between two tries to write a delivery down. It stays un-acked meanwhile, so nothing is lost.
const JOURNAL_PAUSE_LONGEST: Duration = Duration::from_secs(30);

/// What came of a delivery.
#[derive(Debug)]
pub enum Came {
    /// Nothing that the driver has to know.
    Nothing,
    /// A run.
    Run(Box<Run>),
    /// A run is cancelled, wherever it stands.
    Cancelled(RunKey),
    /// The host is to come to rest.
    Drained(Box<DrainWish>),
}

/// Takes one delivery.
pub async fn take(shared: Arc<Shared>, delivery: Delivery, order: u64) -> Came {
    let mut pause = JOURNAL_PAUSE_FIRST;
    let came = loop {
        match write_down(&shared, &delivery, order).await {
            Ok(came) => break came,
            Err(failure) => {
                let failure = format!("{failure:#}");
                tracing::error!(failure, "cannot write a delivery down; it is not acknowledged");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(JOURNAL_PAUSE_LONGEST);
            }
        }
    };
    let acked = delivery.settle.ack().await;
    if !acked {
        tracing::debug!("an acknowledgement was not sent; the message comes again as a duplicate");
    }
    match came {
        // It comes again, perhaps to the next worker, and is obeyed then: else that one would be drained as well.
        Came::Drained(_) if !acked => Came::Nothing,
        came => came,
    }
}

async fn write_down(shared: &Shared, delivery: &Delivery, order: u64) -> Result<Came, Failure> {
    if delivery.queue == HostQueue::Control {
        return obey(shared, delivery).await;
    }
    match decode_job(&delivery.properties, &delivery.body, &shared.settings.host) {
        Ok(job) => admit(shared, delivery, job, order).await,
        Err(refusal) => refuse(shared, delivery, &refusal).await.map(|()| Came::Nothing),
    }
}

/// Does what a control message says, if it is from somebody who may say so.
async fn obey(shared: &Shared, delivery: &Delivery) -> Result<Came, Failure> {
    let Settings { host, controllers, .. } = &shared.settings;
    let command = match vouch::command(delivery.sent(), host, controllers) {
        Ok(command) => command,
        Err(reason) => {
            tracing::warn!(%reason, "a control message that is not obeyed");
            return Ok(Came::Nothing);
        }
    };
    // Vouched for, so it is one of the controllers.
    let user = delivery.properties.user_id.as_deref().unwrap_or_default();
    match decode_control(command, &delivery.properties, &delivery.body) {
        Some(Ok(Control::Cancel(cancel))) => remember(shared, &cancel).await,
        Some(Ok(Control::Pause(wish))) => pause::pause(shared, user, &wish, None).await.map(|()| Came::Nothing),
        Some(Ok(Control::Resume(wish))) => pause::resume(shared, user, &wish).await.map(|()| Came::Nothing),
        Some(Ok(Control::Drain(drain))) => match drain::take(shared, user, &drain).await? {
            Ok(wish) => Ok(Came::Drained(Box::new(wish))),
            Err(refusal) => tell_refused(shared, delivery, &refusal, Vec::new()).await.map(|()| Came::Nothing),
        },
        Some(Ok(Control::Announce(_))) => announce::announce(shared).await.map(|()| Came::Nothing),
        Some(Err(refusal)) => tell_refused(shared, delivery, &refusal, Vec::new()).await.map(|()| Came::Nothing),
        None => {
            tracing::warn!(command = masked(command), "a control message that this version does not know");
            Ok(Came::Nothing)
        }
    }
}

/// Written down before anything is done about it: the run may not have come yet, or be taken in this very moment.
async fn remember(shared: &Shared, cancel: &Cancel) -> Result<Came, Failure> {
    let key = cancel.key();
    let reason = json!({
        "requested_by": cancel.requested_by.as_deref().map(masked),
        "reason": cancel.reason.as_deref().map(masked),
    });
    shared.journal.tombstone(key, cancel.until(Timestamp::now()), reason).await?;
    tracing::info!(job.id = %key.job_id, run = key.run, "a run is to be cancelled");
    Ok(Came::Cancelled(key))
}

async fn admit(shared: &Shared, delivery: &Delivery, job: Job, order: u64) -> Result<Came, Failure> {
    let urgent = delivery.queue == HostQueue::UrgentJobs;
    let run = Run::new(job, &delivery.properties, urgent, order);
    let taken = Taken {
        key: run.job.key,
        message: StoredMessage { properties: stored(&kept(&delivery.properties)), body: delivery.body.clone() },
        kind: run.job.kind(),
        instance: run.job.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
        repository_id: run.job.repository.id,
        urgent,
        accepted_at: Timestamp::now(),
        rows: vec![run.voice.event(RunDetail::Accepted(Accepted {}))],
    };
    let key = run.job.key;
    let admission = match shared.journal.take(taken).await {
        Ok(admission) => admission,
        // Trying again would only find the same damaged row; whoever reads the letters hears of it.
        Err(failure) if failure.code != Code::JournalFailed => {
            return refuse(shared, delivery, &known(failure.code, format!("{failure:#}"), &run))
                .await
                .map(|()| Came::Nothing);
        }
        Err(failure) => return Err(failure),
    };
    match admission {
        Admission::New => {
            let instance = run.job.instance.as_ref().map(tracing::field::display);
            tracing::info!(job.id = %key.job_id, run = key.run, kind = run.job.kind().as_str(), instance, "job taken");
            Ok(Came::Run(Box::new(run)))
        }
        Admission::Tombstoned { reason } => {
            // Not `?`: the run is taken, and a second try would only find a duplicate of it.
            cancel(shared, run, reason).await;
            Ok(Came::Nothing)
        }
        Admission::Duplicate { state } => {
            tracing::info!(job.id = %key.job_id, run = key.run, ?state, "job delivered again");
            Ok(Came::Nothing)
        }
        Admission::BodyDiffers => {
            let text = format!("run {} of job `{}` was taken before with another body", key.run, key.job_id);
            refuse(shared, delivery, &known(Code::RunBodyDiffers, text, &run)).await.map(|()| Came::Nothing)
        }
        Admission::Superseded { known_run } => {
            let text = format!("run {} of job `{}` came after its run {known_run}", key.run, key.job_id);
            refuse(shared, delivery, &known(Code::RunSuperseded, text, &run)).await.map(|()| Came::Nothing)
        }
    }
}

/// What the journal may hold of the properties: a header that nobody reads can be anything, a secret as well.
fn kept(properties: &Properties) -> Properties {
    let mut kept = properties.clone();
    kept.headers.retain(|name, _| name == TRACEPARENT);
    kept
}

fn known(code: Code, text: String, run: &Run) -> Refusal {
    let key = run.job.key;
    Refusal { job_id: Some(key.job_id), run: Some(key.run), kind: Some(run.job.kind()), ..Refusal::new(code, text) }
}

/// A message that starts no run: a letter and an event of the host, in one transaction.
async fn refuse(shared: &Shared, delivery: &Delivery, refusal: &Refusal) -> Result<(), Failure> {
    let urgent = delivery.queue == HostQueue::UrgentJobs;
    let mut came_from = origin(&shared.settings.host, urgent);
    came_from.routing_key.clone_from(&delivery.routing_key);
    let letter = DeadLetter {
        host: shared.settings.host.clone(),
        time: Timestamp::now(),
        job_id: refusal.job_id,
        run: refusal.run,
        kind: refusal.kind,
        attempts: 0,
        failure: FailureReport::from(&refusal.failure()),
        origin: came_from,
        original: Original::new(&delivery.properties, &delivery.body),
        events: Vec::new(),
        events_left_out: 0,
    };
    let encoding = Encoding::of(&delivery.properties.content_type).unwrap_or(Encoding::MessagePack);
    tell_refused(shared, delivery, refusal, vec![letter_draft(letter, encoding)]).await
}

/// Tells of a message that nothing came of, in one transaction with those rows. A control message leaves no letter: it is worth nothing
/// once its time has passed.
async fn tell_refused(
    shared: &Shared,
    delivery: &Delivery,
    refusal: &Refusal,
    mut rows: Vec<Draft>,
) -> Result<(), Failure> {
    // Anything can stand there, a secret as well, and from here it goes into the log and an event.
    let message_id = masked(&delivery.properties.message_id);
    tracing::warn!(message.id = message_id, code = %refusal.code, reason = refusal.text, "message refused");
    let detail = HostDetail::MessageRefused(MessageRefused {
        message_id,
        code: refusal.code.to_string(),
        text: refusal.text.clone(),
        job_id: refusal.job_id,
        run: refusal.run,
    });
    let event = shared.voice.event(detail);
    rows.push(host_draft(move || event));
    shared.journal.post(None, rows).await
}
