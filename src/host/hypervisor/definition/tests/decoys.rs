//! Nothing that stands beside what is looked at, or in front of it, is obeyed in its place.

use super::hostile::{harmless, with};
use super::*;

/// Each is something of which there is one, and which is looked at or changed: a second one is no way around that.
#[test]
fn what_is_looked_up_as_one_is_there_once() {
    for (rest, os, devices) in [
        ("<name>a</name>", "", ""),
        ("<metadata/><metadata/>", "", ""),
        ("<memory>1</memory><memory>1</memory>", "", ""),
        ("<devices/>", "", ""),
        ("<os><loader>/evil</loader></os>", "", ""),
        ("", "<loader/><loader>/evil</loader>", ""),
        ("", "<nvram>/a</nvram><nvram>/evil</nvram>", ""),
        ("", "", "<disk type='file'><driver type='raw'/><driver type='qcow2'/><target dev='vdb'/></disk>"),
        ("", "", "<disk type='file'><source file='/a'/><source file='/evil'/><target dev='vdb'/></disk>"),
        ("", "", "<disk type='file'><target dev='vdb'/><target dev='vdc'/></disk>"),
        ("", "", "<interface type='bridge'><source bridge='a'/><source mode='passthrough' dev='a'/></interface>"),
        ("", "", "<interface type='user'><mac address='1'/><mac address='2'/></interface>"),
        ("", "", "<tpm><backend type='emulator'/><backend type='passthrough'/></tpm>"),
        ("", "", "<rng><backend model='builtin'/><backend model='egd'/></rng>"),
        ("", "", "<channel type='unix'><target type='virtio'/><target type='guestfwd'/></channel>"),
        ("", "", "<vsock><cid auto='yes'/><cid address='3'/></vsock>"),
    ] {
        let failure = Case::new().try_to_make(&with(devices, os, rest)).unwrap_err();
        assert_eq!(failure.code, Code::DefinitionRefused, "{rest}{os}{devices}");
        assert!(failure.text.contains("several"), "{failure:#}");
    }
    let same_target = "<disk type='file'><source file='/b'/><target dev='vda'/></disk>";
    let failure = Case::new().try_to_make(&with(same_target, "", "")).unwrap_err();
    assert_eq!(failure.code, Code::DefinitionRefused, "one volume would be two disks");
}

/// Elements and attributes, each of which is looked at or changed, as somebody who wants to be obeyed and not looked at writes them.
const REAL: &[(&str, &str, &str)] = &[
    (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/evil'/><target dev='vda'/></disk>",
        "",
        "",
    ),
    (
        "<disk type='file' device='cdrom'><driver name='qemu' type='qcow2'/><source file='/evil.iso'/><target dev='sdb'/></disk>",
        "",
        "",
    ),
    (
        "<interface type='bridge'><mac address='52:54:00:00:00:09'/><source bridge='br0'/><target dev='evil0'/></interface>",
        "",
        "",
    ),
    (
        "<interface type='direct'><mac address='52:54:00:00:00:09'/><source mode='passthrough' dev='evil0'/></interface>",
        "",
        "",
    ),
    ("<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/evil'/></backend></tpm>", "", ""),
    ("<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>", "", ""),
    ("<rng model='virtio'><backend model='random'>/dev/evil</backend></rng>", "", ""),
    ("<memory model='nvdimm'><source><path>/evil</path></source><target><size>1</size></target></memory>", "", ""),
    ("<graphics type='egl-headless'><gl rendernode='/dev/evil'/></graphics>", "", ""),
    ("<graphics type='vnc' port='5907' autoport='no'><listen type='socket' socket='/evil'/></graphics>", "", ""),
    ("<serial type='file'><source path='/evil'/><target port='0'/></serial>", "", ""),
    ("<channel type='unix'><source mode='connect' path='/evil'/><target type='virtio' name='a'/></channel>", "", ""),
    ("<input type='evdev'><source dev='/dev/input/evil'/></input>", "", ""),
    ("<vsock><cid auto='no' address='7'/></vsock>", "", ""),
    ("<watchdog model='i6300esb' action='dump'/>", "", ""),
    ("", "<loader type='pflash' readonly='no'>/evil</loader><nvram template='/evil' format='qcow2'>/evil</nvram>", ""),
    ("", "<varstore template='/evil' path='/evil'/>", ""),
    ("", "", "<metadata><x:a/></metadata>"),
    ("", "", "<seclabel type='static' model='dac'><label>evil</label></seclabel>"),
    ("", "", "<sysinfo type='fwcfg'><entry name='opt.a' file='/evil'/></sysinfo>"),
    ("", "", "<memoryBacking><locked/><source type='file'/><access mode='shared'/></memoryBacking>"),
    ("", "", "<cputune><vcpusched vcpus='0' scheduler='fifo' priority='99'/></cputune>"),
    ("", "", "<on_crash>coredump-restart</on_crash>"),
];

