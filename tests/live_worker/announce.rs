//! A controller has a host tell anew how it stands, by the command line.

use std::time::Duration;

use longshore::message::event::HostDetail;

use crate::cancel::Commanded;
use crate::fleet::START;
use crate::lab::{LabInstance, eventually};
use crate::share::Share;

/// Longest time from a message's confirm to what its reader makes of it.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_host_tells_once_more_what_it_has_told() {
    let bare = LabInstance::bare();
    let commanded = Commanded::new("announce");
    let (fleet, share) = (&commanded.fleet, Share::faulty("announce"));
    share.order(r#"{"bw_mb": 1}"#);
    let job = fleet.back_up(&bare, &share, "off");
    fleet.is_copying(job);
    let before = fleet.heard.host_events();
    let started = fleet.heard.times_started(job);
    assert_eq!(started, 1);
    commanded.says(&["host", "announce", &fleet.host], 0, "told");
    let online = |event: &longshore::message::HostEvent| matches!(event.detail, HostDetail::Online(_));
    let inventory = |event: &longshore::message::HostEvent| matches!(event.detail, HostDetail::Inventory(_));
    fleet.heard.of_host("it is online", START, before, online);
    fleet.heard.of_host("what is on it", START, before, inventory);
    eventually("the run's state comes again", SOON, || fleet.heard.times_started(job) == 2);
    share.heal();
    fleet.completed(job);
    commanded.says(&["host", "announce", "no-such-host"], 10, "no control queue");
    commanded.fleet.finish(&[&bare], &[&share]);
}
