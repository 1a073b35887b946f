//! Random sagas and random logs.

use proptest::prelude::*;

use crate::failure::{Code, Failure};
use crate::saga::harness;
use crate::saga::record::{CommitState, Progress, Record, Shape};
use crate::saga::step::Step;
use crate::saga::toy::{Tree, World, committed, held, made, made_in};

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// A shape of a saga that says nothing of names.
#[derive(Clone, Debug)]
enum Plan {
    Make { tries: u32 },
    Within(Vec<Plan>),
    Commit,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let leaf = prop_oneof![4 => (1..3u32).prop_map(|tries| Plan::Make { tries }), 1 => Just(Plan::Commit)];
    let tree = leaf
        .prop_recursive(3, NAMES.len() as u32, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Plan::Within));
    prop::collection::vec(tree, 1..4)
}

/// The saga of that shape, as far as its names and the rules for commits go.
fn steps(
    plans: &[Plan],
    names: &mut std::slice::Iter<'static, &'static str>,
    committed_yet: &mut bool,
) -> Vec<Step<World>> {
    let mut steps = Vec::new();
    for plan in plans {
        let Some(name) = names.next() else { break };
        match plan {
            Plan::Make { tries } => steps.push(made_in(name, *tries)),
            Plan::Commit if *committed_yet => steps.push(made(name)),
            Plan::Commit => {
                *committed_yet = true;
                steps.push(committed(name));
            }
            Plan::Within(_) if *committed_yet => {}
            Plan::Within(inner) => {
                let inner = self::steps(inner, names, committed_yet);
                steps.push(held(name, inner));
            }
        }
    }
    steps
}

fn records() -> impl Strategy<Value = Record> {
    let step = || prop::sample::select(&NAMES[..4]).prop_map(str::to_owned);
    let shape = prop_oneof![Just(Shape::Make), Just(Shape::Hold)];
    let failure = || Failure::new(Code::Internal, "random");
    prop_oneof![
        4 => (step(), shape).prop_map(|(step, shape)| Record::Began { step, shape }),
        4 => step().prop_map(|step| Record::Done { step, value: true.into() }),
        1 => Just(Record::Failed { failure: failure() }),
        1 => Just(Record::Stopped { failure: failure() }),
        2 => step().prop_map(|step| Record::Undoing { step }),
        2 => step().prop_map(|step| Record::Undone { step }),
        1 => step().prop_map(move |step| Record::UndoFailed { step, failure: failure() }),
        2 => step().prop_map(|step| Record::Releasing { step }),
        2 => step().prop_map(|step| Record::Released { step }),
        1 => step().prop_map(move |step| Record::ReleaseFailed { step, failure: failure() }),
        1 => step().prop_map(|step| Record::Committing { step }),
        2 => Just(Record::Committed { value: true.into() }),
        1 => Just(Record::CommitUnknown { failure: failure() }),
        1 => Just(Record::Warned { failure: failure() }),
        1 => step().prop_map(move |step| Record::LeftOver { step, failure: failure() }),
    ]
}

/// Only what can follow what is there already.
fn legal(records: Vec<Record>) -> Vec<Record> {
    let mut progress = Progress::default();
    records.into_iter().filter(|record| progress.apply(record)).collect()
}

/// What a way back without any trouble would write.
fn way_back(progress: &Progress) -> Vec<Record> {
    let mut records = Vec::new();
    if *progress.commit() == CommitState::Begun {
        records.push(Record::CommitUnknown { failure: Failure::new(Code::Internal, "nobody knows") });
    } else if *progress.commit() == CommitState::NotYet && progress.fall().is_none() {
        records.push(Record::Failed { failure: Failure::new(Code::Interrupted, "cut off") });
    }
    for open in progress.open().iter().rev() {
        let step = open.step.clone();
        match open.shape {
            Shape::Hold => records.extend([Record::Releasing { step: step.clone() }, Record::Released { step }]),
            Shape::Make if *progress.commit() == CommitState::NotYet => {
                records.extend([Record::Undoing { step: step.clone() }, Record::Undone { step }]);
            }
            Shape::Make => {}
        }
    }
    records
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn from_every_prefix_of_a_legal_log_there_is_a_way_back_that_ends(random in prop::collection::vec(records(), 0..60)) {
        let log = legal(random);
        for cut in 0..=log.len() {
            let prefix = log.get(..cut).unwrap_or_default();
            let mut progress = Progress::fold(prefix).map_err(|error| TestCaseError::fail(error.to_string()))?;
            for record in way_back(&progress) {
                prop_assert!(progress.apply(&record), "{record:?} after {prefix:?}");
            }
            prop_assert!(progress.open().iter().all(|open| open.shape == Shape::Make));
            prop_assert!(progress.open().is_empty() || *progress.commit() != CommitState::NotYet);
        }
    }

    #[test]
    fn a_record_survives_its_journal(record in records()) {
        let text = serde_json::to_string(&record).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(serde_json::from_str::<Record>(&text).ok(), Some(record));
    }

    #[test]
    fn every_saga_stands_the_harness(plans in plans()) {
        let case = Tree(move || steps(&plans, &mut NAMES.iter(), &mut false), vec![]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.map_err(|error| TestCaseError::fail(error.to_string()))?;
        runtime.block_on(async {
            harness::completes(&case).await;
            harness::unwinds_from_every_step(&case).await;
            harness::every_step_may_run_twice(&case).await;
            harness::stopped_after_every_record_it_recovers(&case).await;
        });
    }
}
