//! What a restore adds to the host: an instance, or a disk of one. Each is looked for before it is added, since libvirt defines over what
//! has the same name and uuid, and again afterwards.
//!
//! Between the look and the definition somebody else may define one of that name and uuid, and libvirt has no call that would refuse it.
//! Two jobs of one worker cannot, as only one of them defines at a time; others have to have guessed a uuid that was drawn, or been given
//! the same one.

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

use super::super::definition::{self, Own};
use super::super::{Identity, NewDisk, NewInstance};
use super::calls::Caller;
use super::domain::{connection, description, despite_its_schema, has_saved_memory, power_state};
use super::pools::{HostPools, Place, Pools};
use super::{errors, parse, raw, render};
use crate::failure::{Code, Failure};
use crate::model::id::InstanceId;
use crate::model::instance::PowerState;

pub(super) fn identities(connect: &Connect) -> Result<Vec<Identity>, Failure> {
    let failed = |error: Error| errors::failure("cannot list the instances", &error);
    let (mut identities, pools) = (Vec::new(), HostPools::of(connect));
    for domain in connect.list_all_domains(0).map_err(failed)? {
        match identity(&domain, &pools) {
            Ok(identity) => identities.push(identity),
            // Undefined since it was listed.
            Err(failure) if failure.code == Code::InstanceNotHere => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(identities)
}

/// A file that cannot be told just now is a failure: a new one could be made in its place.
fn identity(domain: &Domain, pools: &dyn Pools) -> Result<Identity, Failure> {
    let failed = |error: Error| errors::failure("cannot ask an instance for its name", &error);
    let id = InstanceId(domain.uuid().map_err(failed)?);
    let name = domain.name().map_err(failed)?;
    let of_it = |failure: Failure| Failure { text: format!("{}, instance `{id}`", failure.text), ..failure };
    let next = own(domain, sys::VIR_DOMAIN_XML_INACTIVE).map_err(of_it)?;
    let now = own(domain, 0).map_err(of_it)?;
    let Own { mut mac_addresses, mut files, mut pool_volumes, restored_by } = next;
    mac_addresses.extend(now.mac_addresses);
    files.extend(now.files);
    pool_volumes.extend(now.pool_volumes);
    for volume in &pool_volumes {
        if let Some(Place::File(path) | Place::Device(path)) = pools.place(volume).map_err(of_it)? {
            files.insert(path);
        }
    }
    Ok(Identity { id, name, mac_addresses, files, restored_by })
}

fn own(domain: &Domain, flags: sys::virDomainXMLFlags) -> Result<Own, Failure> {
    definition::own(&description(domain, flags)?).map_err(|failure| Failure { code: Code::HypervisorFailed, ..failure })
}

/// To be called by one at a time.
pub(super) fn define(connect: &Connect, new: &NewInstance, caller: &Caller<'_>) -> Result<(), Failure> {
    if is_there(connect, new)? {
        return Ok(());
    }
    let tried = || format!("cannot define instance `{}`", new.name);
    caller.still_waits()?;
    match despite_its_schema(|| raw::define(connect, &new.definition)) {
        Ok(()) => match is_there(connect, new) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(Code::RestoreUnfinished, format!("instance `{}` is gone again", new.name))),
            // Somebody has defined over it.
            Err(failure) if failure.code == Code::InstanceExists => {
                Err(Failure { code: Code::RestoreUnfinished, ..failure })
            }
            Err(failure) => Err(failure),
        },
        // libvirt refuses what has one of the two; what came meanwhile with both would have been defined over.
        Err(error) => match is_there(connect, new)? {
            true => Ok(()),
            false => Err(errors::definition_failure(tried(), &error)),
        },
    }
}

