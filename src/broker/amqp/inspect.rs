//! What a host finds on the broker, looked at without leaving anything behind.

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;

use super::failure::{LinkError, answer};
use super::link::{Link, Role};
use crate::broker::HostOnBroker;
use crate::broker::settings::BrokerSettings;
use crate::broker::topology::{
    CONTROL_EXCHANGE, DEAD_EXCHANGE, EVENTS_EXCHANGE, PING_COMMAND, QueueType, control_key, control_queue, host_queues,
};
use crate::model::id::HostId;

/// Where a worker tells, and what stands in its routing keys in front of the host: rights may go by them.
const PUBLISHED_TO: [(&str, &str); 2] = [(EVENTS_EXCHANGE, "worker.heartbeat"), (DEAD_EXCHANGE, "backup.internal")];
/// A user that nobody is. RabbitMQ looks at the right to publish first and at the user id next, so a message in this name is
/// refused for the one or the other, and never kept.
pub(super) const NOBODY: &str = "longshore check: nobody";

/// Looks for the host's queues and for the rights that it needs.
pub(super) async fn host(settings: &BrokerSettings, host: &HostId) -> Result<HostOnBroker, LinkError> {
    let link = Link::open(settings, Role::Check).await?;
    let found = look(&link, host).await;
    link.close().await;
    found
}

/// How many read each host's control queue; none where there is no such queue.
pub(super) async fn control_readers(
    settings: &BrokerSettings,
    hosts: &[HostId],
) -> Result<Vec<Option<u32>>, LinkError> {
    let link = Link::open(settings, Role::Check).await?;
    let counted = count_readers(&link, hosts).await;
    link.close().await;
    counted
}

async fn count_readers(link: &Link, hosts: &[HostId]) -> Result<Vec<Option<u32>>, LinkError> {
    let mut counts = Vec::with_capacity(hosts.len());
    let mut channel = link.channel().await?;
    for host in hosts {
        let queue = control_queue(host);
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let request = channel.queue_declare(queue.as_str().into(), options, FieldTable::default());
        match answer(format!("look for queue `{queue}`"), request).await {
            Ok(found) => counts.push(Some(found.consumer_count())),
            Err(error) if error.is_not_found() => {
                counts.push(None);
                channel = link.channel().await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(counts)
}

async fn look(link: &Link, host: &HostId) -> Result<HostOnBroker, LinkError> {
    let mut found = HostOnBroker::default();
    let mut channel = link.channel().await?;
    for queue in host_queues(host, QueueType::Classic) {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let request = channel.queue_declare(queue.name.as_str().into(), options, FieldTable::default());
        match answer(format!("look for queue `{}`", queue.name), request).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {
                found.missing.push(queue.name);
                channel = link.channel().await?;
            }
            Err(error) => return Err(error),
        }
    }
    let told = PUBLISHED_TO.map(|(exchange, words)| (exchange, format!("{words}.{host}")));
    for (exchange, key) in told.into_iter().chain([(CONTROL_EXCHANGE, control_key(host, PING_COMMAND))]) {
        match try_to_publish(link, exchange, &key).await {
            Err(error) if error.is_access_refused() => found.closed_exchanges.push(exchange),
            Err(error) if error.is_not_found() => found.missing.push(exchange.to_owned()),
            // It went as far as the user id.
            Err(error) if error.is_otherwise_declared() => {}
            Err(error) => return Err(error),
            Ok(()) => {}
        }
    }
    Ok(found)
}

async fn try_to_publish(link: &Link, exchange: &'static str, key: &str) -> Result<(), LinkError> {
    let channel = link.channel().await?;
    answer("ask for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
    let properties = BasicProperties::default().with_user_id(NOBODY.into()).with_expiration("0".into());
    let confirmed = async {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange.into(), key.into(), options, &[], properties).await?.await
    };
    answer(format!("publish to exchange `{exchange}`"), confirmed).await.map(drop)
}
