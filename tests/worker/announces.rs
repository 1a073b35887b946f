//! A host that is asked to tell anew how it stands tells the same once more.

use std::time::Duration;

use longshore::message::event::HostDetail;
use longshore::message::{Announce, Control, Event};
use longshore::model::job::RunKey;
use longshore::worker::admit::Slots;

use crate::events::Seen;
use crate::fleet::Fleet;

/// An hour: what comes was asked for.
const SELDOM: Duration = Duration::from_secs(3600);

fn of_host(fleet: &Fleet, wanted: impl Fn(&HostDetail) -> bool) -> usize {
    let is_wanted = |detail: &&HostDetail| wanted(detail);
    fleet.events.of_host().iter().filter(is_wanted).count()
}

/// How often that event of the run came, and by how many ids.
fn came(fleet: &Fleet, key: RunKey, word: &str) -> (usize, usize) {
    let of_run = |seen: &Seen| match &seen.event {
        Event::Run(event) => (event.job_id, event.run) == (key.job_id, key.run) && event.detail.word() == word,
        _ => false,
    };
    let came: Vec<_> = fleet.events.all().into_iter().filter(of_run).map(|seen| seen.properties.message_id).collect();
    (came.len(), came.iter().collect::<std::collections::BTreeSet<_>>().len())
}

#[tokio::test]
async fn it_tells_signs_of_life_and_the_state_of_each_open_run_with_the_ids_that_they_had() {
    let mut fleet = Fleet::without_worker(&["web", "db"]).await;
    fleet.settings.slots = Slots { host: 1, repository: 1 };
    (fleet.settings.heartbeat, fleet.settings.inventory) = (SELDOM, SELDOM);
    fleet.start().await;
    let done = fleet.publish(&fleet.job("db")).await;
    fleet.completed(done).await;
    fleet.movers.hang("copy");
    let running = fleet.publish(&fleet.job("web")).await;
    fleet.until_copying("web").await;
    let waiting = fleet.publish(&fleet.job("db")).await;
    fleet.told(waiting, 0, "accepted").await;
    for round in 2..=3 {
        fleet.command(&Control::Announce(Announce {})).await;
        let again = |fleet: &Fleet| {
            let all = came(fleet, running, "started") == (round, 1) && came(fleet, waiting, "accepted") == (round, 1);
            let beats = of_host(fleet, |detail| matches!(detail, HostDetail::Heartbeat(_)));
            let inventories = of_host(fleet, |detail| matches!(detail, HostDetail::Inventory(_)));
            let online = of_host(fleet, |detail| matches!(detail, HostDetail::Online(_)));
            (all && (beats, inventories, online) == (round, round, round)).then_some(())
        };
        fleet.until("all of it once more", again).await;
    }
    assert_eq!(
        (came(&fleet, running, "accepted"), came(&fleet, done, "completed")),
        ((1, 1), (1, 1)),
        "no more than that"
    );
    fleet.movers.unhang("copy");
    fleet.completed(running).await;
    fleet.completed(waiting).await;
    fleet.finish().await;
}