/// What of it would be made if nobody had put a decoy beside it.
fn decoys(real: &str) -> Vec<String> {
    let document = format!("<r xmlns:x='urn:x'>{real}</r>");
    let document = Document::parse(&document).unwrap();
    let text = document.input_text();
    let mut decoys = Vec::new();
    for node in document.root_element().descendants().skip(1).filter(|node| node.is_element()) {
        if node.ancestors().skip(1).any(|above| above.has_tag_name("metadata")) {
            continue;
        }
        let (range, name) = (node.range(), node.tag_name().name());
        let put = |at: usize, what: &str| format!("{}{what}{}", &text[..at], &text[at..]);
        for decoy in [
            format!("<{name} xmlns='urn:x' type='emulator' mode='vepa' model='builtin' dev='vda'/>"),
            format!("<x:{name} type='emulator' mode='vepa' model='builtin' dev='vda'/>"),
        ] {
            decoys.extend([put(range.start, &decoy), put(range.end, &decoy)]);
        }
        for attribute in node.attributes() {
            for value in ["emulator", "bridge", "vepa", "raw", "cdrom", "dimm", "vnc", "mouse", "virtio", "reset"] {
                let decoy = format!(" x:{}='{value}'", attribute.name());
                let behind_name = range.start + 1 + name.len();
                decoys.extend([put(behind_name, &decoy), put(attribute.range().end, &decoy)]);
            }
        }
    }
    let inside = |text: String| text.trim_start_matches("<r xmlns:x='urn:x'>").trim_end_matches("</r>").to_owned();
    decoys.into_iter().map(inside).collect()
}

#[test]
fn whatever_of_another_namespace_stands_beside_what_is_looked_at_changes_nothing() {
    for (devices, os, rest) in REAL {
        let brings_vda = devices.contains("'vda'");
        let without_vda = |devices: &str, os: &str, rest: &str| {
            let whole = with(devices, os, rest);
            match brings_vda {
                true => whole.replacen("<disk type='file'><source file='/images/a'/><target dev='vda'/></disk>", "", 1),
                false => whole,
            }
        };
        let expected = harmless(&without_vda(devices, os, rest)).definition;
        let mut tried = 0;
        for (devices, os, rest) in decoys(devices)
            .into_iter()
            .map(|devices| (devices, (*os).to_owned(), (*rest).to_owned()))
            .chain(decoys(os).into_iter().map(|os| ((*devices).to_owned(), os, (*rest).to_owned())))
            .chain(decoys(rest).into_iter().map(|rest| ((*devices).to_owned(), (*os).to_owned(), rest)))
        {
            let definition = without_vda(&devices, &os, &rest);
            let Made { definition: made, warnings, .. } = harmless(&definition);
            assert_eq!(made, expected, "{definition}");
            assert!(warnings.iter().any(|line| line.contains("not known to be harmless")), "{warnings:?}");
            tried += 1;
        }
        assert!(tried >= 4, "{devices}{os}{rest}");
    }
    for decoy in
        ["<os xmlns='urn:x'/>", "<metadata xmlns='urn:x'/>", "<name xmlns='urn:x'>evil</name>", "<x:uuid>evil</x:uuid>"]
    {
        let real = with("", "<nvram>/evil</nvram>", "");
        let before = real.replacen("<name>", &format!("{decoy}<name>"), 1);
        let after = real.replacen("</domain>", &format!("{decoy}</domain>"), 1);
        for definition in [before, after] {
            assert_eq!(Saved::read(&definition).unwrap().variables, Variables::InFile, "{definition}");
            let made = harmless(&definition).definition;
            assert!(made.contains("<nvram>/new/VARS.fd</nvram>"), "{made}");
            assert_eq!(own(&made).unwrap().restored_by.as_deref(), Some("job/1/1"));
        }
    }
}

