//! The durable record of a worker.
