//! Sealing the staging directory and publishing it: the commit.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::time::sleep;

use super::super::context::Context;
use super::super::result::{BackupResult, manifest};
use crate::failure::{Code, Failure};
use crate::job::steps::{again, unexpected};
use crate::model::manifest::Manifest;
use crate::mover::protocol::{Reply, Request};
use crate::saga::step::{Commit, Make, Named};

/// Longest time for one try of publishing, including the lease's being taken over by another mover.
const PUBLISH_SECONDS_MAX: u64 = 900;

/// Longest time for sealing, which tells no progress, where the job's deadline is not sooner: the share may have to write a
/// great deal that it only holds in memory yet, and every image is checked.
const SEAL_SECONDS_MAX: u64 = 3600;

/// Pause before it is looked again whether the backup was published.
const LOOK_AGAIN_SECONDS: u64 = 5;

/// Checks the images, brings everything to stable storage and writes down what there is. Goes with the staging directory.
pub(in super::super) struct Seal {
    /// Longest time for the whole job.
    pub deadline: Duration,
}

impl Seal {
    /// The step's name, under which the manifest stands in the records.
    pub const NAME: &'static str = "seal";
}

impl Named for Seal {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn deadline(&self) -> Duration {
        self.deadline.min(Duration::from_secs(SEAL_SECONDS_MAX))
    }

    fn deadline_code(&self) -> Code {
        if self.deadline() < self.deadline { Code::Stalled } else { Code::DeadlineExceeded }
    }
}

#[async_trait]
impl Make<Context> for Seal {
    /// The value is the manifest, so that after a crash the commit can be recognised and reported.
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let files = match context.common.session.ask(Request::Seal, self.deadline()).await? {
            Reply::Sealed { files } => files,
            other => return Err(unexpected("seal", &other)),
        };
        let manifest = manifest(context, &files)?;
        let value = serde_json::to_value(&manifest)
            .map_err(|error| Failure::new(Code::Internal, "cannot write down the manifest").because(&error))?;
        context.manifest = Some(manifest);
        Ok(value)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Renames the staging directory into place.
pub(in super::super) struct Publish;

impl Named for Publish {
    fn name(&self) -> &'static str {
        "publish"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(PUBLISH_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::MoverUnresponsive
    }
}

#[async_trait]
impl Commit<Context> for Publish {
    /// Only an answer of the mover to this very question ends it. A mover that died may have published: another one takes the
    /// lease, which fences the dead one, and looks; as long as none can, it stays unknown, up to the engine's bound.
    async fn commit(&self, context: &mut Context) -> Result<Value, Failure> {
        let manifest = context.manifest.clone();
        let manifest =
            manifest.ok_or_else(|| Failure::new(Code::Internal, "nothing was sealed that could be published"))?;
        loop {
            let session = &context.common.session;
            let first_hand = session.answers() && session.has("stage");
            match publish(context, &manifest).await {
                Ok(Reply::Published { number, warnings }) => {
                    return BackupResult::new(manifest, number, warnings).to_value();
                }
                Ok(Reply::NotKnown { failure }) => {
                    tracing::warn!(
                        failure = format!("{failure:#}"),
                        "the share does not show whether the backup was published"
                    );
                }
                Ok(other) => return Err(unexpected("publish", &other)),
                Err(failure) if first_hand && !is_silence(&failure) => return Err(failure),
                Err(failure) if context.common.session.has("lease") && is_no(&failure) => {
                    let text = "the backup had not been published when its mover ended";
                    return Err(Failure::new(Code::MoverDied, text).because_of(&failure));
                }
                Err(failure) => {
                    tracing::warn!(
                        failure = format!("{failure:#}"),
                        "it can't be seen yet whether the backup was published"
                    );
                }
            }
            sleep(Duration::from_secs(LOOK_AGAIN_SECONDS)).await;
        }
    }
}

/// The mover that was asked to publish can't say what became of it.
fn is_silence(failure: &Failure) -> bool {
    matches!(failure.code, Code::MoverDied | Code::MoverUnresponsive)
}

/// A later mover says that the backup is not there: it has nothing staged that it could publish, so it only looked.
fn is_no(failure: &Failure) -> bool {
    matches!(failure.code, Code::Internal | Code::BackupNotFound | Code::BackupExists)
}

async fn publish(context: &mut Context, manifest: &Manifest) -> Result<Reply, Failure> {
    if !context.common.session.answers() {
        // One that is silent goes on being silent, to whatever it is asked.
        context.common.session.stop().await?;
    }
    if !context.common.session.has("stage") {
        again(&mut context.common).await?;
    }
    let request = Request::Publish { manifest: Box::new(manifest.clone()) };
    context.common.session.ask(request, Duration::from_secs(PUBLISH_SECONDS_MAX)).await
}
