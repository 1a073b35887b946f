//! Tries out what a user may, each on a channel of its own, since a refusal closes it.

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString};
use lapin::{BasicProperties, Channel};

use super::convert::short;
use super::failure::{LinkError, answer};
use super::inspect::NOBODY;
use super::link::{Link, Role};
use crate::broker::settings::BrokerSettings;
use crate::broker::setup::probe::{Answer, Try};
use crate::broker::topology::JOBS_EXCHANGE;

/// Tries all, in order, on one connection.
pub(super) async fn run(settings: &BrokerSettings, attempts: &[Try]) -> Result<Vec<Answer>, LinkError> {
    let link = Link::open(settings, Role::Check).await?;
    let mut answers = Vec::new();
    for attempt in attempts {
        match one(&link, attempt).await {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                link.close().await;
                return Err(error);
            }
        }
    }
    link.close().await;
    Ok(answers)
}

async fn one(link: &Link, attempt: &Try) -> Result<Answer, LinkError> {
    let channel = link.channel().await?;
    let tried = match attempt {
        Try::Publish { exchange, key, further } => publish(&channel, exchange, key, further.as_deref(), NOBODY).await,
        Try::PublishAs { exchange, key, user } => {
            return match publish(&channel, exchange, key, None, user).await {
                Err(error) if error.is_otherwise_declared() => Ok(Answer::Refused),
                tried => judged(tried),
            };
        }
        Try::Get(queue) => get(&channel, queue).await,
        Try::GetIfEmpty(queue) => match waiting(&channel, queue).await {
            Ok(0) => get(&channel, queue).await,
            Ok(_) => return Ok(Answer::Untried),
            Err(error) => Err(error),
        },
        Try::Purge(queue) => {
            let request = channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default());
            answer(format!("empty queue `{queue}`"), request).await.map(drop)
        }
        Try::Declare(queue) => {
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let request = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
            answer(format!("declare queue `{queue}`"), request).await.map(drop)
        }
        Try::Delete(queue) => {
            let request = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
            answer(format!("delete queue `{queue}`"), request).await.map(drop)
        }
        Try::Bind(queue) => {
            let (key, options) = (queue.as_str().into(), QueueBindOptions::default());
            let request =
                channel.queue_bind(queue.as_str().into(), JOBS_EXCHANGE.into(), key, options, FieldTable::default());
            answer(format!("bind queue `{queue}`"), request).await
        }
    };
    judged(tried)
}

/// A missing right, or what comes after the look at it: the queue is not there or in use, or the user id is not ours.
fn judged(tried: Result<(), LinkError>) -> Result<Answer, LinkError> {
    match tried {
        Ok(()) => Ok(Answer::Allowed),
        Err(error) if error.is_access_refused() => Ok(Answer::Refused),
        Err(error) if error.is_not_found() || error.is_in_use() || error.is_otherwise_declared() => Ok(Answer::Allowed),
        Err(error) => Err(error),
    }
}

async fn publish(
    channel: &Channel,
    exchange: &str,
    key: &str,
    further: Option<&str>,
    user: &str,
) -> Result<(), LinkError> {
    answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let too_long = |error: super::convert::TooLong| LinkError::Lost(error.to_string());
    let mut properties =
        BasicProperties::default().with_user_id(short("user id", user).map_err(too_long)?).with_expiration("0".into());
    if let Some(further) = further {
        let mut headers = FieldTable::default();
        let keys = FieldArray::from(vec![AMQPValue::LongString(LongString::from(further))]);
        headers.insert("CC".into(), AMQPValue::FieldArray(keys));
        properties = properties.with_headers(headers);
    }
    let key = short("routing key", key).map_err(too_long)?;
    let confirmed = async {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange.into(), key, options, &[], properties).await?.await
    };
    answer(format!("publish to exchange `{exchange}`"), confirmed).await.map(drop)
}

/// What was taken goes back with the channel.
async fn get(channel: &Channel, queue: &str) -> Result<(), LinkError> {
    let request = channel.basic_get(queue.into(), BasicGetOptions::default());
    answer(format!("read queue `{queue}`"), request).await.map(drop)
}

async fn waiting(channel: &Channel, queue: &str) -> Result<u32, LinkError> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let request = channel.queue_declare(queue.into(), options, FieldTable::default());
    Ok(answer(format!("look for queue `{queue}`"), request).await?.message_count())
}
