//! One guard an instance at a time on this host. A guard that still watches a guest after its worker died would thaw the
//! next backup's freeze, unseen by that one; so the next guard waits until the place is free, or isn't armed.
//!
//! The place is an abstract unix socket: bound by one process, and free again when that ends in whatever way.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::time::{Instant, sleep};

use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;

/// Pause between two looks whether the place is free.
const LOOK_PERIOD: Duration = Duration::from_millis(250);

/// Takes the place of `instance`'s guard, and keeps it until the answer is dropped. `guard_failed` after `wait`.
pub(super) async fn take(instance: InstanceId, wait: Duration) -> Result<UnixListener, Failure> {
    let failed = |error: &std::io::Error| {
        Failure::new(Code::GuardFailed, format!("cannot take the place of the guard of instance `{instance}`"))
            .because(error)
    };
    let address =
        SocketAddr::from_abstract_name(format!("longshore-guard-{instance}")).map_err(|error| failed(&error))?;
    let until = Instant::now() + wait;
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(place) => return Ok(place),
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => return Err(failed(&error)),
            Err(_) if Instant::now() >= until => {
                let who = holder(&address)
                    .map_or_else(|| "another guard".to_owned(), |pid| format!("the guard with pid {pid}"));
                let text = format!("{who} is still at work on instance `{instance}`");
                return Err(Failure::new(Code::GuardFailed, text));
            }
            Err(_) => sleep(LOOK_PERIOD).await,
        }
    }
}

fn holder(address: &SocketAddr) -> Option<i32> {
    let connection = UnixStream::connect_addr(address).ok()?;
    getsockopt(&connection, PeerCredentials).ok().map(|peer| peer.pid())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_second_guard_of_an_instance_waits_for_the_first() {
        let instance = InstanceId::draw();
        let first = take(instance, Duration::ZERO).await.unwrap();
        let refused = take(instance, Duration::ZERO).await.unwrap_err();
        assert_eq!(refused.code, Code::GuardFailed);
        assert!(refused.text.contains(&std::process::id().to_string()), "{refused}");
        take(InstanceId::draw(), Duration::ZERO).await.unwrap();

        let second = tokio::spawn(take(instance, Duration::from_secs(20)));
        drop(first);
        second.await.unwrap().unwrap();
    }
}
