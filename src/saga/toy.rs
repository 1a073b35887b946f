//! A saga about nothing: its world is a set of names, and each step can be told to misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::harness::Case;
use super::step::{Commit, Held, Hold, Make, Named, Step, StepRetry};
use super::{Stop, Stopper};
use crate::failure::{Code, Failure, Remains};

/// What a step does wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Quirk {
    /// Its effect fails so often, then works.
    Fails(u32, Code),
    /// Its effect happens and never returns.
    HappensAndHangs,
    /// Its undo or release fails so often, then works.
    SticksFor(u32),
    /// Its undo or release says that it worked, and did nothing.
    Forgets,
    /// Its undo or release works once, and then finds nothing.
    GoesBackOnce,
    /// Its undo or release needs what the effect returned.
    NeedsItsValue,
    /// Its effect asks for a stop and never returns.
    Stops,
    /// The hold that it names is lost, and its effect never returns.
    Loses(&'static str),
    /// Its effect fails, and something is still there because of it.
    Leaves,
    /// Its effect happens, and it says that it does not know whether it did.
    IsNotKnown,
}

#[derive(Default)]
pub struct World {
    /// What is there.
    pub there: BTreeSet<String>,
    /// What happened, in order.
    pub history: Vec<String>,
    pub quirks: BTreeMap<&'static str, Quirk>,
    pub stopper: Option<Stopper>,
    /// Held things that can be lost.
    pub losable: BTreeMap<&'static str, oneshot::Sender<Failure>>,
}

impl World {
    pub fn with(quirks: impl IntoIterator<Item = (&'static str, Quirk)>) -> (World, Stop) {
        let (stopper, stop) = Stopper::new();
        (World { quirks: quirks.into_iter().collect(), stopper: Some(stopper), ..World::default() }, stop)
    }

    async fn effect(&mut self, step: &'static str) -> Result<Value, Failure> {
        self.history.push(format!("do {step}"));
        match self.quirks.get_mut(step) {
            Some(Quirk::Fails(times @ 1.., code)) => {
                *times -= 1;
                // Half of it happens.
                self.there.insert(step.to_owned());
                return Err(Failure::new(*code, "told to fail"));
            }
            Some(Quirk::HappensAndHangs) => {
                self.there.insert(step.to_owned());
                std::future::pending().await
            }
            Some(Quirk::Stops) => {
                if let Some(stopper) = &self.stopper {
                    stopper.stop(Failure::new(Code::HostDraining, "told to stop"));
                }
                std::future::pending().await
            }
            Some(Quirk::Loses(hold)) => {
                let hold = *hold;
                if let Some(lost) = self.losable.remove(hold) {
                    let _ = lost.send(Failure::new(Code::LeaseLost, "told to be lost"));
                }
                std::future::pending().await
            }
            Some(Quirk::Leaves) => {
                return Err(Failure::new(Code::VolumeIo, "told to leave").leaving(Remains::Path(step.into())));
            }
            Some(Quirk::IsNotKnown) => {
                self.there.insert(step.to_owned());
                return Err(Failure::new(Code::RestoreUnfinished, "told not to know"));
            }
            _ => {}
        }
        self.there.insert(step.to_owned());
        Ok(json!(step))
    }

    fn back(&mut self, step: &'static str, value: Option<&Value>) -> Result<(), Failure> {
        self.history.push(format!("back {step}"));
        assert!(value.is_none_or(|value| *value == json!(step)), "`{step}` is taken back with {value:?}");
        if let Some(Quirk::SticksFor(times @ 1..)) = self.quirks.get_mut(step) {
            *times -= 1;
            return Err(Failure::new(Code::MountFailed, "told to stick"));
        }
        let stuck = Err(Failure::new(Code::MountFailed, "told to need more"));
        match self.quirks.get(step) {
            Some(Quirk::Forgets) => return Ok(()),
            Some(Quirk::GoesBackOnce) if !self.there.contains(step) => return stuck,
            Some(Quirk::NeedsItsValue) if value.is_none() => return stuck,
            _ => {}
        }
        self.there.remove(step);
        Ok(())
    }
}

pub struct Toy {
    name: &'static str,
    tries: u32,
}

impl Named for Toy {
    fn name(&self) -> &'static str {
        self.name
    }
    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }
    fn retry(&self) -> StepRetry {
        StepRetry { tries: self.tries, pause: Duration::from_secs(1) }
    }
    fn deadline_code(&self) -> Code {
        Code::MountTimedOut
    }
}

