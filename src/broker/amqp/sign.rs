//! Who reads the dead letters: whoever does answers whoever asks.
//!
//! An exclusive consumer keeps others away, and AMQP does not tell them whom. The question and its answer go through an exchange of their
//! own, since an answer to a reply queue would take the right to publish to any queue past its exchange. The broker vouches for the user
//! of an answer, and for nothing in it: whoever may deal with letters may say that it reads them.
//!
//! ```text
//!   asks:   asked.<user> ──> longshore.letters ──> a passing queue of whoever reads the letters
//!   answers: held.<user> ──> longshore.letters ──> passing queues of those who ask
//! ```

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Consumer};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::convert::{TooLong, from_lapin, short};
use super::failure::{LinkError, answer};
use super::link::{Link, Role};
use crate::broker::letters::{HOLDER_WAIT, Holder, Occupation};
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::{LETTERS_EXCHANGE, LETTERS_WORDS, letters_asked_key, letters_held_key};

/// Longest time for a question, its answer included, once there is a connection.
const ASK_WAIT: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// How long the names of account and machine may take, which may be asked of a directory somewhere else.
const NAMES_WAIT: Duration = Duration::from_secs(1);
/// How long the sign may take to come down. One whose connection is only being opened then ends a little later.
const DOWN_WAIT: Duration = Duration::from_secs(2);

/// Answers until it is taken down. On a connection of its own: one on which something is published stands still while the broker has no
/// room, and acknowledgements of letters with it.
pub(super) struct Sign {
    /// Dropped, it ends the answering.
    _up: DropGuard,
    answering: JoinHandle<()>,
}

impl Sign {
    /// Begins to answer. Where that is not allowed, or nobody has made the exchange, nobody is answered, and the reading goes on all the
    /// same. Must be called on the AMQP thread.
    pub(super) fn put_up(settings: Arc<BrokerSettings>) -> Self {
        let since = Timestamp::now();
        let up = CancellationToken::new();
        let down = up.clone();
        let answering = tokio::spawn(async move {
            let occupation = Occupation { since, ..occupation(&settings.client_name).await };
            if let Err(error) = answer_until(&settings, &occupation, &down).await {
                tracing::debug!("nobody is told who reads the dead letters: {}", error.chain());
            }
        });
        Self { _up: up.drop_guard(), answering }
    }

    /// Ends the answering, and waits until it has ended.
    pub(super) async fn take_down(self) {
        let Self { _up: up, answering } = self;
        drop(up);
        let _ended = timeout(DOWN_WAIT, answering).await;
    }
}

/// Of this process, without what cannot be told in time.
async fn occupation(doing: &str) -> Occupation {
    let owned = doing.to_owned();
    let told = tokio::task::spawn_blocking(move || Occupation::of_this_process(&owned));
    match timeout(NAMES_WAIT, told).await {
        Ok(Ok(occupation)) => occupation,
        _ => Occupation { doing: doing.to_owned(), since: Timestamp::now(), account: None, machine: None },
    }
}

async fn answer_until(
    settings: &BrokerSettings,
    occupation: &Occupation,
    down: &CancellationToken,
) -> Result<(), LinkError> {
    // Not ended midway: what is half open would be left to lapin.
    let link = Link::open(settings, Role::Sign).await?;
    let answered = tokio::select! {
        biased;
        () = down.cancelled() => Ok(()),
        ended = answer_all(&link, settings.uri.user(), occupation) => ended,
    };
    link.close().await;
    answered
}

async fn answer_all(link: &Link, user: &str, occupation: &Occupation) -> Result<(), LinkError> {
    let channel = link.channel().await?;
    let mut questions = listen(&channel, LETTERS_WORDS[0]).await?;
    let said = serde_json::to_vec(occupation).unwrap_or_default();
    while let Some(question) = questions.next().await {
        heard(question).await?;
        say(&channel, &letters_held_key(user), user, &said, false).await?;
    }
    Ok(())
}

