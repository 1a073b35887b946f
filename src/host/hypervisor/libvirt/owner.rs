//! Who QEMU runs as, in libvirt's own words: its security driver `dac` gives each domain a label `USER:GROUP`, written as
//! names or, with `+`, as numbers. A running domain's description has the label that its process got, whether it was
//! chosen (`static`) or not; the host's capabilities have the one that all others get, from `user` and `group` in qemu.conf.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use nix::unistd::{Group, User};
use virt::connect::Connect;

use super::parse::{attribute, child, child_text, children, document, odd};
use super::{domain, errors};
use crate::failure::{Code, Failure};
use crate::model::id::{InstanceId, InstanceRef};
use crate::model::owner::Owner;

/// The security driver whose labels are users and groups.
const OWNERSHIP_DRIVER: &str = "dac";

/// The owner for one instance, or for those that don't ask for another.
pub(super) fn qemu_owner(connect: &Connect, instance: Option<InstanceId>) -> Result<Option<Owner>, Failure> {
    let mut kind = None;
    if let Some(instance) = instance {
        let domain = domain::look_up(connect, &InstanceRef::Id(instance))?;
        let said = of_domain(&domain::description(&domain, 0)?)?;
        if let Some(label) = said.label {
            return owner(&label).map(Some);
        }
        kind = said.kind;
    }
    let capabilities = connect.capabilities();
    let capabilities =
        capabilities.map_err(|error| errors::failure("cannot ask libvirt for the host's capabilities", &error))?;
    of_host(&capabilities, kind.as_deref())?.map(|label| owner(&label)).transpose()
}

/// The QEMU that libvirt has started for the instance: libvirt gives each one the instance's uuid as an argument. Anybody's
/// process can say that of itself, so it also has to run as `owner`, or as we do where libvirt changes no users.
pub(super) fn qemu_process(instance: InstanceId, owner: Option<Owner>) -> Result<u32, Failure> {
    let failed = |error: std::io::Error| Failure::new(Code::HostIo, "cannot list the processes").because(&error);
    let uuid = instance.to_string();
    let user = owner.map_or_else(|| nix::unistd::geteuid().as_raw(), |owner| owner.user);
    for entry in std::fs::read_dir("/proc").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that ended meanwhile is not it.
        let Ok(line) = std::fs::read(format!("/proc/{process}/cmdline")) else { continue };
        let runs_as = |status: Metadata| status.uid() == user;
        if is_qemu_of(&line, uuid.as_bytes()) && std::fs::metadata(format!("/proc/{process}")).is_ok_and(runs_as) {
            return Ok(process);
        }
    }
    let text = format!("there is no QEMU of instance `{instance}` among this host's processes");
    Err(Failure::new(Code::InstanceStateUnsupported, text))
}

fn is_qemu_of(command_line: &[u8], uuid: &[u8]) -> bool {
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    let names_qemu =
        |program: &[u8]| ["qemu", "kvm"].iter().any(|name| String::from_utf8_lossy(program).contains(name));
    let is_qemu = words.first().is_some_and(|program| names_qemu(program));
    is_qemu && words.windows(2).any(|pair| pair == [&b"-uuid"[..], uuid])
}

/// What a domain's description says about its owner.
#[derive(Debug, PartialEq, Eq)]
struct DomainSays {
    /// The label of its process; none for a domain that is shut off and has no label of its own.
    label: Option<String>,
    /// Its type, `kvm` or `qemu`.
    kind: Option<String>,
}

fn of_domain(live: &str) -> Result<DomainSays, Failure> {
    let document = document(live, "domain")?;
    let domain = document.root_element();
    let labels = children(domain, "seclabel").filter(|label| attribute(*label, "model") == Some(OWNERSHIP_DRIVER));
    let label = labels.map(|label| child_text(label, "label")).find(|label| !label.is_empty());
    Ok(DomainSays { label, kind: attribute(domain, "type").map(str::to_owned) })
}

/// The label of domains of this type, or of any where there is none for it; none where libvirt changes no owners.
fn of_host(capabilities: &str, kind: Option<&str>) -> Result<Option<String>, Failure> {
    let document = document(capabilities, "capabilities")?;
    let host = child(document.root_element(), "host");
    let models = host.iter().flat_map(|host| children(*host, "secmodel"));
    let ownership = models.filter(|model| child_text(*model, "model") == OWNERSHIP_DRIVER);
    let labels: Vec<_> = ownership.flat_map(|model| children(model, "baselabel")).collect();
    let of_kind = labels.iter().find(|label| attribute(**label, "type") == kind.or(Some("kvm")));
    let label = of_kind.or(labels.first()).and_then(|label| label.text()).map(|label| label.trim().to_owned());
    Ok(label.filter(|label| !label.is_empty()))
}

