//! Definitions as management servers write them, as libvirt shows them of what runs, and as somebody would who means the host ill.
#![allow(clippy::unwrap_used)]

mod decoys;
mod hostile;

use roxmltree::Document;

use super::*;
use crate::failure::Code;

const RUNNING: &str = include_str!("../../../../tests/fixtures/domain-running.xml");
const ID: &str = "0198f3c2-7d30-7cc3-98c4-dc0c0c07398f";

struct Case {
    name: InstanceName,
    mac_addresses: MacAddresses,
    taken: BTreeSet<String>,
    volumes: BTreeMap<DiskTarget, (PathBuf, ImageFormat)>,
    left_out: BTreeMap<DiskTarget, String>,
    nvram: Option<PathBuf>,
    nvram_is_restored: bool,
}

impl Case {
    fn new() -> Self {
        let volume = |target: &str, path: &str, format| (target.parse().unwrap(), (PathBuf::from(path), format));
        Self {
            name: "web <2>".parse().unwrap(),
            mac_addresses: MacAddresses::New,
            taken: BTreeSet::new(),
            volumes: [
                volume("vda", "/new/it's a.qcow2", ImageFormat::Qcow2),
                volume("sda", "/new/b.raw", ImageFormat::Raw),
            ]
            .into(),
            left_out: [("vdc".parse().unwrap(), "nobody wants it".to_owned())].into(),
            nvram: Some("/new/VARS.fd".into()),
            nvram_is_restored: true,
        }
    }

    fn made(&self, definition: &str) -> Made {
        self.try_to_make(definition).unwrap()
    }

    fn try_to_make(&self, definition: &str) -> Result<Made, Failure> {
        let saved = Saved::read(definition)?;
        let volumes = self.volumes.clone().into_iter();
        let volumes = volumes.filter(|(target, _)| saved.disk_targets.contains(target.as_str())).collect();
        saved.another(&self.wanted(&volumes))
    }

    fn wanted<'c>(&'c self, volumes: &'c BTreeMap<DiskTarget, (PathBuf, ImageFormat)>) -> Another<'c> {
        Another {
            id: ID.parse().unwrap(),
            name: &self.name,
            mark: Mark { by: "job/1/1".to_owned(), backup: ID.parse().unwrap() },
            mac_addresses: self.mac_addresses,
            taken: &self.taken,
            volumes,
            left_out: &self.left_out,
            nvram: self.nvram.as_deref(),
            nvram_is_restored: self.nvram_is_restored,
        }
    }

    fn of_running(&self) -> String {
        self.made(RUNNING).definition
    }
}

/// The one element of that name under which `holds` is so.
fn find<'a>(document: &'a Document<'_>, name: &str, holds: impl Fn(&Node<'_, '_>) -> bool) -> Option<Node<'a, 'a>> {
    let mut found = document.descendants().filter(|node| node.has_tag_name(name) && holds(node));
    let first = found.next();
    assert!(found.next().is_none(), "several `{name}`");
    first
}

fn disk<'a>(document: &'a Document<'_>, target: &str) -> Option<Node<'a, 'a>> {
    find(document, "disk", |disk| disks::target(*disk) == Some(target))
}

#[test]
fn another_instance_is_one_by_name_uuid_and_everything_that_repeats_them() {
    let made = Case::new().of_running();
    let document = Document::parse(&made).unwrap();
    let domain = document.root_element();
    let text = |name| text_of(find(&document, name, |_| true).unwrap()).to_owned();
    assert_eq!((text("name").as_str(), text("uuid").as_str(), text("genid").as_str()), ("web <2>", ID, ""));
    assert_eq!(text("title"), "Web & mail");
    assert!(!domain.has_attribute("id"));
    for entry in ["serial", "uuid"] {
        let found = find(&document, "entry", |node| node.attribute("name") == Some(entry)).unwrap();
        assert_eq!(text_of(found), ID, "{entry}");
    }
    assert!(!made.to_lowercase().contains("5a1d5c4e") && !made.contains("i-2-34-VM"), "{made}");
    assert!(find(&document, "seclabel", |_| true).is_none());
    assert!(find(&document, "os", |os| os.tag_name().namespace().is_some()).is_some(), "others' words stay: {made}");
    assert!(!made.contains("qemu:") && !made.contains("-no-hpet") && !made.contains("emulator>"), "{made}");
    assert_eq!(own(&made).unwrap().restored_by.as_deref(), Some("job/1/1"));
    assert_eq!(made.matches("urn:longshore:restored:1").count(), 1, "it was restored once before");
    let aliases: Vec<_> = document.descendants().filter(|node| node.has_tag_name("alias")).collect();
    assert_eq!(aliases.iter().map(|alias| alias.attribute("name")).collect::<Vec<_>>(), [Some("ua-data")]);
}