/// What the last look is for: each of these would be made if one of the lists had a hole.
#[test]
fn what_is_not_what_was_wanted_is_refused_however_it_came_to_be() {
    let case = Case::new();
    let volumes: BTreeMap<_, _> =
        case.volumes.clone().into_iter().filter(|(target, _)| target.as_str() == "vda").collect();
    let wanted = case.wanted(&volumes);
    let good = case.made(&with(
        "<interface type='bridge'><source bridge='b'/></interface><tpm><backend type='emulator'/></tpm>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng><graphics type='vnc'/>\
         <disk type='file' device='cdrom'><target dev='sdb'/></disk>",
        "",
        "",
    ));
    let good = good.definition;
    checked::must_be_wanted(&good, &wanted).unwrap();
    for (from, to) in [
        ("type='qcow2'", "type='raw'"),
        ("name='qemu'", "name='other'"),
        ("/new/it&apos;s a.qcow2", "/new/other"),
        ("<target dev='vda'/>", "<target dev='vda'/><source file='/new/VARS.fd'/>"),
        ("<target dev='vda'/>", "<target dev='vda'/><target dev='vdb'/>"),
        ("<target dev='vda'/>", "<target dev='vda'/><driver type='raw'/>"),
        ("<target dev='vda'/>", "<target dev='vda'/><x:source xmlns:x='urn:x' file='a'/>"),
        ("<target dev='vda'/>", "<target dev='vda'/><backingStore type='file'/>"),
        ("<target dev='vda'/>", "<target dev='vdb'/>"),
        ("<target dev='sdb'/>", "<target dev='sdb'/><source file='a'/>"),
        ("<target dev='sdb'/>", "<target dev='vda'/>"),
        ("device='cdrom'", "device='disk'"),
        ("<interface type='bridge'>", "<interface type='vdpa'>"),
        ("<source bridge='b'/>", "<source bridge='b' mode='passthrough'/>"),
        ("<source bridge='b'/>", "<source bridge='b'/><script path='a'/>"),
        ("<backend type='emulator'/>", "<backend type='passthrough'/>"),
        ("<backend type='emulator'/>", "<backend type='emulator'><source type='dir'/></backend>"),
        ("model='random'", "model='egd'"),
        ("/dev/urandom", "/dev/sda"),
        ("type='vnc'", "type='dbus'"),
        ("type='vnc'", "type='vnc' listen='0.0.0.0'"),
        ("<graphics autoport='yes' type='vnc'/>", "<graphics type='vnc'><listen address='0.0.0.0'/></graphics>"),
        ("<graphics autoport='yes' type='vnc'/>", "<graphics type='vnc'><listen type='network'/></graphics>"),
        ("<devices>", "<devices><hostdev/>"),
        ("<devices>", "<devices><emulator>a</emulator>"),
        ("<devices>", "<devices><serial type='file'/>"),
        ("<devices>", "<devices><watchdog action='dump'/>"),
        ("<devices>", "<devices><video rendernode='/dev/dri'/>"),
        ("<devices>", "<devices><metadata><a b='/etc'/></metadata>"),
        ("<devices>", "<devices/><devices>"),
        ("/new/VARS.fd", "/new/other"),
        ("<nvram>", "<nvram format='qcow2'>"),
        ("<nvram>", "<nvram templateFormat='qcow2'>"),
        ("<nvram>", "<nvram/><nvram>"),
        ("<name>", "<name>b</name><name>"),
        ("by='job/1/1'", "by='job/1/2'"),
        ("<metadata>", "<metadata><a:b xmlns:a='urn:longshore:restored:1'/>"),
        ("<domain type='kvm'>", "<domain type='kvm' x:a='b' xmlns:x='urn:x'>"),
        ("<domain type='kvm'>", "<domain type='kvm'><x:a xmlns:x='urn:x'/>"),
    ] {
        assert!(good.contains(from), "{from}: {good}");
        let bad = good.replacen(from, to, 1);
        let refused = checked::must_be_wanted(&bad, &wanted).map_err(|failure| failure.code);
        assert_eq!(refused, Err(Code::DefinitionRefused), "{to}");
    }
}

#[test]
fn what_is_others_words_keeps_its_namespaces() {
    let metadata = "<metadata><a xmlns='urn:a' xmlns:own='urn:b' own:q='1'><own:c/><d xmlns='urn:d' xmlns:own2='urn:e' own2:f='2'/></a></metadata>";
    let made = harmless(&with("", "", metadata)).definition;
    let document = Document::parse(&made).unwrap();
    for name in [("urn:a", "a"), ("urn:b", "c"), ("urn:d", "d")] {
        assert!(document.descendants().any(|node| node.has_tag_name(name)), "{name:?}: {made}");
    }
    for name in [("urn:b", "q"), ("urn:e", "f")] {
        assert!(document.descendants().any(|node| node.has_attribute(name)), "{name:?}: {made}");
    }
}
