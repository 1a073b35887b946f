//! The bare loop: published, confirmed, delivered, acked, and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use longshore::message::Encoded;

use super::rabbit::Rabbit;
use super::wire::{Listener, Target, Wire};
use super::{MANY, PACE, PACED, jobs};

const QUEUE: &str = "bench-bare";

fn target() -> Target {
    Target { exchange: "", routing_key: QUEUE.to_owned() }
}

/// From the moment at which each message was to be sent until it was there.
pub async fn paced(rabbit: &Rabbit) -> Vec<Duration> {
    let messages = jobs::messages(&"bench".parse().unwrap(), PACED);
    let (wire, mut listener) = (Wire::open(rabbit).await, Listener::open(rabbit, QUEUE, &[]).await);
    let listen = async {
        let mut heard = BTreeMap::new();
        while heard.len() < PACED {
            let next = listener.next().await;
            heard.insert(next.correlation_id, next.at);
        }
        heard
    };
    let target = target();
    let (intended, heard) = tokio::join!(wire.publish_paced(&target, &messages, PACE), listen);
    listener.close().await;
    latencies(&messages, &intended, &heard)
}

/// What passed between the moment meant for each message and the moment at which its job was heard of.
pub fn latencies(messages: &[Encoded], intended: &[Instant], heard: &BTreeMap<String, Instant>) -> Vec<Duration> {
    let latency = |(message, moment): (&Encoded, &Instant)| {
        heard[message.properties.correlation_id.as_ref().unwrap()].duration_since(*moment)
    };
    messages.iter().zip(intended).map(latency).collect()
}

/// Messages a second, from the first one's publishing to the last one's ack.
pub async fn rate(rabbit: &Rabbit) -> f64 {
    let messages = jobs::messages(&"bench".parse().unwrap(), MANY);
    let (wire, mut listener) = (Wire::open(rabbit).await, Listener::open(rabbit, QUEUE, &[]).await);
    let target = target();
    let begun = Instant::now();
    let listen = async {
        for _ in 0..MANY {
            listener.next().await;
        }
    };
    tokio::join!(wire.publish_all(&target, &messages), listen);
    let rate = MANY as f64 / begun.elapsed().as_secs_f64();
    listener.close().await;
    rate
}
