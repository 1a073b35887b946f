//! The other devices of another instance: what two instances cannot share, and what would reach into the host.

use roxmltree::Node;

use super::Changes;
use super::edits::{attribute, child, children, text_of};

/// Devices that only one instance can have, and how a warning names each.
const ONE_INSTANCES: &[(&str, &str)] = &[
    ("hostdev", "a device of the host that is passed through"),
    ("lease", "a lease on a resource"),
    ("pstore", "a store of crash records, which is not in the backup"),
    ("filesystem", "a directory of the host"),
    ("redirdev", "a device that is redirected"),
    ("smartcard", "a smart card"),
    ("shmem", "memory that is shared with others"),
];

/// What a random number generator may read of the host.
pub(super) const RANDOM: [&str; 2] = ["/dev/urandom", "/dev/random"];

pub(super) fn change(devices: Node<'_, '_>, changes: &mut Changes) {
    for (name, what) in ONE_INSTANCES {
        for device in children(devices, name) {
            changes.remove(device, format!("{what} (`{name}`)"));
        }
    }
    for emulator in children(devices, "emulator") {
        // libvirt takes the host's own.
        changes.edits.remove(emulator);
        if !text_of(emulator).starts_with("/usr/") {
            let text = format!("the emulator `{}` was not taken over: it is the host's own", text_of(emulator));
            changes.warnings.push(text);
        }
    }
    let kind = |device: Node<'_, '_>, name: &str| attribute(device, name).unwrap_or_default().to_owned();
    for memory in children(devices, "memory") {
        let model = kind(memory, "model");
        if !matches!(model.as_str(), "dimm" | "virtio-mem") {
            changes.remove(memory, format!("memory of the model `{model}`, whose content is not in the backup,"));
        }
    }
    for input in children(devices, "input") {
        let kind = kind(input, "type");
        if !matches!(kind.as_str(), "mouse" | "tablet" | "keyboard") {
            changes.remove(input, format!("an input of the host (`{kind}`)"));
        }
    }
    for audio in children(devices, "audio") {
        let kind = kind(audio, "type");
        if !matches!(kind.as_str(), "none" | "spice") {
            changes.edits.set(audio, "type", "none");
            changes.warnings.push(format!("the audio backend `{kind}` of the host was not taken over"));
        }
    }
    for watchdog in children(devices, "watchdog") {
        // The guest could fill the host's disk with its own dumps.
        if attribute(watchdog, "action") == Some("dump") {
            changes.edits.set(watchdog, "action", "reset");
            changes.warnings.push("a watchdog resets the new instance, and does not dump its memory");
        }
    }
    children(devices, "tpm").for_each(|tpm| change_tpm(tpm, changes));
    children(devices, "rng").for_each(|rng| change_rng(rng, changes));
    for cid in children(devices, "vsock").filter_map(|vsock| child(vsock, "cid")) {
        if attribute(cid, "auto") != Some("yes") {
            changes.warnings.push("the new instance gets another address for its host's sockets (`vsock`)");
        }
        changes.edits.replace(cid, "<cid auto='yes'/>");
    }
}

fn change_tpm(tpm: Node<'_, '_>, changes: &mut Changes) {
    let emulated = |backend: Node<'_, '_>| attribute(backend, "type") == Some("emulator");
    match child(tpm, "backend").is_some() && children(tpm, "backend").all(emulated) {
        true => changes
            .warnings
            .push("the new instance has an empty TPM: what the guest has sealed with the old one stays sealed"),
        false => changes.remove(tpm, "a TPM of the host".to_owned()),
    }
}

fn change_rng(rng: Node<'_, '_>, changes: &mut Changes) {
    for backend in children(rng, "backend") {
        match (attribute(backend, "model"), text_of(backend)) {
            (Some("builtin"), _) | (Some("random"), "") => {}
            (Some("random"), source) if RANDOM.contains(&source) => drop(changes.granted.insert(source.to_owned())),
            (kind, source) => {
                let kind = kind.unwrap_or_default();
                changes.remove(rng, format!("a source of random numbers (`{kind}`, `{source}`)"));
            }
        }
    }
}
