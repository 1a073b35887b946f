//! Domain definitions as libvirt writes them, and hostile ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use proptest::prelude::*;

use super::super::pools::NoPools;
use super::*;
use crate::model::instance::PoolVolume;

const DOMAIN: &str = r#"<domain type='kvm' id='7'>
  <name>web &amp; db</name>
  <uuid>0b7f1f7e-6a55-4a0f-9f0e-7d2b6c0f6d11</uuid>
  <os><type>hvm</type><nvram template='/usr/share/OVMF/VARS.fd'> /var/lib/nvram/web.fd </nvram></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='/pool/a b&apos;c.qcow2' index='2'/>
      <backingStore type='file'><format type='qcow2'/><source file='/pool/base.qcow2'/></backingStore>
      <target dev='vda' bus='virtio'/><serial>root-1</serial>
    </disk>
    <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vg/data'/>
      <target dev='vdb' bus='virtio'/><shareable/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'><host name='mon'/></source><target dev='vdc' bus='virtio'/><transient/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='vmdk'/><source file='/pool/x.vmdk'/><target dev='vdd'/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
  </devices>
</domain>"#;

/// A host with a pool of files and one of devices, and one that nobody can be asked for just now.
struct TwoPools;

impl Pools for TwoPools {
    fn place(&self, PoolVolume { pool, volume }: &PoolVolume) -> Result<Option<Place>, Failure> {
        Ok(match pool.as_str() {
            "files" => Some(Place::File(format!("/files/{volume}").into())),
            "devices" => Some(Place::Device(format!("/dev/vg/{volume}").into())),
            "silent" => return Err(Failure::new(Code::HypervisorUnavailable, "no answer")),
            _ => None,
        })
    }
}

fn parsed(xml: &str) -> Result<Instance, Failure> {
    instance(xml, xml.to_owned(), PowerState::Running, false, &NoPools)
}

fn with_devices(devices: &str) -> String {
    format!("<domain><uuid>0b7f1f7e-6a55-4a0f-9f0e-7d2b6c0f6d11</uuid><name>a</name>{devices}</domain>")
}

#[test]
fn an_agent_is_connected_when_its_guest_has_the_channel_open() {
    assert!(parsed(DOMAIN).unwrap().agent_connected);
    let found = parsed(&DOMAIN.replace("state='connected'", "state='disconnected'")).unwrap();
    assert!(found.agent_configured && !found.agent_connected);
}

#[test]
fn state_that_no_backup_holds_is_named() {
    assert_eq!(parsed(DOMAIN).unwrap().unrecorded, Vec::<String>::new());
    let nvram = "<os><nvram type='network'><source protocol='rbd' name='p/i'/></nvram></os>";
    let found = parsed(&with_devices(nvram)).unwrap();
    assert!(found.nvram.is_none() && found.unrecorded.iter().any(|text| text.contains("`network`")), "{found:?}");
    let tpm = "<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>";
    assert!(parsed(&with_devices(tpm)).unwrap().unrecorded.iter().any(|text| text.contains("TPM")));
    let saved = instance(DOMAIN, DOMAIN.to_owned(), PowerState::ShutOff, true, &NoPools).unwrap();
    assert!(saved.saved_memory && saved.unrecorded.iter().any(|text| text.contains("memory")), "{saved:?}");
}

#[test]
fn a_chain_is_pinned_where_the_definition_names_it_and_not_where_libvirt_found_it() {
    let with = |source: &str, beside: &str| {
        with_devices(&format!(
            "<devices><disk type='file'><source file='/a'>{source}</source>{beside}<target dev='vda'/></disk></devices>"
        ))
    };
    let store = |name: &str| format!("<{name} type='file'><format type='raw'/><source file='/base'/></{name}>");
    let (backing, data) = (store("backingStore"), store("dataStore"));
    let found = with("", &backing);
    for (defined, pinned) in [
        (with("", ""), false),
        (with("", "<backingStore/>"), false),
        (with("", &backing), true),
        (with(&data, ""), true),
        (with(&data, "<backingStore/>"), true),
    ] {
        let disks = instance(&found, defined.clone(), PowerState::Running, false, &NoPools).unwrap().disks;
        assert_eq!(disks.first().unwrap().pinned_chain, pinned, "{defined}");
    }
    for (found, elsewhere) in [(with("", ""), false), (with(&data, ""), true), (with("<dataStore/>", ""), false)] {
        let disks = instance(&found, with("", ""), PowerState::Running, false, &NoPools).unwrap().disks;
        assert_eq!(disks.first().unwrap().data_elsewhere, elsewhere, "{found}");
    }
}

#[test]
fn a_disk_without_which_the_instance_starts_is_known() {
    for (policy, may) in [("", false), ("startupPolicy='mandatory'", false), ("startupPolicy='optional'", true)] {
        let defined = with_devices(&format!(
            "<devices><disk type='file'><source file='/a' {policy}/><target dev='vda'/></disk></devices>"
        ));
        let disks = instance(&defined, defined.clone(), PowerState::ShutOff, false, &NoPools).unwrap().disks;
        assert_eq!(disks.first().unwrap().may_be_missing, may, "{policy}");
    }
}

