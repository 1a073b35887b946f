//! Where a saga's records go.

use async_trait::async_trait;

use super::record::Record;
use crate::failure::Failure;

/// A durable, ordered log of one execution of a saga.
#[async_trait]
pub trait SagaLog: Send + Sync {
    /// Returns once the record is durable. An error means that it is not, and the effect that it announces doesn't happen;
    /// only an undo or release is done all the same, since it may be repeated.
    async fn record(&self, record: Record) -> Result<(), Failure>;
}
