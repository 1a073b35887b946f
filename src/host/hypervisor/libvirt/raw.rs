//! The libvirt calls that the `virt` crate doesn't have, or has with a trap: the only unsafe code of this door.
//!
//! Every function here does one C call, takes what it needs out of C memory, frees that, and knows nothing else. `virt`
//! 0.5.0 ignores the result of `virDomainGetState`, `virDomainGetBlockInfo` and `virDomainGetJobStats` and then reads
//! what was never written, so those are here as well.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

use nix::libc;
use secrecy::zeroize::{Zeroize, Zeroizing};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt_sys as sys;

/// A value of libvirt's typed parameters, as far as this door reads them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Text(String),
    Truth(bool),
    /// A type that nobody here reads.
    Other,
}

/// Named values, in libvirt's order.
pub(super) type Values = Vec<(String, Value)>;

/// Something that libvirt told by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Lifecycle(Uuid),
    BlockJob { domain: Uuid, target: String, status: u32 },
}

/// Who is told. Called on the thread of the event loop, so it must not block.
pub(super) type Listener = Arc<dyn Fn(Signal) + Send + Sync>;

fn not_negative(answer: c_int) -> Result<u32, Error> {
    u32::try_from(answer).map_err(|_| Error::last_error())
}

/// State and reason, libvirt's numbers.
pub(super) fn state(domain: &Domain) -> Result<(u32, i32), Error> {
    let (mut state, mut reason): (c_int, c_int) = (0, 0);
    // SAFETY: the domain handle lives as long as `domain`; both outputs are valid for writes during the call.
    not_negative(unsafe { sys::virDomainGetState(domain.as_ptr(), &mut state, &mut reason, 0) })?;
    Ok((u32::try_from(state).unwrap_or(sys::VIR_DOMAIN_NOSTATE), reason))
}

/// Capacity and allocation of a disk, bytes.
pub(super) fn block_info(domain: &Domain, disk: &str) -> Result<(u64, u64), Error> {
    let disk = CString::new(disk)?;
    let mut info = sys::virDomainBlockInfo { capacity: 0, allocation: 0, physical: 0 };
    // SAFETY: the handle and the string outlive the call, which fills `info`.
    not_negative(unsafe { sys::virDomainGetBlockInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) })?;
    Ok((info.capacity, info.allocation))
}

/// Figures of the domain's disks, named `block.NUMBER.FIGURE`; none where the domain is gone.
pub(super) fn block_stats(domain: &Domain, flags: sys::virConnectGetAllDomainStatsFlags) -> Result<Values, Error> {
    // SAFETY: the handle is only lent, to a call that it outlives.
    let mut domains = [unsafe { domain.as_ptr() }, ptr::null_mut()];
    let mut records: *mut sys::virDomainStatsRecordPtr = ptr::null_mut();
    let asked = sys::VIR_DOMAIN_STATS_BLOCK;
    // SAFETY: the list ends with null, and it and its handle outlive the call; the list that comes back is ours to free.
    let count = not_negative(unsafe { sys::virDomainListGetStats(domains.as_mut_ptr(), asked, &mut records, flags) })?;
    let mut values = Values::new();
    // SAFETY: a call that succeeded left `count` records at `records`, each with its own parameters, until they are freed.
    unsafe {
        for index in 0..count as usize {
            let record = *records.add(index);
            values.extend(borrowed_values((*record).params, (*record).nparams));
        }
        if !records.is_null() {
            sys::virDomainStatsRecordListFree(records);
        }
    }
    Ok(values)
}

/// Whether a disk has a block job.
pub(super) fn has_block_job(domain: &Domain, disk: &str) -> Result<bool, Error> {
    let disk = CString::new(disk)?;
    let mut info = sys::virDomainBlockJobInfo { type_: 0, bandwidth: 0, cur: 0, end: 0 };
    // SAFETY: the handle and the string outlive the call, which fills `info`.
    let answer = unsafe { sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0) };
    Ok(not_negative(answer)? > 0)
}

/// Begins a backup job, with a checkpoint where one is described.
pub(super) fn backup_begin(
    domain: &Domain,
    backup: &str,
    checkpoint: Option<&str>,
    flags: sys::virDomainBackupBeginFlags,
) -> Result<(), Error> {
    let backup = CString::new(backup)?;
    let checkpoint = checkpoint.map(CString::new).transpose()?;
    let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |text| text.as_ptr());
    // SAFETY: the handle and both strings outlive the call; a null checkpoint is allowed.
    not_negative(unsafe { sys::virDomainBackupBegin(domain.as_ptr(), backup.as_ptr(), checkpoint, flags) })?;
    Ok(())
}

