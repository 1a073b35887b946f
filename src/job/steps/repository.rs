//! Holding the mover, the repository and the instance's lease in it, and bringing a second mover to where the first one was.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::failure::{Code, Failure};
use crate::job::common::{Common, JobContext};
use crate::mover::protocol::{LeaseHolder, Reply, Request};
use crate::saga::step::{Held, Hold, Named};

/// Longest time for starting or stopping a mover.
const MOVER_SECONDS_MAX: u64 = 30;

/// Longest time for mounting and probing the repository.
const OPEN_SECONDS_MAX: u64 = 120;

/// Longest time for unmounting it. Past it the mover is killed, which unmounts too: the mount is in its own namespace.
const CLOSE_SECONDS_MAX: u64 = 60;

/// Longest time for giving the lease back.
const RELEASE_SECONDS_MAX: u64 = 60;

/// Longest time for taking the lease: that of a dead holder on another host is watched for two minutes, at worst for six.
const LEASE_SECONDS_MAX: u64 = 480;

/// Longest time for a way back that may need another mover, the repository and the lease for it.
pub(in crate::job) const AGAIN_SECONDS_MAX: u64 = MOVER_SECONDS_MAX + OPEN_SECONDS_MAX + LEASE_SECONDS_MAX + 60;

/// The mover process.
pub(in crate::job) struct MoverProcess;

impl Named for MoverProcess {
    fn name(&self) -> &'static str {
        "mover"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(MOVER_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::MoverUnresponsive
    }
}

#[async_trait]
impl<C: JobContext> Hold<C> for MoverProcess {
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure> {
        let common = context.common();
        start_mover(common).await?;
        Ok(Held { value: Value::Null, lost: None })
    }

    async fn release(&self, context: &mut C, _held: Option<&Value>) -> Result<(), Failure> {
        let common = context.common();
        let (own, aside) = (common.session.stop().await, common.aside.stop().await);
        own.and(aside)
    }
}

async fn start_mover(common: &mut Common) -> Result<(), Failure> {
    let name = common.mover_name()?;
    common.session.start(common.doors.movers.as_ref(), &name).await
}

/// The repository, mounted and proven to be the one that the job means.
pub(in crate::job) struct OpenRepository;

impl Named for OpenRepository {
    fn name(&self) -> &'static str {
        "repository"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(OPEN_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(CLOSE_SECONDS_MAX + 30)
    }

    fn deadline_code(&self) -> Code {
        Code::MountTimedOut
    }
}

#[async_trait]
impl<C: JobContext> Hold<C> for OpenRepository {
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure> {
        let common = context.common();
        common.free_bytes = open(common, common.wants.need_bytes).await?;
        Ok(Held { value: Value::Null, lost: None })
    }

    /// A mount is in its mover's own namespace and goes with it: where there is no mover, or one that does not answer and will
    /// be killed, nothing else is to be done.
    async fn release(&self, context: &mut C, _held: Option<&Value>) -> Result<(), Failure> {
        let common = context.common();
        if !common.session.has("open") {
            return Ok(());
        }
        close(common).await
    }
}

/// The repository, mounted and proven to be the one that the job means, to be looked at: it may be one that can't be written to.
pub(in crate::job) struct OpenToLook;

impl Named for OpenToLook {
    fn name(&self) -> &'static str {
        OpenRepository.name()
    }

    fn deadline(&self) -> Duration {
        OpenRepository.deadline()
    }

    fn way_back_deadline(&self) -> Duration {
        OpenRepository.way_back_deadline()
    }

    fn deadline_code(&self) -> Code {
        OpenRepository.deadline_code()
    }
}

#[async_trait]
impl<C: JobContext> Hold<C> for OpenToLook {
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure> {
        let common = context.common();
        let (repository, same_device_ok) = (common.job.repository.clone(), common.settings.same_device_ok);
        let limit = Duration::from_secs(OPEN_SECONDS_MAX);
        match common.session.ask(Request::OpenToLook { repository, same_device_ok }, limit).await? {
            Reply::Done => Ok(Held { value: Value::Null, lost: None }),
            other => Err(unexpected("open_to_look", &other)),
        }
    }

    async fn release(&self, context: &mut C, _held: Option<&Value>) -> Result<(), Failure> {
        let common = context.common();
        if !common.session.has("open_to_look") {
            return Ok(());
        }
        close(common).await
    }
}

