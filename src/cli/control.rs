//! Telling hosts what a controller wants: one control message each, confirmed by the broker. Whether a host obeys, its events say; that nobody
//! is there to read it is said here.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::exit::Exit;
use super::output::{self, CliError};
use crate::broker::topology::{CONTROL_EXCHANGE, control_key};
use crate::broker::{Broker, BrokerError, Outgoing, PublishError};
use crate::message::{Control, Encoded, Encoding, decode_control, encode_control};
use crate::model::id::HostId;

/// Longest time that whoever is not there is waited for, where only who is there is told: a worker that has lost its connection for a moment
/// reads again within seconds.
const READER_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Tells each of the hosts, as far as that goes, and on stderr what became of it.
pub async fn tell(broker: &dyn Broker, hosts: &[HostId], control: &Control) -> Result<Exit, CliError> {
    let Encoded { properties, body } = encoded(control)?;
    // As the worker will read it, so that a mistake is heard here.
    if let Some(Err(refusal)) = decode_control(control.command(), &properties, &body) {
        return Err(CliError::usage(refusal));
    }
    let patience = if is_for_later(control) { Duration::ZERO } else { READER_MAX };
    let readers = readers(broker, hosts, patience).await.map_err(CliError::failed)?;
    let mut exit = Exit::Done;
    for (host, readers) in hosts.iter().zip(readers) {
        if readers == Some(0) && !is_for_later(control) {
            eprintln!("host `{host}`: not told, as no worker is there now");
            exit = worse(exit, Exit::Failed);
            continue;
        }
        let (text, end) = match publish(broker, host, control).await? {
            Err(PublishError::Unroutable { .. }) => {
                ("not told, as it has no control queue on this broker".to_owned(), Exit::NotFound)
            }
            Err(error) => (format!("not told: {error}"), Exit::Failed),
            Ok(()) if readers.is_none_or(|readers| readers == 0) => {
                ("no worker is there now; the next one reads it from the queue".to_owned(), Exit::Warnings)
            }
            Ok(()) => ("told; what it makes of it, its events say".to_owned(), Exit::Done),
        };
        eprintln!("{}", output::printable(&format!("host `{host}`: {text}")));
        exit = worse(exit, end);
    }
    Ok(exit)
}

/// How many read each host's control queue, once that is at least one of each, or the patience has come to its end.
async fn readers(broker: &dyn Broker, hosts: &[HostId], patience: Duration) -> Result<Vec<Option<u32>>, BrokerError> {
    let until = Instant::now() + patience;
    loop {
        let readers = broker.control_readers(hosts).await?;
        if !readers.contains(&Some(0)) || Instant::now() >= until {
            return Ok(readers);
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// A worker that starts later has to know of it as well.
const fn is_for_later(control: &Control) -> bool {
    match control {
        Control::Cancel(_) | Control::Pause(_) | Control::Resume(_) => true,
        Control::Drain(_) | Control::Announce(_) => false,
    }
}

fn encoded(control: &Control) -> Result<Encoded, CliError> {
    Ok(encode_control(control, Encoding::MessagePack, Timestamp::now())?)
}

/// Of several hosts the worst is what the command ends as.
fn worse(one: Exit, other: Exit) -> Exit {
    let rank = |exit: Exit| [Exit::Done, Exit::Warnings, Exit::NotFound].iter().position(|known| *known == exit);
    match (rank(one), rank(other)) {
        (Some(one_rank), Some(other_rank)) => {
            if one_rank >= other_rank {
                one
            } else {
                other
            }
        }
        (None, _) => one,
        (_, None) => other,
    }
}

async fn publish(broker: &dyn Broker, host: &HostId, control: &Control) -> Result<Result<(), PublishError>, CliError> {
    let Encoded { properties, body } = encoded(control)?;
    let routing_key = control_key(host, control.command());
    Ok(broker.publisher().publish(Outgoing { exchange: CONTROL_EXCHANGE, routing_key, properties, body }).await)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::broker::memory::MemoryServer;
    use crate::broker::topology::control_queue;
    use crate::message::{Drain, Pause};

    #[tokio::test(start_paused = true)]
    async fn who_is_not_there_is_waited_for_and_then_not_told_what_is_only_for_now() {
        let (server, host) = (MemoryServer::new(), "kvm-07".parse::<HostId>().unwrap());
        server.enrol(&host);
        let broker = server.client(Default::default());
        let hosts = [host];
        let drain = Control::Drain(Drain::default());
        assert_eq!(tell(broker.as_ref(), &hosts, &drain).await.unwrap(), Exit::Failed);
        assert_eq!(server.depth(&control_queue(&hosts[0])).unwrap().ready, 0, "nobody is to read it later");
        let comes_back = async {
            sleep(READER_MAX / 2).await;
            broker.open_host(&hosts[0]).await
        };
        let (told, _session) = tokio::join!(tell(broker.as_ref(), &hosts, &drain), comes_back);
        assert_eq!(told.unwrap(), Exit::Done);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_for_later_waits_in_the_queue_of_who_is_not_there() {
        let (server, host) = (MemoryServer::new(), "kvm-07".parse::<HostId>().unwrap());
        server.enrol(&host);
        let broker = server.client(Default::default());
        let (began, hosts) = (Instant::now(), [host]);
        let pause = Control::Pause(Pause::default());
        assert_eq!(tell(broker.as_ref(), &hosts, &pause).await.unwrap(), Exit::Warnings);
        assert_eq!((server.depth(&control_queue(&hosts[0])).unwrap().ready, began.elapsed()), (1, Duration::ZERO));
    }

    #[test]
    fn the_worst_of_several_hosts_counts() {
        use Exit::{Done, Failed, NotFound, Warnings};
        for (exits, worst) in [
            (&[Done, Done][..], Done),
            (&[Done, Warnings, Done], Warnings),
            (&[NotFound, Warnings, Done], NotFound),
            (&[NotFound, Failed, Warnings], Failed),
        ] {
            assert_eq!(exits.iter().copied().reduce(worse), Some(worst), "{exits:?}");
        }
    }
}
