//! A guest that can't be asked to freeze: a job that insists fails and says why, one that doesn't says what it got.

use longshore::model::manifest::{Consistency, Manifest};

use crate::fleet::Fleet;
use crate::lab::LabInstance;
use crate::share::Share;

#[test]
fn an_instance_without_an_agent_is_never_said_to_be_quiesced() {
    let (bare, silent) = (LabInstance::bare(), LabInstance::guest_without_agent());
    let fleet = Fleet::start("agentless");
    let share = fleet.share();
    for (instance, code) in [(&bare, "agent_missing"), (&silent, "agent_silent")] {
        let insists = fleet.failed(fleet.back_up(instance, &share, "require"));
        assert_eq!(insists.failure.code, code, "{insists:?}");
        assert!(share.entries_of(&instance.id).is_empty(), "nothing is published");
        prefers(&fleet, instance, &share, code);
    }
    fleet.finish(&[&bare, &silent], &[&share]);
}

fn prefers(fleet: &Fleet, instance: &LabInstance, share: &Share, code: &str) {
    let summary = fleet.completed(fleet.back_up(instance, share, "prefer"));
    assert_eq!((summary.consistency, summary.frozen_ms), (Consistency::Crash, None), "{code}");
    let manifest = std::fs::read(share.path.join(&summary.directory).join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    assert!(manifest.quiesce.reason.is_some_and(|reason| reason.contains("agent")), "{code}: a reason is recorded");
}
