//! Whoever can write to the share can write definitions: none makes libvirt do to the host what a guest could not.

use std::time::{Duration, Instant};

use super::super::copy::{ATTRIBUTES_MAX, WRITTEN_BYTES_MAX};
use super::super::plain::{DEFINITION_BYTES_MAX, NAMESPACES_MAX};
use super::super::told::{WARNING_CHARACTERS_MAX, WARNINGS_MAX};
use super::*;

/// Words that stand in what is hostile below, and so in nothing that is made of it.
const EVIL: &str = "evil";

pub(super) fn with(devices: &str, os: &str, rest: &str) -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' xmlns:x='urn:x'>\
         <name>a</name><uuid>{ID}</uuid><os><type>hvm</type>{os}</os>{rest}\
         <devices><disk type='file'><source file='/images/a'/><target dev='vda'/></disk>{devices}</devices></domain>"
    )
}

/// What is made, of which nothing is hostile and of which every path is known.
pub(super) fn harmless(definition: &str) -> Made {
    let made = Case::new().made(definition);
    assert!(!made.definition.contains(EVIL), "{}", made.definition);
    let document = Document::parse(&made.definition).unwrap();
    let known = ["/new/it's a.qcow2", "/new/VARS.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd", "/dev/urandom"];
    let outside_of_metadata =
        document.descendants().filter(|node| !node.ancestors().any(|above| above.has_tag_name("metadata")));
    for node in outside_of_metadata {
        assert_eq!(node.tag_name().namespace(), None, "{}", made.definition);
        let values = node.attributes().map(|attribute| attribute.value()).chain(node.text());
        for value in values {
            assert!(!value.contains('/') || known.contains(&value), "{value}: {}", made.definition);
        }
    }
    made
}

#[test]
fn what_reaches_into_the_host_is_left_out_and_told() {
    for (devices, what) in [
        ("<filesystem type='mount'><source dir='/evil'/><target dir='evil'/></filesystem>", "filesystem"),
        (
            "<filesystem type='mount'><driver type='virtiofs'/><binary path='/evil'/><source socket='/evil'/></filesystem>",
            "filesystem",
        ),
        ("<emulator>/evil/qemu</emulator>", "emulator"),
        ("<input type='passthrough' bus='virtio'><source evdev='/dev/input/evil'/></input>", "input"),
        ("<input type='evdev'><source dev='/dev/input/evil' grab='all'/></input>", "input"),
        ("<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/evil'/></backend></tpm>", "TPM"),
        ("<tpm><backend type='external'><source type='unix' mode='connect' path='/evil'/></backend></tpm>", "TPM"),
        (
            "<tpm><backend type='emulator' version='2.0'><source type='dir' path='/evil'/></backend></tpm>",
            "tpm/backend",
        ),
        ("<rng model='virtio'><backend model='random'>/dev/evil</backend></rng>", "random"),
        ("<rng><backend model='egd' type='unix'><source mode='connect' path='/evil'/></backend></rng>", "random"),
        ("<hostdev mode='subsystem' type='usb'><source><vendor id='evil'/></source></hostdev>", "hostdev"),
        ("<redirdev bus='usb' type='tcp'><source mode='bind' host='evil' service='1'/></redirdev>", "redirdev"),
        ("<smartcard mode='passthrough' type='unix'><source mode='bind' path='/evil'/></smartcard>", "smartcard"),
        ("<shmem name='evil'><server path='/evil'/></shmem>", "shmem"),
        ("<lease><lockspace>evil</lockspace><target path='/evil'/></lease>", "lease"),
        ("<memory model='nvdimm'><source><path>/evil</path></source></memory>", "memory"),
        ("<memory model='virtio-pmem'><source><path>/evil</path></source></memory>", "memory"),
        ("<memory model='dimm'><source><path>/evil</path></source></memory>", "memory/source/path"),
        ("<pstore backend='acpi-erst'><path>/evil</path></pstore>", "pstore"),
        ("<crypto model='virtio' type='qemu'><backend model='lkcf'/></crypto>", "crypto"),
        ("<audio id='1' type='file' path='/evil'/>", "audio"),
        ("<graphics type='sdl' display='evil' xauth='/evil'/>", "graphics"),
        ("<graphics type='egl-headless'><gl rendernode='/dev/evil'/></graphics>", "graphics"),
        ("<graphics type='dbus' address='unix:path=/evil'/>", "graphics"),
        ("<graphics type='spice'><gl enable='yes' rendernode='/dev/evil'/></graphics>", "rendernode"),
        (
            "<video><driver name='qemu'/><model type='vga'><acceleration rendernode='/dev/evil'/></model></video>",
            "rendernode",
        ),
        ("<evil/>", "left out"),
        ("<qemu:device/>", "left out"),
    ] {
        let Made { warnings, .. } = harmless(&with(devices, "", ""));
        let told = warnings.iter().any(|line| line.contains(what) || line.contains(&format!("`{what}")));
        assert!(told, "{what}: {warnings:?}");
    }
}

