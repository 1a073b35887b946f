//! The staging directory, and the records in it that are not images.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use super::super::context::Context;
use crate::failure::{Code, Failure};
use crate::host::hypervisor::GuestInfo;
use crate::job::steps::{AGAIN_SECONDS_MAX, again};
use crate::model::instance::PowerState;
use crate::model::manifest::Manifest;
use crate::mover::protocol::{Reply, Request};
use crate::saga::step::{Make, Named};

/// Longest time for making the staging directory.
const STAGE_SECONDS_MAX: u64 = 60;

/// Longest time for removing it with what is in it.
const DISCARD_SECONDS_MAX: u64 = 120;

/// Longest time for writing one record.
const RECORD_SECONDS_MAX: u64 = 60;

/// Longest time for gathering and writing the records.
const RECORDS_SECONDS_MAX: u64 = 120;

/// Longest time for the agent to say what it knows of the guest.
const GUEST_INFO_SECONDS_MAX: u64 = 20;

/// Largest firmware variable store that is recorded, bytes; a frame to the mover has room for no more.
const NVRAM_BYTES_MAX: u64 = 15 * 1024 * 1024;

/// Names of the records.
const DEFINITION_FILE: &str = "domain.xml";
const LIVE_DEFINITION_FILE: &str = "domain-live.xml";
const NVRAM_FILE: &str = "nvram";
const AGENT_FILE: &str = "agent.json";

/// The staging directory; with it goes everything in it.
pub(in super::super) struct Staging;

impl Named for Staging {
    fn name(&self) -> &'static str {
        "staging"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(STAGE_SECONDS_MAX)
    }

    fn way_back_deadline(&self) -> Duration {
        Duration::from_secs(AGAIN_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Staging {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        match stage(context).await {
            Err(failure) if failure.code == Code::BackupExists => {
                context.published = find(context).await;
                Err(failure)
            }
            result => result.map(|()| Value::Null),
        }
    }

    async fn undo(&self, context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        match stage_again(context).await {
            // Whoever has the lease now has removed the directory; or this attempt's backup has become another's, which
            // a directory is never made for.
            Err(failure) if matches!(failure.code, Code::LeaseHeld | Code::LeaseLost | Code::BackupExists) => {
                return Ok(());
            }
            result => result?,
        }
        context.common.session.ask_patiently(Request::Discard, Duration::from_secs(DISCARD_SECONDS_MAX)).await.map(drop)
    }
}

/// The backup that an earlier attempt of this run has published without hearing so; none where it is somebody else's, or
/// can't be read.
async fn find(context: &mut Context) -> Option<Manifest> {
    let (instance, backup) = (context.plan.instance_id, context.plan.backup_id);
    let request = Request::Find { instance, backup };
    match context.common.session.ask(request, Duration::from_secs(STAGE_SECONDS_MAX)).await {
        Ok(Reply::Found { manifest }) => {
            let key = &context.plan.key;
            (manifest.job_id == key.job_id && manifest.run == key.run).then_some(*manifest)
        }
        Ok(_) => None,
        Err(failure) => {
            tracing::warn!(failure = format!("{failure:#}"), "cannot read the backup that is published already");
            None
        }
    }
}

async fn stage(context: &mut Context) -> Result<(), Failure> {
    let (instance, backup) = (context.plan.instance_id, context.plan.backup_id);
    let suffix = context.plan.staging_suffix.clone();
    let request = Request::Stage { instance, backup, suffix };
    context.common.session.ask(request, Duration::from_secs(STAGE_SECONDS_MAX)).await.map(drop)
}

/// A mover removes what it has staged itself, so another one stages it first: that removes what was there.
async fn stage_again(context: &mut Context) -> Result<(), Failure> {
    if context.common.session.has("stage") {
        return Ok(());
    }
    again(&mut context.common).await?;
    stage(context).await
}

/// The definition, the firmware's variables and what the agent says. Gone with the staging directory.
pub(in super::super) struct Records;

impl Named for Records {
    fn name(&self) -> &'static str {
        "records"
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(RECORDS_SECONDS_MAX)
    }
}

#[async_trait]
impl Make<Context> for Records {
    async fn make(&self, context: &mut Context) -> Result<Value, Failure> {
        let instance = context.facts()?.instance.clone();
        record(context, DEFINITION_FILE, instance.definition.clone().into_bytes()).await?;
        if let Some(live) = &instance.live_definition {
            record(context, LIVE_DEFINITION_FILE, live.clone().into_bytes()).await?;
            context.common.warnings.push(format!(
                "the instance runs with other disks than its definition `{DEFINITION_FILE}` has: what it ran with is in \
                 `{LIVE_DEFINITION_FILE}`"
            ));
        }
        context.common.warnings.extend(instance.unrecorded);
        if let Some(nvram) = &instance.nvram {
            match read_nvram(nvram).await? {
                Some(variables) => record(context, NVRAM_FILE, variables).await?,
                None => context
                    .common
                    .warnings
                    .push(format!("the firmware's variables `{}` are not there", nvram.display())),
            }
        }
        let heard = if instance.state != PowerState::Running {
            Err("the instance was not running".to_owned())
        } else if !instance.agent_configured {
            Err("the instance has no guest agent configured".to_owned())
        } else {
            let limit = Duration::from_secs(GUEST_INFO_SECONDS_MAX);
            let heard = context.common.doors.hypervisor.guest_info(instance.id, limit).await;
            context.file_systems = Some(heard.as_ref().map(|info| info.file_systems.clone()).map_err(Failure::clone));
            heard.map_err(|failure| format!("{failure:#}"))
        };
        record(context, AGENT_FILE, agent_record(&heard)?).await?;
        Ok(Value::Null)
    }

    async fn undo(&self, _context: &mut Context, _made: Option<&Value>) -> Result<(), Failure> {
        Ok(())
    }
}

async fn record(context: &mut Context, file: &str, content: Vec<u8>) -> Result<(), Failure> {
    let request = Request::Record { file: file.to_owned(), content };
    context.common.session.ask(request, Duration::from_secs(RECORD_SECONDS_MAX)).await.map(drop)
}

fn agent_record(heard: &Result<GuestInfo, String>) -> Result<Vec<u8>, Failure> {
    let asked_at = Timestamp::now();
    let record = match heard {
        Ok(GuestInfo { facts, file_systems }) => {
            json!({ "asked_at": asked_at, "answered": true, "facts": facts, "file_systems": file_systems })
        }
        Err(reason) => json!({ "asked_at": asked_at, "answered": false, "reason": reason }),
    };
    serde_json::to_vec_pretty(&record)
        .map_err(|error| Failure::new(Code::Internal, "cannot write down what the guest agent said").because(&error))
}

/// libvirt keeps variable stores on the host itself, and makes one from its template when it is missing at the instance's
/// start, so a missing one is nothing that a restore would miss.
async fn read_nvram(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        Failure::new(Code::HostIo, format!("cannot read the firmware's variables `{}`", path.display())).because(error)
    };
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut content = Vec::new();
    let read = file.take(NVRAM_BYTES_MAX + 1).read_to_end(&mut content).await.map_err(|error| failed(&error))?;
    if read as u64 > NVRAM_BYTES_MAX {
        let text = format!("the firmware's variables `{}` have more than {NVRAM_BYTES_MAX} bytes", path.display());
        return Err(Failure::new(Code::DiskUnsupported, text));
    }
    Ok(Some(content))
}
