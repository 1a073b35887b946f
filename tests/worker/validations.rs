//! Jobs that are about a repository and no instance: everything that a worker does with a job it does with them.

use longshore::failure::{Code, Failure};
use longshore::message::JobMessage;
use longshore::message::event::{HostDetail, RunDetail};
use longshore::message::job::{RetryPart, ValidatePart};
use longshore::model::job::JobKind;
use longshore::model::validation::{FindingCode, ValidationLevel};

use crate::fleet::{Fleet, SHARE};

fn validation(fleet: &Fleet) -> JobMessage {
    let validate = ValidatePart { level: Some("content".to_owned()), ..ValidatePart::default() };
    JobMessage {
        kind: "repo-validate".to_owned(),
        instance: None,
        backup: None,
        validate: Some(validate),
        ..fleet.job("web")
    }
}

#[tokio::test]
async fn what_was_found_comes_with_the_end_of_the_run_and_damage_is_no_failure() {
    let fleet = Fleet::with(&["web"]).await;
    let backup = fleet.publish(&fleet.job("web")).await;
    fleet.completed(backup).await;
    let published = fleet.movers.published(SHARE)[0].clone();
    fleet.movers.damage(SHARE, published.backup_id);
    let key = fleet.publish(&validation(&fleet)).await;
    let RunDetail::Completed(completed) = fleet.end_of(key).await else { panic!() };
    let found = *completed.validate.unwrap();
    assert_eq!((found.level, found.errors, found.instances, found.backups), (ValidationLevel::Content, 1, 1, 1));
    let finding = &found.findings[0];
    assert_eq!((finding.code, finding.backup_id), (FindingCode::ContentDiffers, Some(published.backup_id)));
    assert_eq!((completed.backup, completed.restore), (None, None));
    let events = fleet.events.of_run(key);
    assert!(events.iter().all(|event| event.kind == JobKind::RepoValidate && event.instance.is_none()));
    assert_eq!(fleet.events.story(key), [(0, "accepted"), (1, "started"), (1, "completed")]);
    fleet.finish().await;
}

#[tokio::test]
async fn it_runs_beside_the_backups_of_its_repository_and_heartbeats_tell_of_it() {
    let fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("copy");
    fleet.movers.hang("validate");
    let backup = fleet.publish(&fleet.job("web")).await;
    let key = fleet.publish(&validation(&fleet)).await;
    let told = |fleet: &Fleet| {
        fleet.events.of_host().into_iter().find_map(|detail| match detail {
            HostDetail::Heartbeat(beat) => beat.running.into_iter().find(|job| job.job_id == key.job_id),
            _ => None,
        })
    };
    let running = fleet.until("a heartbeat with the validation", told).await;
    assert_eq!((running.kind, running.instance), (JobKind::RepoValidate, None));
    fleet.movers.unhang("validate");
    fleet.completed(key).await;
    fleet.movers.unhang("copy");
    fleet.completed(backup).await;
    fleet.finish().await;
}

#[tokio::test]
async fn one_that_could_not_be_done_is_told_and_lettered_like_any_other() {
    let fleet = Fleet::with(&["web"]).await;
    let mut job = validation(&fleet);
    job.retry = Some(RetryPart { attempts: Some(1), ..RetryPart::default() });
    fleet.movers.fail("validate", 1, Failure::new(Code::RepositoryIo, "it is gone"));
    let key = fleet.publish(&job).await;
    assert_eq!(fleet.failed(key).await.code, "repository_io");
    let letter = fleet.until("the letter", |fleet| fleet.letter_of(key)).await;
    assert_eq!(letter.kind, Some(JobKind::RepoValidate));
    fleet.finish().await;
}

#[tokio::test]
async fn a_crash_while_it_looks_is_followed_by_another_look() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("validate");
    let key = fleet.publish_urgent(&validation(&fleet)).await;
    fleet.until("the look", |fleet| fleet.movers.is_hanging("validate").then_some(())).await;
    fleet.crash().await;
    fleet.movers.unhang("validate");
    fleet.start().await;
    let RunDetail::Retrying(retrying) = fleet.told(key, 1, "retrying").await else { panic!() };
    assert_eq!(retrying.failure.code, "interrupted");
    fleet.completed(key).await;
    fleet.finish().await;
}

/// Its message can't be read any more: only the journal's columns can be told.
#[tokio::test]
async fn one_whose_message_is_lost_ends_as_failed_without_an_instance() {
    let mut fleet = Fleet::with(&["web"]).await;
    fleet.movers.hang("validate");
    let key = fleet.publish(&validation(&fleet)).await;
    fleet.until("the look", |fleet| fleet.movers.is_hanging("validate").then_some(())).await;
    fleet.crash().await;
    fleet.movers.unhang("validate");
    fleet.in_journal("UPDATE messages SET body = x'c0'").await;
    fleet.start().await;
    fleet.failed(key).await;
    let last = fleet.events.of_run(key).into_iter().next_back().unwrap();
    assert_eq!((last.instance, last.kind), (None, JobKind::RepoValidate));
    fleet.finish().await;
}