#[test]
fn no_interface_runs_a_script_or_is_one_of_which_there_is_one() {
    for interface in [
        "<interface type='ethernet'><script path='/evil'/><downscript path='/evil'/></interface>",
        "<interface type='bridge'><source bridge='b'/><backend tap='/evil' vhost='/evil'/></interface>",
        "<interface type='user'><backend type='passt' logFile='/evil'/></interface>",
        "<interface type='bridge'><source bridge='b'/><rom file='/evil'/></interface>",
        "<interface type='vhostuser'><source type='unix' path='/evil' mode='server'/></interface>",
        "<interface type='server'><source address='evil' port='5558'/></interface>",
        "<interface type='udp'><source address='evil' port='1'><local address='evil' port='2'/></source></interface>",
        "<interface type='direct'><source dev='evil' mode='passthrough'/></interface>",
        "<interface type='hostdev'><source><address type='evil'/></source></interface>",
        "<interface type='vdpa'><source dev='/dev/evil'/></interface>",
    ] {
        let Made { definition, warnings, .. } = harmless(&with(interface, "", ""));
        assert!(!definition.contains("passthrough") && !definition.contains("port="), "{definition}");
        assert!(!warnings.is_empty(), "{interface}");
    }
}

#[test]
fn lines_and_channels_lead_nowhere_that_the_definition_names() {
    for (name, types) in [
        ("serial", &["file", "pipe", "dev", "unix", "tcp", "udp", "nmdm", "dbus", "stdio", "vc"][..]),
        ("parallel", &["dev", "file"][..]),
        ("console", &["unix", "pty", "null"][..]),
        ("channel", &["unix", "file", "dev", "tcp", "dbus", "spicevmc", "spiceport"][..]),
    ] {
        for kind in types {
            for mode in ["bind", "connect"] {
                let line = format!(
                    "<{name} type='{kind}' tty='/evil'><source mode='{mode}' path='/evil' host='evil' service='1'/>\
                     <log file='/evil'/><target type='virtio' name='org.qemu.guest_agent.0'/></{name}>"
                );
                let made = harmless(&with(&line, "", "")).definition;
                let document = Document::parse(&made).unwrap();
                let kept = find(&document, name, |_| true).unwrap().attribute("type").unwrap().to_owned();
                assert!(["pty", "null", "unix", "spicevmc", "spiceport"].contains(&kept.as_str()), "{kept}");
                assert!(!made.contains("service="), "{made}");
            }
        }
    }
    // libvirt makes a path of the name.
    let traversing = "<channel type='unix'><target type='virtio' name='../../evil'/></channel>";
    harmless(&with(traversing, "", ""));
    harmless(&with("<channel type='pty'><target type='guestfwd' address='evil' port='1'/></channel>", "", ""));
}

#[test]
fn drives_are_there_and_nothing_is_in_them() {
    for (kind, source) in [
        ("file", "<source file='/images/evil.iso' startupPolicy='optional'/>"),
        ("file", "<source file='/etc/evil'/>"),
        ("block", "<source dev='/dev/evil'/>"),
        ("network", "<source protocol='nbd' name='evil'><host name='evil'/></source>"),
        ("volume", "<source pool='evil' volume='evil'/>"),
        ("nvme", "<source type='pci' namespace='1'><address evil='1'/></source>"),
        ("vhostuser", "<source type='unix' path='/evil'/>"),
        ("dir", "<source dir='/evil'/>"),
    ] {
        for device in ["cdrom", "floppy"] {
            let drive = format!(
                "<disk type='{kind}' device='{device}'><driver name='evil' type='qcow2'/>{source}<target dev='sdb'/></disk>"
            );
            let Made { definition, warnings, .. } = harmless(&with(&drive, "", ""));
            let document = Document::parse(&definition).unwrap();
            let drive = disk(&document, "sdb").unwrap();
            assert_eq!((attribute(drive, "type"), child(drive, "source")), (Some("file"), None), "{definition}");
            let driver = child(drive, "driver").unwrap();
            assert_eq!(attribute(driver, "type"), Some("raw"), "no format that names other files");
            assert!(warnings.iter().any(|line| line.contains("`sdb`")), "{warnings:?}");
        }
    }
}