async fn close(common: &mut Common) -> Result<(), Failure> {
    match common.session.ask(Request::Close, Duration::from_secs(CLOSE_SECONDS_MAX)).await {
        Ok(Reply::Closed { warnings }) => {
            let warnings =
                warnings.into_iter().map(|text| Failure::new(Code::RepositoryIo, text).in_step("repository"));
            common.late_warnings.extend(warnings);
            Ok(())
        }
        Ok(other) => Err(unexpected("close", &other)),
        Err(gone) if matches!(gone.code, Code::MoverDied | Code::MoverUnresponsive) => {
            common.late_warnings.push(gone.in_step("repository"));
            Ok(())
        }
        Err(failure) => Err(failure),
    }
}

/// Answers the free bytes of the repository.
async fn open(common: &mut Common, need_bytes: u64) -> Result<u64, Failure> {
    let repository = common.job.repository.clone();
    let writer = common.wants.writer;
    let same_device_ok = common.settings.same_device_ok;
    let limit = Duration::from_secs(OPEN_SECONDS_MAX);
    match common.session.ask(Request::Open { repository, same_device_ok, need_bytes, writer }, limit).await? {
        Reply::Opened { warnings, free_bytes } => {
            common.warnings.extend(warnings);
            Ok(free_bytes)
        }
        other => Err(unexpected("open", &other)),
    }
}

/// The instance's lease. Its loss cancels whatever is done under it.
pub(in crate::job) struct Lease;

impl Named for Lease {
    fn name(&self) -> &'static str {
        "lease"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(LEASE_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(AGAIN_SECONDS_MAX)
    }

    fn deadline_code(&self) -> Code {
        Code::LeaseHeld
    }
}

#[async_trait]
impl<C: JobContext> Hold<C> for Lease {
    async fn acquire(&self, context: &mut C) -> Result<Held, Failure> {
        let common = context.common();
        let number = lease(common).await?;
        Ok(Held { value: json!({ "number": number }), lost: common.session.lost() })
    }

    /// Where the mover that held it died, the lease is ours only by its name: it is waited out, taken over and given back, so
    /// that nobody else has to wait for it.
    async fn release(&self, context: &mut C, _held: Option<&Value>) -> Result<(), Failure> {
        let common = context.common();
        if !common.session.is_alive() {
            match again(common).await {
                // Somebody else has it by now, so it is no longer ours to give.
                Err(failure) if failure.code == Code::LeaseHeld => return Ok(()),
                result => result?,
            }
        }
        common.session.ask_patiently(Request::Release, Duration::from_secs(RELEASE_SECONDS_MAX)).await.map(drop)
    }
}

/// What this job writes into the leases that it takes.
pub(in crate::job) fn lease_holder(common: &Common) -> LeaseHolder {
    LeaseHolder {
        host: common.settings.host.clone(),
        installation: common.settings.installation,
        job: common.job.key.to_string(),
    }
}

async fn lease(common: &mut Common) -> Result<u64, Failure> {
    let wanted = common.wants.instance;
    let instance = wanted.ok_or_else(|| Failure::new(Code::Internal, "a lease was to be taken, but of no instance"))?;
    let request = Request::Lease { instance, holder: lease_holder(common) };
    match common.session.ask(request, Duration::from_secs(LEASE_SECONDS_MAX)).await? {
        Reply::Leased { number } => Ok(number),
        other => Err(unexpected("lease", &other)),
    }
}

/// Brings a mover to where it holds the lease, for a way back or to look at what was published. One that died, or belonged to
/// a worker that died, is replaced; taking the lease over fences and removes what the dead one may still be writing.
pub(in crate::job) async fn again(common: &mut Common) -> Result<(), Failure> {
    if !common.session.is_alive() {
        common.session.stop().await?;
        start_mover(common).await?;
    }
    if !common.session.has("open") {
        open(common, 0).await?;
    }
    if !common.session.has("lease") {
        lease(common).await?;
    }
    Ok(())
}

/// The mover answered something else than was asked.
pub(in crate::job) fn unexpected(asked: &str, reply: &Reply) -> Failure {
    Failure::new(Code::Internal, format!("the mover answered `{asked}` with something else"))
        .caused_by(format!("{reply:?}"))
}