/// Takes one off the queue, which makes room for the next.
async fn heard(said: lapin::Result<Delivery>) -> Result<Delivery, LinkError> {
    let failed = |source| LinkError::Failed { action: format!("read exchange `{LETTERS_EXCHANGE}`"), source };
    let said = said.map_err(failed)?;
    said.acker.ack(BasicAckOptions::default()).await.map_err(failed)?;
    Ok(said)
}

/// Asks, and waits for the first who answers.
pub(super) async fn ask(settings: &BrokerSettings) -> Result<Option<Holder>, LinkError> {
    let link = Link::open(settings, Role::Check).await?;
    let told = timeout(ASK_WAIT, answered(&link, settings.uri.user())).await.unwrap_or(Ok(None));
    link.close().await;
    match told {
        // Nobody has made the exchange, or the user may not ask.
        Err(error) if error.is_not_found() || error.is_access_refused() => {
            tracing::debug!("nobody can be asked who reads the dead letters: {}", error.chain());
            Ok(None)
        }
        told => told,
    }
}

async fn answered(link: &Link, user: &str) -> Result<Option<Holder>, LinkError> {
    let channel = link.channel().await?;
    let mut answers = listen(&channel, LETTERS_WORDS[1]).await?;
    answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let asked = say(&channel, &letters_asked_key(user), user, b"{}", true).await?;
    if let Confirmation::Ack(Some(_)) | Confirmation::Nack(_) = asked {
        // It came back: nobody listens.
        return Ok(None);
    }
    let first = async {
        while let Some(said) = answers.next().await {
            let Ok(delivery) = heard(said).await else { break };
            let (properties, has_cc) = from_lapin(&delivery.properties);
            let key = delivery.routing_key.as_str();
            let user = properties.user_id.filter(|user| !has_cc && key == letters_held_key(user));
            let said = delivery.data.get(..delivery.data.len().min(ANSWER_BYTES_MAX)).unwrap_or_default();
            if let (Some(user), Ok(occupation)) = (user, serde_json::from_slice(said)) {
                return Some(Holder { user, occupation });
            }
        }
        None
    };
    Ok(timeout(HOLDER_WAIT, first).await.unwrap_or_default())
}

async fn say(
    channel: &Channel,
    key: &str,
    user: &str,
    said: &[u8],
    mandatory: bool,
) -> Result<Confirmation, LinkError> {
    let too_long = |error: TooLong| LinkError::Lost(error.to_string());
    let user = short("user id", user).map_err(too_long)?;
    let key = short("routing key", key).map_err(too_long)?;
    let properties = BasicProperties::default().with_user_id(user).with_content_type("application/json".into());
    let published = async {
        let options = BasicPublishOptions { mandatory, ..BasicPublishOptions::default() };
        channel.basic_publish(LETTERS_EXCHANGE.into(), key, options, said, properties).await?.await
    };
    answer(format!("publish to exchange `{LETTERS_EXCHANGE}`"), published).await
}

/// Reads what is said with that first word, one at a time, through a queue that goes with the connection.
async fn listen(channel: &Channel, word: &str) -> Result<Consumer, LinkError> {
    let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = answer("declare a queue", channel.queue_declare("".into(), options, FieldTable::default())).await?;
    let key = short("binding key", &format!("{word}.#")).map_err(|error| LinkError::Lost(error.to_string()))?;
    let request = channel.queue_bind(
        queue.name().clone(),
        LETTERS_EXCHANGE.into(),
        key,
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    answer(format!("bind a queue to exchange `{LETTERS_EXCHANGE}`"), request).await?;
    let prefetch = channel.basic_qos(1, BasicQosOptions { global: false });
    answer("limit the deliveries", prefetch).await?;
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let request = channel.basic_consume(queue.name().clone(), "".into(), options, FieldTable::default());
    answer("read the queue", request).await
}
