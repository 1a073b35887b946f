//! The calls themselves, as they run on call threads: libvirt's answers to our questions about one domain or the host.

use std::time::Duration;

use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

use super::super::{GuestInfo, InstanceSummary, NewCheckpoint, PullBackup, PushBackup, Version, Versions};
use super::calls::Caller;
use super::pools::HostPools;
use super::{agent, errors, jobs, parse, raw, render, stats};
use crate::failure::{Code, Failure};
use crate::model::id::{InstanceId, InstanceRef};
use crate::model::instance::{Instance, PowerState};

/// How often something is sent where libvirt cannot read its own schema.
const SENDS_MAX: u32 = 4;

/// Pause before the next one: what another thread needs to read it.
const SCHEMA_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn look_up(connect: &Connect, instance: &InstanceRef) -> Result<Domain, Failure> {
    let found = match instance {
        InstanceRef::Id(id) => connect.lookup_domain_by_uuid(id.0),
        InstanceRef::Name(name) => connect.lookup_domain_by_name(name.as_str()),
    };
    found.map_err(|error| errors::failure(format!("cannot find instance `{instance}`"), &error))
}

pub(super) fn guest_info(domain: &Domain, timeout: Duration) -> Result<GuestInfo, Failure> {
    set_agent_timeout(domain, timeout)?;
    let values = raw::guest_info(domain);
    restore_agent_timeout(domain);
    let tried = "cannot ask the agent about the guest";
    values.map(agent::guest_info).map_err(|error| errors::agent_failure(tried, &error, Code::AgentSilent))
}

pub(super) fn freeze(domain: &Domain, timeout: Duration, caller: &Caller<'_>) -> Result<u32, Failure> {
    set_agent_timeout(domain, timeout)?;
    caller.still_waits()?;
    raw::freeze(domain).map_err(|error| errors::agent_failure("cannot freeze the guest", &error, Code::FreezeFailed))
}

/// Thaws also where the timeout could not be set: the call is bounded by its own deadline, and the guest waits. A thaw that
/// nobody waits for any more is not sent, since by then it could thaw another backup's freeze.
pub(super) fn thaw(domain: &Domain, timeout: Duration, caller: &Caller<'_>) -> Result<u32, Failure> {
    if let Err(failure) = set_agent_timeout(domain, timeout) {
        tracing::warn!("thawing with whatever timeout is set: {failure:#}");
    }
    caller.still_waits()?;
    let thawed = raw::thaw(domain);
    restore_agent_timeout(domain);
    thawed.map_err(|error| errors::agent_failure("cannot thaw the guest", &error, Code::AgentSilent))
}

pub(super) fn begin_pull(domain: &Domain, backup: &PullBackup, caller: &Caller<'_>) -> Result<(), Failure> {
    let targets = targets_if_idle(domain)?;
    let job = render::pull(backup, &targets)?;
    let checkpoint = backup.checkpoint.as_ref().map(|checkpoint| render::checkpoint(checkpoint, &targets));
    caller.still_waits()?;
    despite_its_schema(|| raw::backup_begin(domain, &job, checkpoint.as_deref(), 0))
        .map_err(|error| not_begun(domain, "cannot begin a pull backup", &error))
}

pub(super) fn begin_push(domain: &Domain, backup: &PushBackup, caller: &Caller<'_>) -> Result<(), Failure> {
    let targets = targets_if_idle(domain)?;
    let job = render::push(backup, &targets)?;
    let checkpoint = backup.checkpoint.as_ref().map(|checkpoint| render::checkpoint(checkpoint, &targets));
    caller.still_waits()?;
    let flags = sys::VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL;
    despite_its_schema(|| raw::backup_begin(domain, &job, checkpoint.as_deref(), flags))
        .map_err(|error| not_begun(domain, "cannot begin a push backup", &error))
}

/// Where libvirt stumbles over its own schema nothing has come of what it was sent, and a guest may be frozen for it: it is sent again
/// at once.
pub(super) fn despite_its_schema(send: impl Fn() -> Result<(), virt::error::Error>) -> Result<(), virt::error::Error> {
    for _ in 1..SENDS_MAX {
        match send() {
            Err(error) if errors::is_unread_schema(&error) => std::thread::sleep(SCHEMA_PAUSE),
            sent => return sent,
        }
    }
    send()
}

