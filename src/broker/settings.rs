//! What an operator can set about the broker, with the values that fit most.

use std::time::Duration;

use super::address::BrokerUri;
use super::tls::TlsFiles;
use super::topology::QueueType;

/// Settings of a connection to the broker.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// Where the broker is.
    pub uri: BrokerUri,
    /// Certificates, for an address that begins with `amqps`.
    pub tls: TlsFiles,
    /// Who connects: the host id of a worker, or the name of a command. It stands in the connection's name.
    pub client_name: String,
    /// Seconds between heartbeats. A broker takes up to three of them to notice that a client is gone.
    pub heartbeat_seconds: u16,
    /// Largest AMQP frame of the connection that publishes, in bytes. lapin keeps 64 of them as buffers for each connection.
    /// RabbitMQ from 4.1 on wants at least 8192.
    pub frame_max_bytes: u32,
    /// The same for those that read. RabbitMQ does not split a message's properties to fit, and lapin closes the connection over
    /// a frame that is larger, so this is as large as a publisher's may be: the broker's own default. Of the 8 MiB of buffers
    /// that follow from it, only what was used takes memory.
    pub read_frame_max_bytes: u32,
    /// How long a publish waits for its confirm, reconnects included.
    pub publish_wait: Duration,
    /// Whether a publish goes on waiting when the broker lets us in no more. A worker does, since its user may be made again; where
    /// a person waits, who can mend it, it should not.
    pub patient: bool,
    /// Deliveries of each job queue that may be un-acked at a time, not counting those from before the jobs were unwanted for a
    /// while. At least 1.
    pub prefetch: u16,
    /// How the broker keeps the job queues of a host that are not there yet.
    pub jobs_queue_type: QueueType,
    /// Time between two pings through the host's own control queue.
    pub ping_interval: Duration,
    /// How long a ping may be under way before the connection counts as silent.
    pub ping_wait: Duration,
}

impl BrokerSettings {
    /// The values that fit most, for the broker at `uri`.
    pub fn new(uri: BrokerUri, client_name: impl Into<String>) -> Self {
        Self {
            uri,
            tls: TlsFiles::default(),
            client_name: client_name.into(),
            heartbeat_seconds: 20,
            frame_max_bytes: 16 * 1024,
            read_frame_max_bytes: 128 * 1024,
            publish_wait: Duration::from_secs(30),
            patient: true,
            prefetch: 32,
            jobs_queue_type: QueueType::Classic,
            ping_interval: Duration::from_secs(15),
            ping_wait: Duration::from_secs(20),
        }
    }

    /// How long another consumer may hold the control queue before we say that the host id is in use: a broker may take three
    /// heartbeats to notice that the owner, perhaps ourselves before a restart, is gone.
    pub fn in_use_after(&self) -> Duration {
        Duration::from_secs(u64::from(self.heartbeat_seconds)) * HEARTBEATS_UNTIL_IN_USE
    }
}

/// See [`BrokerSettings::in_use_after`].
const HEARTBEATS_UNTIL_IN_USE: u32 = 4;
