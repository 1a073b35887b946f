//! The fakes keep the contracts that the real doors keep.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod contract;

use std::sync::Arc;

use contract::broker::Ground;
use longshore::broker::Broker;
use longshore::broker::memory::{MemoryServer, MemorySettings};

impl Ground for MemoryServer {
    fn client(&self, _name: &str) -> Arc<dyn Broker> {
        MemoryServer::client(self, MemorySettings::default())
    }

    fn user(&self) -> String {
        longshore::broker::memory::USER.to_owned()
    }
}

#[tokio::test]
async fn the_broker_in_the_process_keeps_the_contract() {
    contract::broker::all(&MemoryServer::new()).await;
}