/// Defines a domain, checked against libvirt's schema.
pub(super) fn define(connect: &Connect, definition: &str) -> Result<(), Error> {
    let definition = CString::new(definition)?;
    // SAFETY: the handle and the string outlive the call; the domain that comes back is ours to free.
    unsafe {
        let domain =
            sys::virDomainDefineXMLFlags(connect.as_ptr(), definition.as_ptr(), sys::VIR_DOMAIN_DEFINE_VALIDATE);
        if domain.is_null() {
            return Err(Error::last_error());
        }
        sys::virDomainFree(domain);
    }
    Ok(())
}

/// The description of the backup job that the domain has now.
pub(super) fn backup_xml(domain: &Domain) -> Result<String, Error> {
    // SAFETY: the handle outlives the call; a string that comes back is ours.
    unsafe { owned_text(sys::virDomainBackupGetXMLDesc(domain.as_ptr(), 0)) }
}

/// Asks libvirt to end the domain's job. It may end some time after this returns.
pub(super) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: the handle outlives the call.
    not_negative(unsafe { sys::virDomainAbortJob(domain.as_ptr()) })?;
    Ok(())
}

/// Type and figures of the domain's job: of the one it has now, or of the latest one, as the flags say.
pub(super) fn job_stats(domain: &Domain, flags: sys::virDomainGetJobStatsFlags) -> Result<(u32, Values), Error> {
    let mut kind: c_int = 0;
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let mut count: c_int = 0;
    // SAFETY: the handle outlives the call; the array that comes back is ours to free.
    not_negative(unsafe { sys::virDomainGetJobStats(domain.as_ptr(), &mut kind, &mut params, &mut count, flags) })?;
    // SAFETY: a call that succeeded left `count` parameters at `params`.
    let values = unsafe { owned_values(params, count) };
    Ok((u32::try_from(kind).unwrap_or(sys::VIR_DOMAIN_JOB_NONE), values))
}

/// Freezes all file systems of the guest; how many.
pub(super) fn freeze(domain: &Domain) -> Result<u32, Error> {
    // SAFETY: the handle outlives the call; no mount points means all of them.
    not_negative(unsafe { sys::virDomainFSFreeze(domain.as_ptr(), ptr::null_mut(), 0, 0) })
}

/// Thaws all file systems of the guest; how many.
pub(super) fn thaw(domain: &Domain) -> Result<u32, Error> {
    // SAFETY: the handle outlives the call; no mount points means all of them.
    not_negative(unsafe { sys::virDomainFSThaw(domain.as_ptr(), ptr::null_mut(), 0, 0) })
}

/// Everything the agent can say about the guest.
pub(super) fn guest_info(domain: &Domain) -> Result<Values, Error> {
    let mut params: sys::virTypedParameterPtr = ptr::null_mut();
    let mut count: c_int = 0;
    // SAFETY: the handle outlives the call; type 0 asks for all that this agent knows, so that an old one is no error.
    not_negative(unsafe { sys::virDomainGetGuestInfo(domain.as_ptr(), 0, &mut params, &mut count, 0) })?;
    // SAFETY: a call that succeeded left `count` parameters at `params`.
    Ok(unsafe { owned_values(params, count) })
}

/// How long libvirt waits for the agent's answers to this domain, seconds, or one of libvirt's negative words.
pub(super) fn set_agent_response_timeout(domain: &Domain, seconds: i32) -> Result<(), Error> {
    // SAFETY: the handle outlives the call.
    not_negative(unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) })?;
    Ok(())
}

/// Names of the domain's checkpoints.
pub(super) fn checkpoint_names(domain: &Domain) -> Result<Vec<String>, Error> {
    let mut list: *mut sys::virDomainCheckpointPtr = ptr::null_mut();
    // SAFETY: the handle outlives the call; the array that comes back, and each handle in it, is ours to free.
    let count = not_negative(unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), &mut list, 0) })?;
    let mut names = Vec::new();
    for index in 0..count as usize {
        // SAFETY: the array has `count` handles; a name lives as long as its handle, and is copied before that is freed.
        unsafe {
            let checkpoint = *list.add(index);
            names.push(borrowed_text(sys::virDomainCheckpointGetName(checkpoint)));
            sys::virDomainCheckpointFree(checkpoint);
        }
    }
    // SAFETY: libvirt allocated the array with malloc; null is allowed.
    unsafe { libc::free(list.cast()) };
    Ok(names)
}