#[test]
fn what_an_instance_runs_with_is_kept_where_its_definition_has_other_disks() {
    let disk =
        |target: &str, file: &str| format!("<disk type='file'><source file='{file}'/><target dev='{target}'/></disk>");
    let drive = "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/></disk>";
    let with = |disks: &[&str]| with_devices(&format!("<devices>{}</devices>", disks.concat()));
    let (vda, moved, vdb) = (disk("vda", "/a"), disk("vda", "/b"), disk("vdb", "/c"));
    for (live, defined, differs) in [
        (with(&[&vda]), with(&[&vda]), false),
        (with(&[&vda, drive]), with(&[&vda]), false),
        (with(&[&vda, &vdb]), with(&[&vda]), true),
        (with(&[&moved]), with(&[&vda]), true),
        (with(&[]), with(&[&vda]), true),
    ] {
        let found = instance(&live, defined.clone(), PowerState::Running, false, &NoPools).unwrap();
        assert_eq!(found.live_definition, differs.then_some(live.clone()), "{live} {defined}");
        assert_eq!(instance(&live, defined, PowerState::ShutOff, false, &NoPools).unwrap().live_definition, None);
    }
}

#[test]
fn a_disk_of_files_has_no_other_source_anywhere_in_its_chain() {
    let end = "<backingStore/>";
    let chain = |target: &str, kind: &str| {
        format!(
            "<disk type='file'><target dev='{target}'/><backingStore type='{kind}'><format type='raw'/>{end}</backingStore></disk>"
        )
    };
    let device = "<disk type='block'><target dev='vdc'/></disk>";
    let xml = with_devices(&format!("<devices>{}{}{device}</devices>", chain("vda", "file"), chain("vdb", "network")));
    assert_eq!(file_chains(&xml, &NoPools).unwrap().into_iter().collect::<Vec<_>>(), ["vda"]);
}

#[test]
fn a_volume_of_a_pool_is_where_the_pool_has_it() {
    let disk = |target: &str, source: &str, format: &str| {
        format!(
            "<disk type='volume'><driver name='qemu' type='{format}'/><source {source}/><target dev='{target}'/></disk>"
        )
    };
    let disks = [
        disk("vda", "pool='files' volume='a.qcow2'", "qcow2"),
        disk("vdb", "pool='devices' volume='b'", "raw"),
        disk("vdc", "pool='nowhere' volume='c'", "raw"),
        disk("vdd", "pool='devices' volume='unit:0:0:1' mode='direct'", "raw"),
    ];
    let xml = with_devices(&format!("<devices>{}</devices>", disks.concat()));
    let found = instance(&xml, xml.clone(), PowerState::Running, false, &TwoPools).unwrap();
    assert_eq!(found.live_definition, None, "both say the same");
    let [file, device, nowhere, direct] = &found.disks[..] else { panic!("four disks") };
    let path = PathBuf::from("/files/a.qcow2");
    assert_eq!(file.source, Some(DiskSource::File { path, format: ImageFormat::Qcow2 }));
    assert_eq!(device.source, Some(DiskSource::Block { path: "/dev/vg/b".into(), format: ImageFormat::Raw }));
    for unknown in [nowhere, direct] {
        assert_eq!(unknown.source, Some(DiskSource::Other { kind: "volume".into() }));
    }
    let named = |pool: &str, volume: &str| Some(PoolVolume { pool: pool.into(), volume: volume.into() });
    assert_eq!((&file.pool_volume, &nowhere.pool_volume), (&named("files", "a.qcow2"), &named("nowhere", "c")));
    assert_eq!(file_chains(&xml, &TwoPools).unwrap().into_iter().collect::<Vec<_>>(), ["vda"]);
    // Where it is cannot be told just now: it is not taken for one of another kind.
    let silent = with_devices(&format!("<devices>{}</devices>", disk("vda", "pool='silent' volume='a'", "raw")));
    let failure = instance(&silent, silent.clone(), PowerState::Running, false, &TwoPools).unwrap_err();
    assert_eq!(failure.code, Code::HypervisorUnavailable);
    assert_eq!(file_chains(&silent, &TwoPools).unwrap_err().code, Code::HypervisorUnavailable);
}

#[test]
fn an_instance_is_read_with_its_disks_in_order() {
    let instance = parsed(DOMAIN).unwrap();
    assert_eq!(instance.name.as_str(), "web & db");
    assert!(instance.agent_configured);
    assert_eq!(instance.nvram, Some(PathBuf::from("/var/lib/nvram/web.fd")));
    let targets: Vec<&str> = instance.disks.iter().map(|disk| disk.target.as_str()).collect();
    assert_eq!(targets, ["vda", "vdb", "vdc", "vdd", "sda"]);

    let [root, data, rbd, vmdk, cdrom] = &instance.disks[..] else { panic!("five disks") };
    let path = PathBuf::from("/pool/a b'c.qcow2");
    assert_eq!(root.source, Some(DiskSource::File { path, format: ImageFormat::Qcow2 }), "not its backing file");
    assert_eq!(root.serial.as_deref(), Some("root-1"));
    assert!(data.shareable && !root.shareable);
    assert!(matches!(data.source, Some(DiskSource::Block { format: ImageFormat::Raw, .. })));
    assert!(rbd.transient);
    assert!(matches!(
        &rbd.source,
        Some(DiskSource::Network { protocol, name, .. }) if protocol == "rbd" && name == "pool/image"
    ));
    assert_eq!(vmdk.source, Some(DiskSource::Other { kind: "file in format vmdk".into() }));
    assert_eq!((cdrom.device, cdrom.read_only, &cdrom.source), (DiskDevice::Cdrom, true, &None));
}

