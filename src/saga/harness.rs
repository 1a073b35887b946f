//! What every saga has to stand, written once and called for each: it fails at every step and leaves a clean slate; its steps
//! may run twice; stopped after any record, it recovers. For unit tests and for targets in `tests/` alike.
//!
//! Each function panics with the place at which the saga did not stand it. Run them with tokio's time paused: the pauses of
//! retries count.

mod breaking;
mod logs;

use async_trait::async_trait;

use super::line::{Op, lay_out};
use super::outcome::{End, Outcome};
use super::record::Record;
use super::step::Step;
use super::stop::Stop;
use super::{recover, run};
use breaking::{Breaks, broken, doubled};
pub use logs::MemoryLog;
use logs::{CrashAt, CrashingLog};

/// A saga with a world in which it can be looked at.
#[async_trait]
pub trait Case: Sync {
    /// What its steps work with.
    type Context: Send + 'static;
    /// A new world, the same each time.
    async fn begin(&self) -> Self::Context;
    /// The steps, made from the same plan each time.
    fn steps(&self) -> Vec<Step<Self::Context>>;
    /// What a worker has after a crash: the same world, with nothing that was only in memory.
    async fn reopen(&self, crashed: Self::Context) -> Self::Context;
    /// Says what is there in the world that was not there at the beginning.
    async fn stains(&self, context: &mut Self::Context) -> Vec<String>;
    /// Says what is not as it should be in the world after the saga has completed, including what is still held.
    async fn shortcomings(&self, context: &mut Self::Context) -> Vec<String>;
    /// For a saga whose commit may not find out after a crash whether it happened: says what was touched all the same, including what is
    /// still held, once the saga has ended so. None where it always finds out.
    async fn touched(&self, _context: &mut Self::Context) -> Option<Vec<String>> {
        None
    }
}

/// It completes.
pub async fn completes<K: Case>(case: &K) {
    let mut context = case.begin().await;
    let log = MemoryLog::default();
    let outcome = run(&case.steps(), &mut context, &log, &Stop::never()).await;
    stands(case, context, &outcome, Must::Complete, "undisturbed").await;
}

/// A failure of any step, whether or not the step had its effect, leaves a clean slate; after the commit it changes nothing.
pub async fn unwinds_from_every_step<K: Case>(case: &K) {
    for (name, after_commit, is_commit) in effects(&case.steps()) {
        for breaks in [Breaks::Before, Breaks::After] {
            // An error of the commit says that it did not happen.
            if is_commit && breaks == Breaks::After {
                continue;
            }
            let mut context = case.begin().await;
            let steps = broken(case.steps(), name, breaks);
            let outcome = run(&steps, &mut context, &MemoryLog::default(), &Stop::never()).await;
            let place = format!("step `{name}` broken: {breaks:?}");
            if after_commit {
                assert!(
                    matches!(outcome.end, End::Completed { .. }) && outcome.left_over.is_empty(),
                    "{place}: {outcome:?}"
                );
                assert!(!outcome.warnings.is_empty(), "{place}: nobody is told");
            } else {
                stands(case, context, &outcome, Must::Fail, &place).await;
            }
        }
    }
}

/// Every undo, release, commit and step after the commit may run twice; so may every other step that declares a retry.
pub async fn every_step_may_run_twice<K: Case>(case: &K) {
    let mut context = case.begin().await;
    let outcome = run(&doubled(case.steps()), &mut context, &MemoryLog::default(), &Stop::never()).await;
    stands(case, context, &outcome, Must::Complete, "every step twice").await;
    for (name, after_commit, _) in effects(&case.steps()) {
        if after_commit {
            continue;
        }
        let mut context = case.begin().await;
        let steps = broken(doubled(case.steps()), name, Breaks::Before);
        let outcome = run(&steps, &mut context, &MemoryLog::default(), &Stop::never()).await;
        stands(case, context, &outcome, Must::Fail, &format!("every step twice, `{name}` broken")).await;
    }
}