#[test]
fn disks_get_their_volumes_and_nothing_of_the_old_sources_stays() {
    let case = Case::new();
    let made = case.of_running();
    let document = Document::parse(&made).unwrap();
    let vda = disk(&document, "vda").unwrap();
    assert_eq!(child(vda, "source").unwrap().attribute("file"), Some("/new/it's a.qcow2"));
    assert!(child(vda, "source").unwrap().children().next().is_none(), "no label of the old one");
    let driver = child(vda, "driver").unwrap();
    let attributes = ["type", "cache", "io", "discard"].map(|name| driver.attribute(name).unwrap());
    assert_eq!(attributes, ["qcow2", "none", "native", "unmap"]);
    assert!(child(driver, "metadata_cache").is_some());
    assert_eq!(child(vda, "serial").map(text_of), Some("web-root"));
    assert!(child(vda, "backingStore").is_none() && child(vda, "address").is_some() && child(vda, "boot").is_some());

    let sda = disk(&document, "sda").unwrap();
    assert_eq!((sda.attribute("type"), sda.attribute("device")), (Some("file"), Some("disk")));
    assert_eq!(child(sda, "source").unwrap().attribute("file"), Some("/new/b.raw"));
    assert!(["auth", "encryption", "shareable"].iter().all(|name| child(sda, name).is_none()), "{made}");
    assert!(!sda.has_attribute("sgio") && !sda.has_attribute("rawio"));

    assert!(disk(&document, "vdc").is_none());
    let file = |target| child(disk(&document, target).unwrap(), "source").and_then(|source| source.attribute("file"));
    assert_eq!((file("sdb"), file("sdc"), file("fda")), (None, None, None), "the drives are there, and empty");

    let warnings = case.made(RUNNING).warnings;
    for (what, how) in [
        ("`vdc`", "nobody wants it"),
        ("`sdb`", "empty drives"),
        ("`fda`", "empty drives"),
        ("`sda`", "encrypted"),
        ("`sda`", "passed through"),
        ("`commandline`", "harmless"),
    ] {
        assert!(warnings.iter().any(|line| line.contains(what) && line.contains(how)), "{what}, {how}: {warnings:?}");
    }
}

#[test]
fn a_volume_in_another_format_is_read_in_that() {
    let mut case = Case::new();
    case.volumes.insert("vda".parse().unwrap(), ("/new/a.raw".into(), ImageFormat::Raw));
    let made = case.of_running();
    let document = Document::parse(&made).unwrap();
    let driver = child(disk(&document, "vda").unwrap(), "driver").unwrap();
    assert_eq!((driver.attribute("type"), child(driver, "metadata_cache")), (Some("raw"), None));
}

#[test]
fn a_disk_without_driver_gets_one() {
    let bare = "<domain><name>a</name><devices><disk><target dev='vda'/></disk></devices></domain>";
    let made = Case::new().made(bare).definition;
    let document = Document::parse(&made).unwrap();
    assert_eq!(text_of(find(&document, "uuid", |_| true).unwrap()), ID);
    let vda = disk(&document, "vda").unwrap();
    assert_eq!(child(vda, "driver").unwrap().attribute("type"), Some("qcow2"));
    assert_eq!(vda.attribute("type"), Some("file"));
}

fn macs(definition: &str) -> Vec<String> {
    own(definition).unwrap().mac_addresses.into_iter().collect()
}

#[test]
fn new_mac_addresses_are_nobodys_and_always_the_same() {
    let mut case = Case::new();
    let made = case.of_running();
    let first = macs(&made);
    assert_eq!(first.len(), 2, "the one that is passed through is gone: {first:?}");
    assert!(first.iter().all(|mac| mac.starts_with("52:54:00:")));
    assert_eq!(macs(&case.of_running()), first);
    case.taken = first.iter().cloned().collect();
    assert!(macs(&case.of_running()).iter().all(|mac| !first.contains(mac)));

    let document = Document::parse(&made).unwrap();
    assert!(
        find(&document, "parameters", |_| true)
            .is_some_and(|node| { !node.has_attribute("interfaceid") && node.attribute("profileid") == Some("p") })
    );
    assert!(!made.contains("portid") && !made.contains("vnet3") && !made.contains("tap-web"), "{made}");
}

#[test]
fn preserved_mac_addresses_stay_with_their_ports() {
    let mut case = Case::new();
    case.mac_addresses = MacAddresses::Preserve;
    let made = case.of_running();
    assert_eq!(macs(&made), ["02:00:4c:5f:00:01", "02:00:4c:5f:00:02"]);
    assert!(made.contains("interfaceid") && !made.contains("vnet3"));
}