/// `instance_exists`: another one is.
fn is_there(connect: &Connect, new: &NewInstance) -> Result<bool, Failure> {
    let found = [connect.lookup_domain_by_uuid(new.id.0), connect.lookup_domain_by_name(new.name.as_str())];
    let (mut there, pools) = (false, HostPools::of(connect));
    for found in found {
        let identity = match found {
            Ok(domain) => identity(&domain, &pools),
            Err(error) => Err(errors::failure(format!("cannot look for instance `{}`", new.name), &error)),
        };
        match identity {
            Ok(identity) if identity.is_that(new) => there = true,
            Ok(Identity { id, name, .. }) => {
                let text =
                    format!("instance `{}` cannot be defined: instance `{name}` with the uuid {id} is there", new.name);
                return Err(Failure::new(Code::InstanceExists, text));
            }
            Err(failure) if failure.code == Code::InstanceNotHere => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(there)
}

pub(super) fn start(domain: &Domain, caller: &Caller<'_>) -> Result<(), Failure> {
    match power_state(domain)? {
        PowerState::ShutOff => {}
        PowerState::Running => return Ok(()),
        other => {
            let text = format!("cannot start the domain: it is {other:?}");
            return Err(Failure::new(Code::InstanceStateUnsupported, text));
        }
    }
    caller.still_waits()?;
    domain.create().map(drop).map_err(|error| errors::failure("cannot start the domain", &error))
}

/// Where a disk is seen.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    now: bool,
    at_next_start: bool,
}

pub(super) fn attach(domain: &Domain, disk: &NewDisk, caller: &Caller<'_>) -> Result<(), Failure> {
    let state = power_state(domain)?;
    let runs = state != PowerState::ShutOff;
    match look(domain, disk)? {
        Seen { now: true, at_next_start: true } => return Ok(()),
        Seen { now: false, at_next_start: false } => {}
        _ => return Err(in_one_only(disk)),
    }
    if has_saved_memory(domain, state)? {
        let text =
            format!("disk `{}` cannot be attached: the next start would resume saved memory without it", disk.target);
        return Err(Failure::new(Code::InstanceStateUnsupported, text));
    }
    let mut flags = sys::VIR_DOMAIN_AFFECT_CONFIG;
    if runs {
        flags |= sys::VIR_DOMAIN_AFFECT_LIVE;
    }
    let xml = render::disk(disk)?;
    caller.still_waits()?;
    let sent = domain.attach_device_flags(&xml, flags);
    match (look(domain, disk)?, sent) {
        (Seen { now: true, at_next_start: true }, _) => Ok(()),
        (Seen { now: false, at_next_start: false }, Err(error)) => {
            Err(errors::definition_failure(format!("cannot attach disk `{}`", disk.target), &error))
        }
        (Seen { now: false, at_next_start: false }, Ok(())) => {
            let text = format!("libvirt says that disk `{}` is attached, and does not show it", disk.target);
            Err(Failure::new(Code::HypervisorFailed, text))
        }
        _ => Err(in_one_only(disk)),
    }
}

pub(super) fn is_attached(domain: &Domain, disk: &NewDisk) -> Result<bool, Failure> {
    match look(domain, disk)? {
        Seen { now: true, at_next_start: true } => Ok(true),
        Seen { now: false, at_next_start: false } => Ok(false),
        _ => Err(in_one_only(disk)),
    }
}

fn in_one_only(disk: &NewDisk) -> Failure {
    let text = format!("disk `{}` is either in the definition or in what runs, and not in both", disk.target);
    Failure::new(Code::RestoreUnfinished, text)
}

/// `disk_target_in_use`: another disk has its target or serial number.
fn look(domain: &Domain, disk: &NewDisk) -> Result<Seen, Failure> {
    let connect = connection(domain)?;
    let pools = HostPools::of(&connect);
    let is_in = |flags| disk.is_among(&parse::disks(&description(domain, flags)?, &pools)?);
    Ok(Seen { now: is_in(0)?, at_next_start: is_in(sys::VIR_DOMAIN_XML_INACTIVE)? })
}