#[test]
fn no_disk_brings_its_old_source_with_it() {
    let disk = "<domain type='kvm'><name>a</name><devices><disk type='file' rawio='yes' sgio='unfiltered'>\
        <source file='/evil' dev='/evil'><reservations><source path='/evil'/></reservations><dataStore><source file='/evil'/></dataStore></source>\
        <mirror><source file='/evil'/></mirror><backingStore type='file'><source file='/evil'/></backingStore>\
        <driver name='evil' type='vmdk'/><target dev='vda'/><evil/></disk></devices></domain>";
    let made = harmless(disk).definition;
    assert!(!made.contains("rawio") && !made.contains("sgio"), "{made}");
    let Own { files, .. } = own(disk).unwrap();
    assert_eq!(files, [PathBuf::from("/evil")].into());
    let chain = "<domain><devices><disk><source file='/top'/><backingStore><source file='/base'/></backingStore>\
        <mirror><source file='/copy'/></mirror></disk></devices></domain>";
    let files = own(chain).unwrap().files;
    assert!(["/top", "/base", "/copy"].iter().all(|file| files.contains(Path::new(file))), "with all that is below it");
}

#[test]
fn the_firmware_is_the_hosts_own() {
    for os in [
        "<kernel>/evil</kernel><initrd>/evil</initrd><cmdline>evil</cmdline><dtb>/evil</dtb>",
        "<shim>/evil</shim><init>/evil</init><initarg>evil</initarg>",
        "<acpi><table type='slic'>/evil</table></acpi>",
        "<loader type='rom'>/evil</loader>",
        "<loader readonly='no' type='pflash'>/usr/share/../../evil</loader>",
        "<loader type='pflash'>evil.fd</loader><nvram template='/evil' templateFormat='qcow2' format='qcow2'>/evil</nvram>",
        "<varstore template='/evil' path='/evil'/>",
        "<loader>/usr/share/OVMF/OVMF_CODE_4M.fd<!-- -->/../../../evil</loader>",
    ] {
        let Made { definition, warnings, .. } = harmless(&with("", os, ""));
        assert!(
            !warnings.is_empty() && !definition.contains("qcow2</") && !definition.contains("format='qcow2'"),
            "{definition}"
        );
    }
    harmless(&with("", "<nvram type='network'><source protocol='iscsi' name='evil'/></nvram>", ""));
    let writable = "<loader type='pflash' readonly='no'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>";
    let made = harmless(&with("", writable, "")).definition;
    assert!(made.contains("readonly='yes'") && made.contains("<nvram>/new/VARS.fd</nvram>"), "{made}");
    let own = harmless(&with("", "<loader type='pflash'>/evil</loader>", "")).definition;
    assert!(own.contains("<os firmware='efi'>"), "it is still one of that kind: {own}");
}

#[test]
fn labels_and_words_for_others_than_libvirt_are_left_out() {
    for rest in [
        "<seclabel type='none'/>",
        "<seclabel type='static' model='dac'><label>evil</label></seclabel>",
        "<seclabel type='dynamic' model='selinux'><baselabel>evil</baselabel></seclabel>",
        "<qemu:commandline><qemu:arg value='evil'/><qemu:env name='evil'/></qemu:commandline>",
        "<x:commandline xmlns:x='http://libvirt.org/schemas/domain/qemu/1.0'><x:arg value='evil'/></x:commandline>",
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='evil'/></commandline>",
        "<qemu:override><qemu:device alias='evil'/></qemu:override>",
        "<sysinfo type='fwcfg'><entry name='opt.a' file='/evil'/></sysinfo>",
        "<launchSecurity type='sev'><session>evil</session></launchSecurity>",
        "<resource><partition>/evil</partition></resource>",
        "<blkiotune><device><path>/dev/evil</path><weight>9</weight></device></blkiotune>",
        "<bootloader>/evil</bootloader>",
        "<idmap><uid start='0' target='0' evil='1'/></idmap>",
        "<cpu><x path='/evil'/></cpu>",
        // libvirt reads an attribute by its name, of whatever namespace.
        "<clock x:evil='/a'/>",
    ] {
        let Made { definition, warnings, .. } = harmless(&with("", "", rest));
        assert!(!definition.contains("seclabel") && !warnings.is_empty(), "{rest}: {definition}");
    }
    let prefixed = with("<x:disk type='file'><x:source file='/evil'/></x:disk>", "", "");
    harmless(&prefixed);
    let by_attribute = with("<interface type='bridge'><source x:bridge='evil'/></interface>", "", "");
    harmless(&by_attribute);
}

