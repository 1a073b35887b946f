//! The door against a real RabbitMQ, which these tests start, kill and block.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod contract;
#[path = "support/rabbit.rs"]
mod rabbit;

use std::sync::Arc;

use longshore::broker::Broker;
use longshore::broker::settings::BrokerSettings;

use contract::broker::Ground;
use rabbit::Rabbit;

impl Ground for Rabbit {
    fn client(&self, name: &str) -> Arc<dyn Broker> {
        let mut settings = BrokerSettings::new(self.uri().parse().unwrap(), name);
        settings.heartbeat_seconds = 1;
        longshore::broker::connect(settings).unwrap()
    }
}

#[tokio::test]
async fn the_real_broker_keeps_the_contract() {
    contract::broker::all(&Rabbit::start()).await;
}