/// For a domain that doesn't run libvirt answers with the number for "not supported".
fn not_begun(domain: &Domain, tried: &str, error: &virt::error::Error) -> Failure {
    let failure = errors::failure(tried, error);
    let stopped = failure.code == Code::HypervisorFailed && matches!(domain.is_active(), Ok(false));
    if stopped { Failure { code: Code::InstanceStateUnsupported, ..failure } } else { failure }
}

pub(super) fn resume(domain: &Domain, caller: &Caller<'_>) -> Result<(), Failure> {
    if power_state(domain)? == PowerState::Running {
        return Ok(());
    }
    caller.still_waits()?;
    domain.resume().map(drop).map_err(|error| errors::failure("cannot let the domain run again", &error))
}

pub(super) fn checkpoints(domain: &Domain) -> Result<Vec<String>, Failure> {
    raw::checkpoint_names(domain).map_err(|error| errors::failure("cannot list the checkpoints", &error))
}

pub(super) fn versions(connect: &Connect) -> Result<Versions, Failure> {
    let failed = |error: virt::error::Error| errors::failure("cannot ask libvirt for its versions", &error);
    Ok(Versions {
        libvirt: Version::from_number(connect.lib_version().map_err(failed)?),
        qemu: Version::from_number(connect.hyp_version().map_err(failed)?),
    })
}

pub(super) fn memory_bytes(connect: &Connect) -> Result<u64, Failure> {
    let failed = |error: virt::error::Error| errors::failure("cannot ask libvirt for the host's memory", &error);
    Ok(connect.node_info().map_err(failed)?.memory.saturating_mul(1024))
}

pub(super) fn instances(connect: &Connect) -> Result<Vec<InstanceSummary>, Failure> {
    let failed = |error: virt::error::Error| errors::failure("cannot list the instances", &error);
    let mut summaries = Vec::new();
    for domain in connect.list_all_domains(0).map_err(failed)? {
        // One that is undefined meanwhile, or whose name no job could carry, doesn't hide the others.
        let (Ok(id), Ok(name), Ok(state)) = (domain.uuid(), domain.name(), power_state(&domain)) else { continue };
        let Ok(name) = name.try_into() else { continue };
        summaries.push(InstanceSummary { id: InstanceId(id), name, state });
    }
    Ok(summaries)
}

/// The sizes cost questions to QEMU, which for a domain whose storage is dead never come back.
pub(super) fn describe(domain: &Domain, with_sizes: bool) -> Result<Instance, Failure> {
    let state = power_state(domain)?;
    let live = description(domain, 0)?;
    // Neither has security information, which libvirt only gives when asked with VIR_DOMAIN_XML_SECURE.
    let definition = description(domain, sys::VIR_DOMAIN_XML_INACTIVE)?;
    let connect = connection(domain)?;
    let pools = HostPools::of(&connect);
    let mut instance = parse::instance(&live, definition, state, has_saved_memory(domain, state)?, &pools)?;
    let failed = |error: virt::error::Error| errors::failure("cannot ask whether the domain has a definition", &error);
    instance.transient = !domain.is_persistent().map_err(failed)?;
    if with_sizes {
        stats::measure(domain, state, &mut instance.disks, &parse::file_chains(&live, &pools)?);
    }
    Ok(instance)
}

/// The connection that a domain was found through.
pub(super) fn connection(domain: &Domain) -> Result<Connect, Failure> {
    domain.connect().map_err(|error| errors::failure("cannot ask for the domain's connection", &error))
}

pub(super) fn description(domain: &Domain, flags: sys::virDomainXMLFlags) -> Result<String, Failure> {
    domain.xml_desc(flags).map_err(|error| errors::failure("cannot read the domain's description", &error))
}

pub(super) fn power_state(domain: &Domain) -> Result<PowerState, Failure> {
    let (state, reason) = raw::state(domain).map_err(|error| errors::failure("cannot ask for the state", &error))?;
    Ok(match state {
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED => PowerState::Running,
        sys::VIR_DOMAIN_PAUSED if reason == sys::VIR_DOMAIN_PAUSED_IOERROR as i32 => PowerState::PausedByIoError,
        sys::VIR_DOMAIN_PAUSED => PowerState::Paused,
        sys::VIR_DOMAIN_SHUTDOWN => PowerState::ShuttingDown,
        sys::VIR_DOMAIN_SHUTOFF => PowerState::ShutOff,
        _ => PowerState::Other,
    })
}

