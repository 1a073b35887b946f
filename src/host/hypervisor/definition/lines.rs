//! What another instance shows and hears: serial lines, consoles, channels and graphics, which listen where only one can.

use std::net::IpAddr;

use roxmltree::Node;

use super::Changes;
use super::edits::{Edits, attribute, child, children};
use super::told::Warnings;

/// Where graphics listen that listened for others.
const LOOPBACK: &str = "127.0.0.1";

pub(super) fn change(devices: Node<'_, '_>, changes: &mut Changes) {
    for name in ["serial", "parallel", "console", "channel"] {
        for line in children(devices, name) {
            change_line(line, name, changes);
        }
    }
    for graphics in children(devices, "graphics") {
        let kind = attribute(graphics, "type").unwrap_or_default();
        match kind {
            "vnc" | "spice" => change_graphics(graphics, kind, &mut changes.edits, &mut changes.warnings),
            // On a screen or a bus of the host's own.
            _ => changes.remove(graphics, format!("graphics of the type `{kind}`")),
        }
    }
}

fn change_line(line: Node<'_, '_>, name: &str, changes: &mut Changes) {
    let kind = attribute(line, "type").unwrap_or_default();
    let target = child(line, "target");
    if name == "channel" && target.and_then(|target| attribute(target, "type")) != Some("virtio") {
        return changes.remove(line, "a channel that is none of virtio".to_owned());
    }
    let Changes { edits, warnings, .. } = changes;
    edits.unset(line, &["tty"]);
    if let Some(target) = target {
        // Of the one that ran.
        edits.unset(target, &["state"]);
    }
    if child(line, "log").is_some() {
        edits.remove_all(children(line, "log"));
        warnings.push(format!("a `{name}` is no longer logged to the file of the first instance"));
    }
    let sources = || children(line, "source");
    let listens = sources().all(|source| attribute(source, "mode") == Some("bind"));
    match kind {
        "null" | "spicevmc" => edits.remove_all(sources()),
        "spiceport" | "qemu-vdagent" if name == "channel" => {}
        // Which one it was, of the running instance.
        "pty" => edits.remove_all(sources()),
        // libvirt gives it a path of its own.
        "unix" if name == "channel" && listens => edits.remove_all(sources()),
        _ => {
            let plain = if name == "channel" { "unix" } else { "pty" };
            edits.set(line, "type", plain);
            edits.remove_all(sources().chain(children(line, "protocol")).chain(children(line, "reconnect")));
            warnings.push(format!(
                "a `{name}` of type `{kind}` is of type `{plain}` in the new instance: the other end is the first one's"
            ));
        }
    }
}

fn change_graphics(graphics: Node<'_, '_>, kind: &str, edits: &mut Edits, warnings: &mut Warnings) {
    // libvirt makes one of its own.
    children(graphics, "listen").for_each(|listen| edits.unset(listen, &["socket"]));
    listen_at_loopback(graphics, kind, edits, warnings);
    let elsewhere = |listen: Node<'_, '_>| matches!(attribute(listen, "type"), Some("socket" | "none"));
    if children(graphics, "listen").any(elsewhere) {
        edits.unset(graphics, &["port", "tlsPort", "websocket", "socket"]);
        return;
    }
    let fixed = attribute(graphics, "autoport") != Some("yes");
    let port = attribute(graphics, "port").filter(|port| fixed && *port != "-1");
    if let Some(what) = port.or(attribute(graphics, "socket")) {
        warnings.push(format!("graphics (`{kind}`) listened at `{what}`, and get a port of their own"));
    }
    edits.unset(graphics, &["port", "tlsPort", "websocket", "socket"]);
    edits.set(graphics, "autoport", "yes");
}

/// A password is in no backup, so that whoever reaches the new console has it.
fn listen_at_loopback(graphics: Node<'_, '_>, kind: &str, edits: &mut Edits, warnings: &mut Warnings) {
    let at_others = |node, name| attribute(node, name).is_some_and(|address| !is_loopback(address));
    let mut were = Vec::new();
    if at_others(graphics, "listen") {
        were.extend(attribute(graphics, "listen"));
        edits.set(graphics, "listen", LOOPBACK);
    }
    for listen in children(graphics, "listen") {
        let is_of_network = attribute(listen, "type") == Some("network");
        if !is_of_network && !at_others(listen, "address") {
            continue;
        }
        were.extend(attribute(listen, "address").or(attribute(listen, "network")));
        edits.set(listen, "address", LOOPBACK);
        if is_of_network {
            edits.set(listen, "type", "address");
            edits.unset(listen, &["network"]);
        }
    }
    were.dedup();
    for was in were {
        warnings.push(format!(
            "graphics (`{kind}`) listened at `{was}`, and listen at {LOOPBACK} alone: a password is not in a backup"
        ));
    }
}

/// Nobody but the host itself reaches it.
pub(super) fn is_loopback(address: &str) -> bool {
    address == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