/// Makes a checkpoint, or makes one known that there was.
pub(super) fn create_checkpoint(
    domain: &Domain,
    description: &str,
    flags: sys::virDomainCheckpointCreateFlags,
) -> Result<(), Error> {
    let description = CString::new(description)?;
    // SAFETY: the handle and the string outlive the call.
    let checkpoint = unsafe { sys::virDomainCheckpointCreateXML(domain.as_ptr(), description.as_ptr(), flags) };
    if checkpoint.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: the call gave us a handle of our own.
    unsafe { sys::virDomainCheckpointFree(checkpoint) };
    Ok(())
}

/// Deletes a checkpoint by name.
pub(super) fn delete_checkpoint(
    domain: &Domain,
    name: &str,
    flags: sys::virDomainCheckpointDeleteFlags,
) -> Result<(), Error> {
    let name = CString::new(name)?;
    // SAFETY: the handle and the string outlive the call.
    let checkpoint = unsafe { sys::virDomainCheckpointLookupByName(domain.as_ptr(), name.as_ptr(), 0) };
    if checkpoint.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: the lookup gave us a handle of our own. The error is read before the handle is freed, since freeing resets it.
    unsafe {
        let outcome = not_negative(sys::virDomainCheckpointDelete(checkpoint, flags));
        sys::virDomainCheckpointFree(checkpoint);
        outcome.map(drop)
    }
}

/// What a secret holds, by its uuid.
pub(super) fn secret_by_uuid(connect: &Connect, uuid: Uuid) -> Result<Zeroizing<Vec<u8>>, Error> {
    // SAFETY: the handle outlives the call, and the uuid has libvirt's VIR_UUID_BUFLEN of 16 bytes; a handle that comes back is ours.
    unsafe { owned_secret(sys::virSecretLookupByUUID(connect.as_ptr(), uuid.as_bytes().as_ptr())) }
}

/// What a secret for Ceph holds, by the name of what it is used for.
pub(super) fn secret_of_ceph(connect: &Connect, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
    let name = CString::new(name)?;
    let kind = sys::VIR_SECRET_USAGE_TYPE_CEPH as c_int;
    // SAFETY: the handle and the string outlive the call; a handle that comes back is ours.
    unsafe { owned_secret(sys::virSecretLookupByUsage(connect.as_ptr(), kind, name.as_ptr())) }
}

/// # Safety
/// `secret` is null after an error, or a handle of ours.
unsafe fn owned_secret(secret: sys::virSecretPtr) -> Result<Zeroizing<Vec<u8>>, Error> {
    if secret.is_null() {
        return Err(Error::last_error());
    }
    let mut size = 0;
    // SAFETY: by the caller's word the handle is valid. The error is read before the handle is freed, since freeing resets it. What
    // comes back is `size` bytes that libvirt allocated with malloc, of which nothing is left in memory that is free.
    unsafe {
        let value = sys::virSecretGetValue(secret, &mut size, 0);
        let read = match value.is_null() {
            true => Err(Error::last_error()),
            false => {
                let bytes = std::slice::from_raw_parts_mut(value, size);
                let copy = Zeroizing::new(bytes.to_vec());
                bytes.zeroize();
                libc::free(value.cast());
                Ok(copy)
            }
        };
        sys::virSecretFree(secret);
        read
    }
}

/// Sends lifecycle and block job events of all domains to `listener`; answers libvirt's ids for [`unlisten`].
pub(super) fn listen(connection: &Connect, listener: &Listener) -> Result<Vec<c_int>, Error> {
    type Lifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
    type BlockJob =
        unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, c_int, c_int, *mut c_void);
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    // SAFETY: libvirt's interface wants every callback cast to the generic type, and casts it back by the event id, so
    // each is called with the arguments it was written for.
    let callbacks: [(sys::virDomainEventID, Generic); 2] = unsafe {
        [
            (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, std::mem::transmute::<Lifecycle, Generic>(on_lifecycle)),
            (sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, std::mem::transmute::<BlockJob, Generic>(on_block_job)),
        ]
    };
    let mut ids = Vec::new();
    for (event, callback) in callbacks {
        let opaque = Box::into_raw(Box::new(Arc::clone(listener))).cast::<c_void>();
        // SAFETY: the connection outlives the call; a null domain means all; `opaque` is freed by `forget_listener`, once.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connection.as_ptr(),
                ptr::null_mut(),
                event as c_int,
                Some(callback),
                opaque,
                Some(forget_listener),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: a registration that failed did not take `opaque` over.
            unsafe { forget_listener(opaque) };
            unlisten(connection, &ids);
            return Err(error);
        }
        ids.push(id);
    }
    Ok(ids)
}

