//! How much of a host an instance takes, as its definition says. Whoever can write to a share says it, so that it is held against what the
//! host has.

use roxmltree::Node;

use super::edits::{attribute, child, children, text_of};
use super::plain::{refused, shown};
use crate::failure::Failure;

/// Most threads for the disks of one instance; libvirt itself has no bound.
const IO_THREADS_MAX: u64 = 256;

/// Its memory, bytes: the greater of what it says as a whole and what its parts are together. None says nothing.
///
/// `definition_refused`: it is no number.
pub(super) fn memory_bytes(domain: Node<'_, '_>) -> Result<u64, Failure> {
    let element = |node: Node<'_, '_>| bytes(text_of(node), attribute(node, "unit"));
    let mut whole = 0;
    for name in ["memory", "currentMemory", "maxMemory"] {
        for node in children(domain, name) {
            whole = whole.max(element(node)?);
        }
    }
    let mut parts = 0_u64;
    let numa = child(domain, "cpu").and_then(|cpu| child(cpu, "numa"));
    for cell in numa.iter().flat_map(|numa| children(*numa, "cell")) {
        parts = parts.saturating_add(bytes(attribute(cell, "memory").unwrap_or_default(), attribute(cell, "unit"))?);
    }
    let modules = children(domain, "devices").flat_map(|devices| children(devices, "memory"));
    for size in modules.filter_map(|module| child(module, "target")).filter_map(|target| child(target, "size")) {
        parts = parts.saturating_add(element(size)?);
    }
    Ok(whole.max(parts))
}

/// `definition_refused`: it would have a host start threads without end.
pub(super) fn threads_must_be_few(domain: Node<'_, '_>) -> Result<(), Failure> {
    let asked = child(domain, "iothreads").map_or(Ok(0), |node| text_of(node).parse::<u64>());
    let named = child(domain, "iothreadids").map_or(0, |ids| children(ids, "iothread").count() as u64);
    match asked {
        Ok(asked) if asked.max(named) <= IO_THREADS_MAX => Ok(()),
        _ => Err(refused(format!("it wants more than {IO_THREADS_MAX} `iothreads`"))),
    }
}

/// libvirt's units, of which a KiB is the one that is meant where none is said.
fn bytes(number: &str, unit: Option<&str>) -> Result<u64, Failure> {
    let (kibi, kilo) = (1024_u64, 1000_u64);
    let factor = match unit.unwrap_or("KiB") {
        "b" | "byte" | "bytes" => Some(1),
        "KB" => Some(kilo),
        "k" | "K" | "KiB" => Some(kibi),
        "MB" => Some(kilo.pow(2)),
        "m" | "M" | "MiB" => Some(kibi.pow(2)),
        "GB" => Some(kilo.pow(3)),
        "g" | "G" | "GiB" => Some(kibi.pow(3)),
        "TB" => Some(kilo.pow(4)),
        "t" | "T" | "TiB" => Some(kibi.pow(4)),
        _ => None,
    };
    let number = number.trim();
    let bytes = factor.zip(number.parse::<u64>().ok()).and_then(|(factor, number)| number.checked_mul(factor));
    bytes.ok_or_else(|| refused(format!("it wants `{} {}` of memory", shown(number), shown(unit.unwrap_or("KiB")))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::edits::document;
    use super::*;
    use crate::failure::Code;

    fn size(content: &str) -> Result<u64, Code> {
        let definition = format!("<domain>{content}</domain>");
        let document = document(&definition).unwrap();
        let domain = document.root_element();
        threads_must_be_few(domain).and_then(|()| memory_bytes(domain)).map_err(|failure| failure.code)
    }

    #[test]
    fn what_an_instance_takes_is_what_it_says_in_any_way() {
        let cell = "<cpu><numa><cell memory='2' unit='GiB'/><cell memory='1048576'/></numa></cpu>";
        let module = "<devices><memory model='dimm'><target><size unit='GB'>5</size></target></memory></devices>";
        for (content, bytes) in [
            ("", 0),
            ("<memory>1024</memory>", 1 << 20),
            ("<memory unit='b'>7</memory><currentMemory unit='MiB'>1</currentMemory>", 1 << 20),
            ("<memory unit='T'>2</memory>", 2 << 40),
            (cell, 3 << 30),
            (module, 5_000_000_000),
            (&format!("<memory unit='G'>4</memory>{cell}"), 4 << 30),
        ] {
            assert_eq!(size(content), Ok(bytes), "{content}");
        }
        for content in [
            "<memory>-1</memory>",
            "<memory unit='stone'>1</memory>",
            "<memory unit='TiB'>99999999999</memory>",
            "<cpu><numa><cell/></numa></cpu>",
            "<iothreads>100000</iothreads>",
            "<iothreads>x</iothreads>",
        ] {
            assert_eq!(size(content), Err(Code::DefinitionRefused), "{content}");
        }
    }
}