#[test]
fn an_encrypted_disk_is_known_wherever_its_definition_says_so() {
    let source = "<source file='/pool/a.qcow2'/>";
    let secret = "<encryption format='luks'><secret type='passphrase' uuid='0b7f1f7e-6a55-4a0f-9f0e-7d2b6c0f6d11'/></encryption>";
    let inside = format!("<source file='/pool/a.qcow2'>{secret}</source>");
    for (disk, encrypted) in [(source.to_owned(), false), (inside, true), (format!("{source}{secret}"), true)] {
        let xml = format!(
            "<domain><uuid>0b7f1f7e-6a55-4a0f-9f0e-7d2b6c0f6d11</uuid><name>a</name><devices>\
             <disk type='file'>{disk}<target dev='vda'/></disk></devices></domain>"
        );
        assert_eq!(parsed(&xml).unwrap().disks.first().unwrap().encrypted, encrypted, "{disk}");
    }
}

#[test]
fn odd_and_hostile_descriptions_are_failures() {
    let uuid = "<uuid>0b7f1f7e-6a55-4a0f-9f0e-7d2b6c0f6d11</uuid>";
    for (xml, code) in [
        (String::new(), Code::HypervisorFailed),
        ("<domain>".into(), Code::HypervisorFailed),
        ("<domainbackup/>".into(), Code::HypervisorFailed),
        ("<domain><name>a</name></domain>".into(), Code::HypervisorFailed),
        (format!("<domain>{uuid}<name>a/../b</name></domain>"), Code::HypervisorFailed),
        (
            format!("<domain>{uuid}<name>a</name><devices><disk><target dev='../vda'/></disk></devices></domain>"),
            Code::DiskUnsupported,
        ),
        (format!("<domain>{uuid}<name>a</name><devices><disk/></devices></domain>"), Code::DiskUnsupported),
        (
            format!("<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain>{uuid}<name>&x;</name></domain>"),
            Code::HypervisorFailed,
        ),
        (format!("<domain>{}</domain>", "x".repeat(XML_BYTES_MAX)), Code::HypervisorFailed),
        (format!("<domain>{}</domain>", "<a/>".repeat(XML_NODES_MAX as usize)), Code::HypervisorFailed),
    ] {
        let failure = parsed(&xml).expect_err(&xml[..xml.len().min(120)]);
        assert_eq!(failure.code, code, "{failure:#}");
    }
}

#[test]
fn elements_nested_without_end_are_refused_or_read_but_do_not_overflow() {
    let depth = 150_000;
    let xml = format!("<domain>{}{}</domain>", "<a>".repeat(depth), "</a>".repeat(depth));
    let small_stack = std::thread::Builder::new().stack_size(512 * 1024);
    let outcome = small_stack.spawn(move || parsed(&xml).map(drop)).unwrap().join().expect("no overflow");
    assert!(outcome.is_err(), "it has no uuid");
}

#[test]
fn a_backup_job_is_known_by_its_socket_or_its_files() {
    let pull = "<domainbackup mode='pull' id='1'><server transport='unix' socket='/run/a.sock'/></domainbackup>";
    assert_eq!(backup_job(pull).unwrap(), DomainJob::Pull { socket: "/run/a.sock".into() });
    let tcp = "<domainbackup mode='pull'><server transport='tcp' name='localhost' port='10809'/></domainbackup>";
    assert_eq!(backup_job(tcp).unwrap(), DomainJob::Other);
    let push = "<domainbackup mode='push'><disks><disk name='vda' backup='yes' type='file'><target file='/s/vda.qcow2'/></disk>
        <disk name='vdb' backup='no'/></disks></domainbackup>";
    assert_eq!(backup_job(push).unwrap(), DomainJob::Push { images: vec!["/s/vda.qcow2".into()] });
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,400}") {
        let _ = parsed(&text);
        let _ = backup_job(&text);
        let _ = targets(&text);
    }

    #[test]
    fn no_cut_or_changed_description_makes_it_panic(at in 0..DOMAIN.len(), put in "[<>/='a-z&;]{0,8}", cut in 0..40_usize) {
        let end = (at + cut).min(DOMAIN.len());
        let changed = format!("{}{put}{}", &DOMAIN[..at], &DOMAIN[end..]);
        let _ = parsed(&changed);
        let _ = targets(&changed);
        let _ = file_chains(&changed, &NoPools);
    }
}