/// Only what is shut off is started, and resumes then what was saved.
pub(super) fn has_saved_memory(domain: &Domain, state: PowerState) -> Result<bool, Failure> {
    if state != PowerState::ShutOff {
        return Ok(false);
    }
    domain.has_managed_save(0).map_err(|error| errors::failure("cannot ask whether its memory is saved", &error))
}

pub(super) fn ask_agent(domain: &Domain, question: &str, timeout: Duration) -> Result<String, Failure> {
    domain
        .qemu_agent_command(question, whole_seconds(timeout), 0)
        .map_err(|error| errors::agent_failure("the agent gave no answer", &error, Code::AgentSilent))
}

fn set_agent_timeout(domain: &Domain, timeout: Duration) -> Result<(), Failure> {
    raw::set_agent_response_timeout(domain, whole_seconds(timeout))
        .map_err(|error| errors::agent_failure("cannot set the agent's response timeout", &error, Code::AgentSilent))
}

/// Back to what libvirt starts a domain with, since the value before cannot be read: it waits for ever.
fn restore_agent_timeout(domain: &Domain) {
    if let Err(error) = raw::set_agent_response_timeout(domain, sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK) {
        tracing::warn!(%error, "cannot set the agent's response timeout back");
    }
}

fn whole_seconds(timeout: Duration) -> i32 {
    let up = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
    i32::try_from(up.max(1)).unwrap_or(i32::MAX)
}

/// The domain's disk targets, or `instance_busy` where libvirt would wait 30 s for the job that is there.
fn targets_if_idle(domain: &Domain) -> Result<Vec<String>, Failure> {
    if let Some(job) = jobs::domain_job(domain)? {
        return Err(Failure::new(Code::InstanceBusy, "the domain has another job").caused_by(format!("{job:?}")));
    }
    parse::targets(&description(domain, 0)?)
}

pub(super) fn redefine_checkpoint(domain: &Domain, checkpoint: &NewCheckpoint, made_at: i64) -> Result<(), Failure> {
    let targets = parse::targets(&description(domain, 0)?)?;
    let xml = render::known_checkpoint(checkpoint, made_at, &targets);
    // Asked to validate, libvirt looks for the bitmaps, which it can only where QEMU runs.
    let flags = sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE;
    raw::create_checkpoint(domain, &xml, flags)
        .map_err(|error| errors::failure(format!("cannot make checkpoint `{}` known again", checkpoint.name), &error))
}

pub(super) fn delete_checkpoint(domain: &Domain, name: &str) -> Result<(), Failure> {
    let tried = || format!("cannot delete checkpoint `{name}`");
    let Err(error) = raw::delete_checkpoint(domain, name, 0) else { return Ok(()) };
    if errors::is_no_checkpoint(&error) {
        return Ok(());
    }
    if matches!(power_state(domain)?, PowerState::ShutOff | PowerState::Other) {
        let text = format!("{}: the domain does not run", tried());
        return Err(Failure::new(Code::InstanceStateUnsupported, text));
    }
    if errors::code(error.code().to_raw(), error.domain().to_raw()) != Code::HypervisorFailed {
        return Err(errors::failure(tried(), &error));
    }
    // A bitmap of it is gone, with a volume that was put back or an unclean end of QEMU, and libvirt then deletes none. So each is made
    // a checkpoint of its own: those that are there are found, and deleted.
    let targets = parse::targets(&description(domain, 0)?)?;
    forget_checkpoint(domain, name)?;
    for target in targets.iter().filter_map(|target| target.parse().ok()) {
        let alone = NewCheckpoint { name: name.to_owned(), disks: vec![target] };
        if redefine_checkpoint(domain, &alone, 0).is_ok() {
            raw::delete_checkpoint(domain, name, 0).map_err(|error| errors::failure(tried(), &error))?;
        }
    }
    Ok(())
}

pub(super) fn forget_checkpoint(domain: &Domain, name: &str) -> Result<(), Failure> {
    match raw::delete_checkpoint(domain, name, sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY) {
        Err(error) if !errors::is_no_checkpoint(&error) => {
            Err(errors::failure(format!("cannot forget checkpoint `{name}`"), &error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