#[test]
fn the_firmwares_variables_are_its_own() {
    let mut case = Case::new();
    let nvram = |made: &str| {
        let document = Document::parse(made).unwrap();
        let nvram = find(&document, "nvram", |_| true).unwrap();
        let attributes = [nvram.attribute("template"), nvram.attribute("format"), nvram.attribute("type")];
        (attributes.map(|value| value.map(str::to_owned)), text_of(nvram).to_owned())
    };
    let (attributes, path) = nvram(&case.of_running());
    assert_eq!(path, "/new/VARS.fd");
    assert_eq!(attributes, [Some("/usr/share/OVMF/OVMF_VARS_4M.fd".to_owned()), Some("raw".to_owned()), None]);
    case.nvram = None;
    assert!(find(&Document::parse(&case.of_running()).unwrap(), "nvram", |_| true).is_none());
    (case.nvram, case.nvram_is_restored) = (Some("/new/VARS.fd".into()), false);
    let (_, path) = nvram(&case.of_running());
    assert_eq!(path, "/new/VARS.fd", "libvirt makes it from the template, and no other is there");
    assert!(case.made(RUNNING).warnings.iter().any(|line| line.contains("firmware's variables")));
    let as_source = "<domain><os><nvram type='file'><source file='/n'/></nvram></os></domain>";
    let elsewhere = "<domain><os><nvram type='network'><source protocol='nbd'/></nvram></os></domain>";
    let of = |definition: &str| Saved::read(definition).unwrap().variables;
    assert_eq!(of(RUNNING), Variables::InFile);
    assert_eq!((of(as_source), of(elsewhere)), (Variables::InFile, Variables::Elsewhere));
    assert_eq!(of(&RUNNING.replace(" format='raw'>/var", " format='qcow2'>/var")), Variables::Elsewhere, "an image");
    assert_eq!(of("<domain><os firmware='efi'/></domain>"), Variables::Elsewhere, "wherever libvirt puts them");
    assert_eq!(of("<domain><os><loader type='pflash' stateless='yes'>/f</loader></os></domain>"), Variables::None);
    assert_eq!(of("<domain><os><type>hvm</type></os></domain>"), Variables::None);
    assert!(case.made(elsewhere).definition.contains("<nvram>/new/VARS.fd</nvram>"));
    let none_said = case.made("<domain><os firmware='efi'/></domain>").definition;
    assert!(none_said.contains("<nvram>/new/VARS.fd</nvram>"), "{none_said}");
    assert_eq!(own(as_source).unwrap().files, [PathBuf::from("/n")].into());
}

/// Fedora's, of which libvirt would else make variables that the firmware cannot read.
#[test]
fn variables_that_are_made_anew_are_in_the_format_of_the_firmware() {
    let firmware = |template: &str, formats: &str| {
        format!(
            "<domain><os><loader type='pflash' readonly='yes' format='qcow2'>/usr/share/edk2/ovmf/CODE_4M.qcow2</loader>\
             <nvram template='{template}' {formats}>/var/web.qcow2</nvram></os></domain>"
        )
    };
    let (fedoras, both) = ("/usr/share/edk2/ovmf/VARS_4M.qcow2", "templateFormat='qcow2' format='qcow2'");
    assert_eq!(Saved::read(&firmware(fedoras, both)).unwrap().variables, Variables::Elsewhere);
    let mut case = Case::new();
    case.nvram_is_restored = false;
    let kept = case.made(&firmware(fedoras, both)).definition;
    assert!(kept.contains(&format!("<nvram template='{fedoras}' {both}>/new/VARS.fd</nvram>")), "{kept}");
    let odd = case.made(&firmware(fedoras, "templateFormat='vmdk' format='luks'")).definition;
    assert!(odd.contains(&format!("<nvram template='{fedoras}'>")), "{odd}");
    let another = case.made(&firmware("/images/VARS_4M.qcow2", both)).definition;
    assert!(another.contains("<nvram format='raw'>/new/VARS.fd</nvram>"), "{another}");
    case.nvram_is_restored = true;
    let restored = case.made(&firmware(fedoras, both)).definition;
    assert!(
        restored.contains(&format!("<nvram template='{fedoras}' format='raw'>")),
        "what is restored is no image: {restored}"
    );
    let store = "<domain><os firmware='efi'><varstore template='/usr/share/a'/><nvram>/a</nvram></os></domain>";
    assert_eq!(Saved::read(store).unwrap().variables, Variables::None, "libvirt has it where it wants");
}

