//! The network interfaces of another instance.

use std::collections::BTreeSet;

use roxmltree::Node;

use super::edits::{attribute, child, children};
use super::{Another, Changes};
use crate::model::destination::MacAddresses;
use crate::model::id::InstanceId;

/// The vendor's half of QEMU's own MAC addresses.
const QEMUS: &str = "52:54:00";

/// Beginnings of names that libvirt gives to the host's side of an interface, and takes back.
const GIVEN: &[&str] = &["vnet", "macvtap", "macvlan", "vif"];

/// Types that several instances of a host can have; others are a device, a port or a socket of which there is one.
pub(super) const SHARED: &[&str] = &["bridge", "network", "direct", "ethernet", "user", "null"];

pub(super) fn change(devices: Node<'_, '_>, wanted: &Another<'_>, changes: &mut Changes) {
    let mut taken = wanted.taken.clone();
    for interface in children(devices, "interface") {
        let kind = attribute(interface, "type").unwrap_or_default();
        let sources = || children(interface, "source");
        if !SHARED.contains(&kind) {
            changes.remove(interface, format!("an interface that only one instance can have (`{kind}`)"));
            continue;
        }
        if sources().any(|source| attribute(source, "mode") == Some("passthrough")) {
            changes.remove(interface, "an interface that has a device of the host alone (`passthrough`)".to_owned());
            continue;
        }
        let Changes { edits, warnings, .. } = changes;
        // The port that the running one had.
        sources().for_each(|source| edits.unset(source, &["portid"]));
        for target in children(interface, "target") {
            let name = attribute(target, "dev").unwrap_or_default();
            if !name.is_empty() && !GIVEN.iter().any(|given| name.starts_with(given)) {
                warnings.push(format!("an interface is no longer `{name}` on the host, which the first one may have"));
            }
            edits.remove(target);
        }
        if wanted.mac_addresses == MacAddresses::New {
            let fresh = fresh(wanted.id, &taken);
            match child(interface, "mac") {
                Some(mac) => {
                    edits.set(mac, "address", &fresh);
                    edits.unset(mac, &["type", "check"]);
                }
                None => edits.insert_into(interface, &format!("<mac address='{fresh}'/>")),
            }
            taken.insert(fresh);
            let ports = children(interface, "virtualport").flat_map(|port| children(port, "parameters"));
            ports.for_each(|parameters| edits.unset(parameters, &["interfaceid"]));
        }
    }
}

/// A MAC address that is not taken, always the same for an instance.
fn fresh(id: InstanceId, taken: &BTreeSet<String>) -> String {
    let drawn = (0_u32..).map(|number| {
        let hash = blake3::Hasher::new().update(id.0.as_bytes()).update(&number.to_be_bytes()).finalize();
        let [a, b, c, ..] = *hash.as_bytes();
        format!("{QEMUS}:{a:02x}:{b:02x}:{c:02x}")
    });
    // With fewer than 2^24 addresses taken there is one.
    drawn.into_iter().find(|address| !taken.contains(address)).unwrap_or_default()
}
