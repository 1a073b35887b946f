//! What another instance shows and hears: serial lines, consoles, channels and graphics, which listen where only one can.

use roxmltree::Node;

use super::edits::{Edits, child, children};

pub(super) fn change(devices: Node<'_, '_>, edits: &mut Edits, warnings: &mut Vec<String>) {
    for name in ["serial", "parallel", "console", "channel"] {
        for line in children(devices, name) {
            change_line(line, name, edits, warnings);
        }
    }
    for graphics in children(devices, "graphics") {
        change_graphics(graphics, edits, warnings);
    }
}

fn change_line(line: Node<'_, '_>, name: &str, edits: &mut Edits, warnings: &mut Vec<String>) {
    let kind = line.attribute("type").unwrap_or_default();
    edits.unset(line, &["tty"]);
    if child(line, "log").is_some() {
        edits.remove_all(children(line, "log"));
        warnings.push(format!("a `{name}` is no longer logged to the file of the first instance"));
    }
    let sources = || children(line, "source");
    let listens = || sources().any(|source| source.attribute("mode") == Some("bind"));
    match kind {
        // Which one it was, of the running instance.
        "pty" => edits.remove_all(sources()),
        // libvirt gives it a path of its own.
        "unix" if name == "channel" && listens() => edits.remove_all(sources()),
        "unix" | "tcp" | "udp" if !listens() => {}
        "unix" | "tcp" | "udp" | "file" | "pipe" | "dev" => {
            let plain = if name == "channel" { "unix" } else { "pty" };
            edits.set(line, "type", plain);
            edits.remove_all(sources().chain(children(line, "protocol")));
            warnings.push(format!(
                "a `{name}` of type `{kind}` is of type `{plain}` in the new instance, since the first one may be using it"
            ));
        }
        _ => {}
    }
}

fn change_graphics(graphics: Node<'_, '_>, edits: &mut Edits, warnings: &mut Vec<String>) {
    let kind = graphics.attribute("type").unwrap_or_default();
    if !matches!(kind, "vnc" | "spice" | "rdp") {
        return;
    }
    // libvirt makes one of its own.
    children(graphics, "listen").for_each(|listen| edits.unset(listen, &["socket"]));
    let elsewhere = |listen: Node<'_, '_>| matches!(listen.attribute("type"), Some("socket" | "none"));
    if children(graphics, "listen").any(elsewhere) {
        edits.unset(graphics, &["port", "tlsPort", "websocket", "socket"]);
        return;
    }
    let fixed = graphics.attribute("autoport") != Some("yes");
    let port = graphics.attribute("port").filter(|port| fixed && *port != "-1");
    if let Some(what) = port.or(graphics.attribute("socket")) {
        warnings.push(format!("graphics (`{kind}`) listened at `{what}`, and get a port of their own"));
    }
    edits.unset(graphics, &["port", "tlsPort", "websocket", "socket"]);
    edits.set(graphics, "autoport", "yes");
}