/// A label as numbers. As in libvirt, a text without `+` is a name first and, where nobody has that name, a number.
fn owner(label: &str) -> Result<Owner, Failure> {
    let user = |name: &str| User::from_name(name).map(|found| found.map(|user| user.uid.as_raw()));
    let group = |name: &str| Group::from_name(name).map(|found| found.map(|group| group.gid.as_raw()));
    let (user_text, group_text) = label.split_once(':').ok_or_else(|| odd(format!("the owner `{label}`")))?;
    Ok(Owner { user: number(user_text, user)?, group: number(group_text, group)? })
}

fn number(text: &str, look_up: impl Fn(&str) -> nix::Result<Option<u32>>) -> Result<u32, Failure> {
    let unknown =
        || Failure::new(Code::HypervisorFailed, format!("cannot find the user or group `{text}` that QEMU runs as"));
    if let Some(digits) = text.strip_prefix('+') {
        return digits.parse().map_err(|error| unknown().because(&error));
    }
    match look_up(text) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => text.parse().map_err(|_| unknown()),
        Err(error) => text.parse().map_err(|_| unknown().because(&error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const CAPABILITIES: &str = "<capabilities><host><uuid>x</uuid>
        <secmodel><model>apparmor</model><doi>0</doi></secmodel>
        <secmodel><model>dac</model><doi>0</doi>
          <baselabel type='kvm'>+64055:+64056</baselabel><baselabel type='qemu'>+7:+8</baselabel></secmodel>
        </host></capabilities>";

    #[test]
    fn the_host_says_who_its_instances_run_as_by_their_type() {
        let of_host = |kind| of_host(CAPABILITIES, kind).unwrap().unwrap();
        assert_eq!(of_host(None), "+64055:+64056");
        assert_eq!(of_host(Some("qemu")), "+7:+8");
        assert_eq!(of_host(Some("hvf")), "+64055:+64056");
        assert_eq!(owner(&of_host(None)).unwrap(), Owner { user: 64055, group: 64056 });
    }

    #[test]
    fn a_libvirt_that_changes_no_owner_says_none() {
        let session = "<capabilities><host><secmodel><model>apparmor</model></secmodel></host></capabilities>";
        assert_eq!(of_host(session, None).unwrap(), None);
        assert_eq!(of_host("<capabilities/>", None).unwrap(), None);
    }

    #[test]
    fn a_domains_own_label_is_read_and_that_of_its_disks_is_not() {
        let with = |label: &str| {
            let disk = "<disk><source><seclabel model='dac'><label>disk:disk</label></seclabel></source></disk>";
            format!(
                "<domain type='qemu'><devices>{disk}</devices><seclabel type='dynamic' model='apparmor'>\
                     <label>libvirt-0b7f</label></seclabel>{label}</domain>"
            )
        };
        let chosen = "<seclabel type='static' model='dac' relabel='yes'><label>backup:+5</label></seclabel>";
        let says = |label: Option<&str>| DomainSays { label: label.map(str::to_owned), kind: Some("qemu".into()) };
        assert_eq!(of_domain(&with(chosen)).unwrap(), says(Some("backup:+5")));
        let stopped = "<seclabel type='dynamic' model='dac' relabel='yes'/>";
        assert_eq!(of_domain(&with(stopped)).unwrap(), says(None));
        assert_eq!(of_domain(&with("")).unwrap(), says(None));
    }

    #[test]
    fn names_are_looked_up_and_nobodys_name_is_refused() {
        assert_eq!(owner("root:root").unwrap(), Owner { user: 0, group: 0 });
        assert_eq!(owner("4123456:+0").unwrap(), Owner { user: 4_123_456, group: 0 });
        for label in ["", "root", "+root:+0", "+1:", "nobody-has-this:+1", "+-1:+1", "+4294967296:+1"] {
            assert_eq!(owner(label).unwrap_err().code, Code::HypervisorFailed, "{label}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = of_host(&text, None);
            let _ = of_domain(&text);
            let _ = of_host(&format!("<capabilities><host>{text}</host></capabilities>"), Some(&text));
            let _ = owner(&text);
        }

        #[test]
        fn numbers_come_back_as_they_were(user in 0..u32::MAX, group in 0..u32::MAX) {
            prop_assert_eq!(owner(&format!("+{user}:+{group}")).unwrap(), Owner { user, group });
        }
    }
}