#[test]
fn what_is_no_qemu_domain_is_refused() {
    for definition in [
        "<domain type='lxc'><name>a</name></domain>",
        "<domain type='xen'><name>a</name></domain>",
        "<domain type='kvm' xmlns='urn:x'><name>a</name></domain>",
    ] {
        assert_eq!(Case::new().try_to_make(definition).unwrap_err().code, Code::DefinitionRefused, "{definition}");
    }
    let deep = with("", "", &format!("<features>{}{}</features>", "<a>".repeat(5000), "</a>".repeat(5000)));
    assert_eq!(Case::new().try_to_make(&deep).unwrap_err().code, Code::DefinitionRefused);
}

#[test]
fn what_would_eat_the_host_is_left_out() {
    for (devices, rest, gone) in [
        ("", "<memoryBacking><locked/><source type='file'/><access mode='shared'/></memoryBacking>", "locked"),
        ("", "<memoryBacking><source type='file'/></memoryBacking>", "source type"),
        ("", "<memoryBacking><access mode='shared'/></memoryBacking>", "access"),
        ("", "<cputune><vcpusched vcpus='0' scheduler='fifo' priority='99'/></cputune>", "fifo"),
        ("", "<cputune><emulatorsched scheduler='rr' priority='1'/></cputune>", "sched"),
        ("", "<cputune><iothreadsched iothreads='1' scheduler='fifo'/></cputune>", "sched"),
        ("", "<cpu><numa><cell id='0' memory='1' memAccess='shared'/></numa></cpu>", "memAccess"),
        ("", "<on_crash>coredump-restart</on_crash>", "coredump"),
        ("", "<on_crash> coredump-destroy </on_crash>", "coredump"),
        ("", "<on_poweroff>rename-restart</on_poweroff>", "rename"),
        ("<interface type='bridge' trustGuestRxFilters='yes'><source bridge='b'/></interface>", "", "trustGuest"),
        ("<memory model='dimm' access='shared'><target><size>1</size></target></memory>", "", "access"),
        ("<video><driver name='vhostuser'/><model type='virtio'/></video>", "", "vhostuser"),
        ("<watchdog model='i6300esb' action='dump'/>", "", "dump"),
    ] {
        let Made { definition, warnings, .. } = harmless(&with(devices, "", rest));
        assert!(!definition.contains(gone) && !warnings.is_empty(), "{gone}: {definition}");
    }
    let kept = "<cputune><shares>2048</shares><quota>1000</quota></cputune><on_crash>restart</on_crash>\
        <memoryBacking><hugepages/><nosharepages/></memoryBacking>";
    let Made { definition, warnings, .. } = harmless(&with("", "", kept));
    assert!(definition.contains(kept), "{definition}");
    assert_eq!(warnings.iter().filter(|line| line.contains("harmless")).count(), 0, "{warnings:?}");
}

#[test]
fn warnings_are_no_more_than_somebody_would_read() {
    let many: String = (0..1000).map(|number| format!("<evil{number}{}/>", "x".repeat(150))).collect();
    let warnings = harmless(&with(&many, "", "")).warnings;
    assert!(warnings.len() <= WARNINGS_MAX + 1, "{}", warnings.len());
    assert!(warnings.iter().all(|line| line.chars().count() <= WARNING_CHARACTERS_MAX), "{warnings:?}");
    assert!(warnings.last().unwrap().contains("more things"), "{warnings:?}");
}

