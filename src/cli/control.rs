//! Telling hosts what a controller wants: one control message each, confirmed by the broker. Whether a host obeys, its events say; that nobody
//! is there to read it is said here.

use jiff::Timestamp;

use super::exit::Exit;
use super::output::{self, CliError};
use crate::broker::topology::{CONTROL_EXCHANGE, control_key};
use crate::broker::{Broker, Outgoing, PublishError};
use crate::message::{Control, Encoded, Encoding, decode_control, encode_control};
use crate::model::id::HostId;

/// Tells each of the hosts, as far as that goes, and on stderr what became of it.
pub async fn tell(broker: &dyn Broker, hosts: &[HostId], control: &Control) -> Result<Exit, CliError> {
    let Encoded { properties, body } = encoded(control)?;
    // As the worker will read it, so that a mistake is heard here.
    if let Some(Err(refusal)) = decode_control(control.command(), &properties, &body) {
        return Err(CliError::usage(refusal));
    }
    let readers = broker.control_readers(hosts).await.map_err(CliError::failed)?;
    let mut exit = Exit::Done;
    for (host, readers) in hosts.iter().zip(readers) {
        if readers == Some(0) && !is_for_later(control) {
            eprintln!("host `{host}`: not told, as no worker is there now");
            exit = worse(exit, Exit::Warnings);
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
    use super::*;

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