/// Takes back what [`listen`] registered. On a connection that is gone only the local half of it happens.
pub(super) fn unlisten(connection: &Connect, ids: &[c_int]) {
    for id in ids {
        // SAFETY: the connection outlives the call; an id that is unknown by now is an error that changes nothing.
        unsafe { sys::virConnectDomainEventDeregisterAny(connection.as_ptr(), *id) };
    }
}

unsafe extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt calls back with the domain it is about and the listener that was registered.
    if let (Some(listener), Some(domain)) = unsafe { (opaque.cast::<Listener>().as_ref(), uuid(domain)) } {
        listener(Signal::Lifecycle(domain));
    }
    0
}

unsafe extern "C" fn on_block_job(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    target: *const c_char,
    _kind: c_int,
    status: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt calls back with the domain and disk it is about and the listener that was registered.
    unsafe {
        if let (Some(listener), Some(domain)) = (opaque.cast::<Listener>().as_ref(), uuid(domain)) {
            let status = c_uint::try_from(status).unwrap_or(sys::VIR_DOMAIN_BLOCK_JOB_FAILED);
            listener(Signal::BlockJob { domain, target: borrowed_text(target), status });
        }
    }
}

unsafe extern "C" fn forget_listener(opaque: *mut c_void) {
    // SAFETY: `opaque` came from `Box::into_raw` in `listen`, and libvirt gives it back once.
    drop(unsafe { Box::from_raw(opaque.cast::<Listener>()) });
}

/// # Safety
/// `domain` is a valid handle.
unsafe fn uuid(domain: sys::virDomainPtr) -> Option<Uuid> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the caller's handle is valid, and the buffer has libvirt's VIR_UUID_BUFLEN of 16 bytes.
    let answer = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    (answer == 0).then(|| Uuid::from_bytes(bytes))
}

/// # Safety
/// `text` is null or a C string.
unsafe fn borrowed_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, so by the caller's word a C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `text` is null after an error, or a C string that libvirt allocated for us.
unsafe fn owned_text(text: *mut c_char) -> Result<String, Error> {
    if text.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: by the caller's word a C string of ours, allocated with malloc, which nobody uses after this.
    unsafe {
        let copy = borrowed_text(text);
        libc::free(text.cast());
        Ok(copy)
    }
}

/// # Safety
/// `params` is null, or points to `count` parameters that libvirt allocated for us.
unsafe fn owned_values(params: sys::virTypedParameterPtr, count: c_int) -> Values {
    if params.is_null() {
        return Values::new();
    }
    // SAFETY: by the caller's word there are `count` of them, and nobody uses them after this.
    unsafe {
        let values = borrowed_values(params, count);
        sys::virTypedParamsFree(params, count);
        values
    }
}

/// # Safety
/// `params` is null, or points to `count` parameters that libvirt filled in.
unsafe fn borrowed_values(params: sys::virTypedParameterPtr, count: c_int) -> Values {
    if params.is_null() {
        return Values::new();
    }
    // SAFETY: by the caller's word there are `count` of them.
    unsafe {
        let slice = std::slice::from_raw_parts(params, usize::try_from(count).unwrap_or(0));
        slice.iter().map(|param| (borrowed_text(param.field.as_ptr()), value(param))).collect()
    }
}

/// # Safety
/// `param` was filled in by libvirt, so that its type says which member of the union is set.
unsafe fn value(param: &sys::virTypedParameter) -> Value {
    // SAFETY: by the caller's word each member is read only where the type says that it was written.
    unsafe {
        match c_uint::try_from(param.type_) {
            Ok(sys::VIR_TYPED_PARAM_INT) => Value::Signed(param.value.i.into()),
            Ok(sys::VIR_TYPED_PARAM_UINT) => Value::Unsigned(param.value.ui.into()),
            Ok(sys::VIR_TYPED_PARAM_LLONG) => Value::Signed(param.value.l),
            Ok(sys::VIR_TYPED_PARAM_ULLONG) => Value::Unsigned(param.value.ul),
            Ok(sys::VIR_TYPED_PARAM_STRING) => Value::Text(borrowed_text(param.value.s)),
            Ok(sys::VIR_TYPED_PARAM_BOOLEAN) => Value::Truth(param.value.b != 0),
            _ => Value::Other,
        }
    }
}