#[test]
fn graphics_are_shown_to_the_host_alone() {
    for (graphics, listens) in [
        ("<graphics type='vnc' listen='0.0.0.0'><listen type='address' address='0.0.0.0'/></graphics>", 2),
        ("<graphics type='spice' autoport='yes'><listen type='address' address='::'/></graphics>", 1),
        ("<graphics type='vnc'><listen type='network' network='public' address='10.0.0.7'/></graphics>", 1),
        ("<graphics type='vnc'><listen type='socket'/><listen type='address' address='10.0.0.7'/></graphics>", 1),
        ("<graphics type='vnc' listen='127.0.0.1'/>", 1),
        ("<graphics type='vnc'/>", 0),
    ] {
        let Made { definition, warnings, .. } = Case::new().made(&hostile::with(graphics, "", ""));
        assert_eq!(definition.matches("'127.0.0.1'").count(), listens, "{definition}");
        for other in ["0.0.0.0", "'::'", "10.0.0.7", "network"] {
            assert!(!definition.contains(other), "{other}: {definition}");
        }
        let is_told = warnings.iter().any(|line| line.contains("password"));
        assert_eq!(is_told, graphics.contains("<listen"), "{graphics}: {warnings:?}");
    }
    let sixth = "<graphics type='vnc' listen='::1'><listen type='address' address='::1'/></graphics>";
    assert!(Case::new().made(&hostile::with(sixth, "", "")).definition.contains("listen='::1'"));
}

#[test]
fn nothing_listens_where_the_first_instance_does() {
    let case = Case::new();
    let made = case.of_running();
    let document = Document::parse(&made).unwrap();
    for taken in
        ["/dev/pts/4", "4555", "telnet", "/var/log/web.log", "5907", "5908", "5909", "/run/web.spice", "10.0.0.7"]
    {
        assert!(!made.contains(taken), "{taken} in {made}");
    }
    let agent = find(&document, "channel", |node| node.attribute("type") == Some("unix")).unwrap();
    assert!(child(agent, "source").is_none() && child(agent, "target").is_some());
    let vnc = find(&document, "graphics", |node| node.attribute("type") == Some("vnc")).unwrap();
    assert_eq!((vnc.attribute("autoport"), vnc.attribute("listen")), (Some("yes"), Some("127.0.0.1")));
    let serial: Vec<_> = document.descendants().filter(|node| node.has_tag_name("serial")).collect();
    let kinds: Vec<_> = serial.iter().filter_map(|node| node.attribute("type")).collect();
    assert_eq!(kinds, ["pty", "pty"]);
    let warnings = case.made(RUNNING).warnings;
    for what in ["`5907`", "`tcp`", "logged", "`10.0.0.7`"] {
        assert!(warnings.iter().any(|line| line.contains(what)), "{what}: {warnings:?}");
    }
}

#[test]
fn what_only_one_instance_can_have_is_left_out_and_told() {
    let case = Case::new();
    let Made { definition, warnings, memory_bytes } = case.made(RUNNING);
    assert_eq!(memory_bytes, 4 << 30);
    let document = Document::parse(&definition).unwrap();
    for name in ["hostdev", "memory"] {
        let found = find(&document, name, |node| node.parent().is_some_and(|parent| parent.has_tag_name("devices")));
        assert!(found.is_none(), "{name}");
    }
    assert!(find(&document, "interface", |node| node.attribute("type") == Some("hostdev")).is_none());
    let cid = find(&document, "cid", |_| true).unwrap();
    assert_eq!((cid.attribute("auto"), cid.attribute("address")), (Some("yes"), None));
    for what in ["`hostdev`", "nvdimm", "TPM", "vsock", "tap-web"] {
        assert!(warnings.iter().any(|line| line.contains(what)), "{what}: {warnings:?}");
    }
    assert!(definition.contains("tpm-crb"), "it gets an empty one");
}

#[test]
fn what_a_definition_has_of_its_own_is_told() {
    let Own { mac_addresses, files, restored_by, .. } = own(RUNNING).unwrap();
    assert!(mac_addresses.contains("02:00:4c:5f:00:01"), "in lower case: {mac_addresses:?}");
    assert!(files.contains(Path::new("/images/web.qcow2")) && files.contains(Path::new("/images/swap.raw")));
    assert!(files.contains(Path::new("/var/lib/libvirt/qemu/nvram/i-2-34-VM_VARS.fd")));
    assert_eq!(restored_by.as_deref(), Some("an earlier one"));
    assert_eq!(own("<domain/>").unwrap(), Own::default());
    let pooled = own("<domain><devices><disk type='volume'><source pool='files' volume='a'/>\
                      <backingStore type='volume'><source pool='files' volume='base'/></backingStore></disk>\
                      <disk type='volume'><source pool='luns' volume='unit:0:0:1' mode='direct'/></disk></devices></domain>");
    let named = |volume: &str| PoolVolume { pool: "files".to_owned(), volume: volume.to_owned() };
    assert_eq!(pooled.unwrap().pool_volumes, ["a", "base"].map(named).into());
    assert_eq!(own("<volume/>").unwrap_err().code, Code::BackupDamaged);
    let targets = disk_targets(RUNNING).unwrap();
    assert!(["vda", "sda", "vdc", "sdb", "fda"].iter().all(|target| targets.contains(*target)));
}