/// As whoever wants the worker to have no memory or no time left writes one.
#[test]
fn a_definition_that_is_made_to_be_costly_is_refused_or_cheap() {
    let refused = |definition: &str| {
        let failure = Saved::read(definition).map(drop).unwrap_err();
        assert_eq!(failure.code, Code::DefinitionRefused, "{failure:#}");
    };
    let long = with("", "", &format!("<title>{}</title>", "x".repeat(DEFINITION_BYTES_MAX)));
    refused(&long);
    let attributes: String = (0..=ATTRIBUTES_MAX).map(|number| format!(" a{number}='/'")).collect();
    refused(&with("", "", &format!("<cpu{attributes}/>")));
    // What is left out is told in bounds while it is gathered: each path would else be as long as its element's name.
    let name = "n".repeat(60_000);
    let many = format!("<features><{name}>{}</{name}></features>", "<a b='/'/>".repeat(10_000));
    let mut warnings = Warnings::default();
    plain::plain(&with("", "", &many), &mut warnings).unwrap();
    kept::only_kept(&with("", "", &many), &BTreeSet::new(), &mut warnings).unwrap();
    let bytes: usize = warnings.into_told().iter().map(String::len).sum();
    assert!(bytes <= (WARNINGS_MAX + 1) * 4 * WARNING_CHARACTERS_MAX, "{bytes}");
}

/// Longest time for any of these, in a build without optimisation on a busy machine; each would take minutes, or all memory.
const COSTLY_MAX: Duration = Duration::from_secs(20);

#[test]
fn namespaces_cost_neither_memory_nor_time() {
    let refused = |metadata: &str| {
        let (begun, definition) = (Instant::now(), with("", "", &format!("<metadata>{metadata}</metadata>")));
        assert!(definition.len() <= DEFINITION_BYTES_MAX, "it is refused for its length alone");
        let failure = Saved::read(&definition).map(drop).unwrap_err();
        assert_eq!(failure.code, Code::DefinitionRefused, "{failure:#}");
        assert!(begun.elapsed() < COSTLY_MAX, "{:?}", begun.elapsed());
    };
    let declared = |count: usize| (0..count).map(|number| format!(" xmlns:a{number}='u{number}'")).collect::<String>();
    // Written anew at each element, in six bytes for each of its quotes.
    refused(&format!("<a xmlns=\"{}\">{}</a>", "'".repeat(130_000), "<c/>".repeat(30_000)));
    let own: String = (2..7000).map(|number| format!(" xmlns:own{number}='u'")).collect();
    refused(&format!("<a{own}><b xmlns='v'>{}</b></a>", "<c/>".repeat(10_000)));
    refused(&format!("<a{}>{}</a>", declared(5000), "<b xmlns:z='y'/>".repeat(5000)));
    let attributes: String = (0..=ATTRIBUTES_MAX).map(|number| format!(" a{number}='/'")).collect();
    refused(&format!("<a{attributes}/>"));

    // As much as is taken is written once, and not at each of those that are of it.
    let begun = Instant::now();
    let most = format!(
        "<metadata><a xmlns='urn:{}'{}>{}</a></metadata>",
        "x".repeat(60_000),
        declared(NAMESPACES_MAX - 4),
        "<c/>".repeat(20_000)
    );
    let made = harmless(&with("", "", &most)).definition;
    assert!(made.len() < WRITTEN_BYTES_MAX && made.matches("xmlns").count() < NAMESPACES_MAX, "{}", made.len());
    assert_eq!(own_of(&made), own_of(&with("", "", "")), "and it can be read");
    assert!(begun.elapsed() < COSTLY_MAX, "{:?}", begun.elapsed());
}

fn own_of(definition: &str) -> usize {
    own(definition).unwrap().mac_addresses.len()
}

/// libvirt nests them one in another: daily snapshots of two months.
#[test]
fn a_long_chain_of_backing_files_is_no_deep_definition() {
    let image = "<backingStore type='file'><format type='qcow2'/><source file='/images/old'/>";
    let chain = format!("{}<backingStore/>{}", image.repeat(64), "</backingStore>".repeat(64));
    let disk = "<source file='/images/a'/><target dev='vda'/></disk>";
    let definition = with("", "", "").replacen(disk, &format!("{chain}<mirror>{chain}</mirror>{disk}"), 1);
    let Made { definition, warnings, .. } = harmless(&definition);
    assert!(!definition.contains("backingStore") && !definition.contains("mirror"), "{definition}");
    assert_eq!(warnings, harmless(&with("", "", "")).warnings);
}