/// Cut off before or after any record, by a crash, it recovers; also when the recovery is itself cut off after any of its records.
pub async fn stopped_after_every_record_it_recovers<K: Case>(case: &K) {
    let records = MemoryLog::default();
    let mut context = case.begin().await;
    run(&case.steps(), &mut context, &records, &Stop::never()).await;
    let all = records.records().len();
    for cut in 0..all {
        for at in [CrashAt::Before(cut), CrashAt::After(cut)] {
            // None: the recovery is left in peace.
            let mut second = None;
            loop {
                let peaceful = recovers(case, at, second).await;
                if peaceful && second.is_some() {
                    break;
                }
                second = Some(second.map_or(0, |cut| cut + 1));
            }
        }
    }
}

/// Crashes at one record, and at another of the recovery; true if the recovery had no such record.
async fn recovers<K: Case>(case: &K, at: CrashAt, second: Option<usize>) -> bool {
    let place = format!("cut off {at:?}, its recovery after {second:?}");
    let mut context = case.begin().await;
    let log = CrashingLog::new(Vec::new(), Some(at));
    let ended = log.until_crash(run(&case.steps(), &mut context, &log, &Stop::never())).await;
    assert!(ended.is_none(), "the saga wrote fewer records than before: {place}");
    let mut records = log.records();
    let mut context = case.reopen(context).await;
    let mut peaceful = true;
    if let Some(second) = second {
        let log = CrashingLog::new(records.clone(), Some(CrashAt::After(second)));
        peaceful = log.until_crash(recover(&case.steps(), &mut context, &records, &log)).await.is_some();
        records = log.records();
        context = case.reopen(context).await;
    }
    let has = |wanted: fn(&Record) -> bool| records.iter().any(wanted);
    let must = match (has(|r| matches!(r, Record::Committed { .. })), has(|r| matches!(r, Record::Committing { .. }))) {
        (true, _) => Must::Complete,
        (false, true) => Must::Either,
        (false, false) => Must::Fail,
    };
    let log = CrashingLog::new(records.clone(), None);
    let outcome = recover(&case.steps(), &mut context, &records, &log).await;
    stands(case, context, &outcome, must, &place).await;
    peaceful
}

enum Must {
    Complete,
    Fail,
    /// Whichever it says, the world has to agree.
    Either,
}

async fn stands<K: Case>(case: &K, mut context: K::Context, outcome: &Outcome, must: Must, place: &str) {
    let completed = matches!(outcome.end, End::Completed { .. });
    match must {
        Must::Complete => assert!(completed, "{place}: {outcome:?}"),
        Must::Fail => assert!(!completed, "{place}: {outcome:?}"),
        Must::Either => {}
    }
    if matches!(must, Must::Either)
        && !outcome.left_over.is_empty()
        && let Some(touched) = case.touched(&mut context).await
    {
        assert!(!completed && touched.is_empty(), "{place}: {touched:?} after {outcome:?}");
        return;
    }
    assert!(outcome.left_over.is_empty(), "{place}: {outcome:?}");
    let wrong = if completed { case.shortcomings(&mut context).await } else { case.stains(&mut context).await };
    assert!(wrong.is_empty(), "{place}: {wrong:?} after {outcome:?}");
}

/// Name of each step, whether it stands after the commit, and whether it is the commit.
fn effects<C: Send>(steps: &[Step<C>]) -> Vec<(&'static str, bool, bool)> {
    let ops = match lay_out(steps) {
        Ok(ops) => ops,
        Err(failure) => refuse(&failure.text),
    };
    let mut after_commit = false;
    let mut effects = Vec::new();
    for op in ops {
        let is_commit = matches!(op, Op::Commit(_));
        if !matches!(op, Op::Release(_)) {
            effects.push((op.named().name(), after_commit, is_commit));
        }
        after_commit |= is_commit;
    }
    effects
}

#[allow(clippy::panic, reason = "this is how a test says that its saga is none")]
fn refuse(text: &str) -> ! {
    panic!("{text}")
}