#[async_trait]
impl Make<World> for Toy {
    async fn make(&self, world: &mut World) -> Result<Value, Failure> {
        world.effect(self.name).await
    }
    async fn undo(&self, world: &mut World, made: Option<&Value>) -> Result<(), Failure> {
        world.back(self.name, made)
    }
}

#[async_trait]
impl Hold<World> for Toy {
    async fn acquire(&self, world: &mut World) -> Result<Held, Failure> {
        let value = world.effect(self.name).await?;
        let (sender, lost) = oneshot::channel();
        world.losable.insert(self.name, sender);
        Ok(Held { value, lost: Some(lost) })
    }
    async fn release(&self, world: &mut World, held: Option<&Value>) -> Result<(), Failure> {
        world.back(self.name, held)
    }
}

#[async_trait]
impl Commit<World> for Toy {
    async fn commit(&self, world: &mut World) -> Result<Value, Failure> {
        world.effect(self.name).await
    }
    fn is_not_known(&self, failure: &Failure) -> bool {
        failure.code == Code::RestoreUnfinished
    }
}

pub fn made(name: &'static str) -> Step<World> {
    super::step::make(Toy { name, tries: 1 })
}

pub fn made_in(name: &'static str, tries: u32) -> Step<World> {
    super::step::make(Toy { name, tries })
}

pub fn held(name: &'static str, inner: Vec<Step<World>>) -> Step<World> {
    super::step::within(Toy { name, tries: 1 }, inner)
}

pub fn committed(name: &'static str) -> Step<World> {
    super::step::commit(Toy { name, tries: 1 })
}

/// A saga in the form of a backup.
pub fn backup() -> Vec<Step<World>> {
    vec![held(
        "mount",
        vec![held(
            "lease",
            vec![
                made_in("staging", 3),
                held("freeze", vec![made("begin")]),
                made("copy"),
                committed("publish"),
                made("forget-previous"),
            ],
        )],
    )]
}

/// Any tree of steps, as a case for the harness. Made things are to be there in the end, held ones are not.
pub struct Tree<F: Fn() -> Vec<Step<World>> + Sync>(pub F, pub Vec<(&'static str, Quirk)>);

#[async_trait]
impl<F: Fn() -> Vec<Step<World>> + Sync> Case for Tree<F> {
    type Context = World;
    async fn begin(&self) -> World {
        World::with(self.1.clone()).0
    }
    fn steps(&self) -> Vec<Step<World>> {
        self.0()
    }
    async fn reopen(&self, crashed: World) -> World {
        World { there: crashed.there, ..self.begin().await }
    }
    async fn stains(&self, world: &mut World) -> Vec<String> {
        world.there.iter().cloned().collect()
    }
    async fn shortcomings(&self, world: &mut World) -> Vec<String> {
        let mut wanted = BTreeSet::new();
        lasting(&self.0(), &mut wanted);
        wanted.symmetric_difference(&world.there).cloned().collect()
    }
}

fn lasting(steps: &[Step<World>], names: &mut BTreeSet<String>) {
    for step in steps {
        match step {
            Step::Make(step) => drop(names.insert(step.name().to_owned())),
            Step::Commit(step) => drop(names.insert(step.name().to_owned())),
            Step::Within(_, inner) => lasting(inner, names),
        }
    }
}
