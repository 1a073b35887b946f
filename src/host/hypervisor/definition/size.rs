//! How much of a host an instance takes, as its definition says. Whoever can write to a share says it, so that it is held against what the
//! host has.

use roxmltree::Node;

use super::edits::{attribute, child, children, text_of};
use super::plain::{refused, shown};
use crate::failure::Failure;

/// Most threads for the disks of one instance; libvirt itself has no bound.
const IO_THREADS_MAX: u64 = 256;

/// The memory that it takes as it starts, bytes: that of its cells or, where it has none, `memory` without its modules; and its modules, as
/// far as they are plugged in. What may be added later (`maxMemory`, the rest of a `virtio-mem`) nothing takes, and what is left out of a new
/// instance (`nvdimm`) is no memory of the host's. 0 where it says nothing.
///
/// `definition_refused`: it is no number.
pub(super) fn memory_bytes(domain: Node<'_, '_>) -> Result<u64, Failure> {
    let element = |node: Node<'_, '_>| bytes(text_of(node), attribute(node, "unit"));
    let (mut sizes, mut plugged_in) = (0_u64, 0_u64);
    for module in children(domain, "devices").flat_map(|devices| children(devices, "memory")) {
        let target = child(module, "target");
        let of_it = |name| target.and_then(|target| child(target, name)).map_or(Ok(0), element);
        let plugged = match attribute(module, "model") {
            Some("dimm") => of_it("size")?,
            Some("virtio-mem") => of_it("requested")?,
            _ => continue,
        };
        sizes = sizes.saturating_add(of_it("size")?);
        plugged_in = plugged_in.saturating_add(plugged);
    }
    let numa = child(domain, "cpu").and_then(|cpu| child(cpu, "numa"));
    let mut cells = None;
    for cell in numa.iter().flat_map(|numa| children(*numa, "cell")) {
        let memory = bytes(attribute(cell, "memory").unwrap_or_default(), attribute(cell, "unit"))?;
        cells = Some(memory.saturating_add(cells.unwrap_or(0)));
    }
    // libvirt asks the cells where there are some, whatever `memory` says.
    let whole = child(domain, "memory").map_or(Ok(0), element)?;
    Ok(cells.unwrap_or(whole.saturating_sub(sizes)).saturating_add(plugged_in))
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
        let later = "<devices><memory model='virtio-mem'><target><size unit='G'>99</size><requested unit='G'>1</requested></target>\
            </memory></devices>";
        let none = "<devices><memory model='nvdimm'><target><size unit='TiB'>1</size></target></memory>\
            <memory model='virtio-pmem'><target><size unit='TiB'>1</size></target></memory></devices>";
        for (content, bytes) in [
            ("", 0),
            ("<memory>1024</memory>", 1 << 20),
            ("<memory unit='MiB'>1</memory><maxMemory slots='16' unit='GiB'>1</maxMemory>", 1 << 20),
            ("<memory unit='T'>2</memory>", 2 << 40),
            (cell, 3 << 30),
            (module, 5_000_000_000),
            (&format!("<memory unit='G'>4</memory>{cell}"), 3 << 30),
            (&format!("<memory unit='G'>9</memory>{cell}{later}"), 4 << 30),
            (&format!("<memory unit='G'>9</memory>{cell}{none}"), 3 << 30),
            (&format!("<memory unit='GB'>9</memory>{module}"), 9_000_000_000),
            (&format!("<memory unit='GB'>1</memory>{module}"), 5_000_000_000),
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
