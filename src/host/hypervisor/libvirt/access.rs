//! How a definition says that a volume on the network is reached. Pure.

use roxmltree::Node;

use super::parse::{attribute, child, children};
use crate::model::network::{NetworkAccess, NetworkHost, SecretRef};

/// By the elements of a disk and of its source: the proof of who asks may stand in either.
pub(super) fn of(disk: Node<'_, '_>, source: Node<'_, '_>) -> NetworkAccess {
    let hosts = children(source, "host").filter_map(|host| {
        let port = attribute(host, "port").and_then(|port| port.parse().ok());
        // One that is reached over a socket of this host has no name, and none of the protocols that are read here has such.
        Some(NetworkHost { name: attribute(host, "name")?.to_owned(), port })
    });
    let auth = child(disk, "auth").or_else(|| child(source, "auth"));
    NetworkAccess {
        hosts: hosts.collect(),
        config: child(source, "config").and_then(|config| attribute(config, "file")).map(Into::into),
        user: auth.and_then(|auth| attribute(auth, "username")).map(str::to_owned),
        secret: auth.and_then(|auth| child(auth, "secret")).and_then(secret),
        snapshot: child(source, "snapshot").and_then(|snapshot| attribute(snapshot, "name")).map(str::to_owned),
    }
}

fn secret(secret: Node<'_, '_>) -> Option<SecretRef> {
    let by_uuid = attribute(secret, "uuid").and_then(|uuid| uuid.parse().ok()).map(SecretRef::Uuid);
    by_uuid.or_else(|| attribute(secret, "usage").map(|name| SecretRef::Usage(name.to_owned())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pools::NoPools;
    use super::*;
    use crate::model::instance::{DiskSource, ImageFormat};

    fn access(disk: &str) -> NetworkAccess {
        let xml = format!(
            "<domain><devices><disk type='network'><driver type='qcow2'/><target dev='vda'/>{disk}</disk></devices></domain>"
        );
        let disks = super::super::parse::disks(&xml, &NoPools).unwrap();
        match disks.into_iter().next().unwrap().source.unwrap() {
            DiskSource::Network { protocol, name, format: ImageFormat::Qcow2, access } => {
                assert_eq!((protocol.as_str(), name.as_str()), ("rbd", "pool/space/image"));
                *access
            }
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn the_way_is_read_wherever_libvirt_lets_it_stand() {
        let uuid = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f";
        let hosts = "<host name='mon1' port='6321'/><host name='::1'/><config file='/etc/ceph/x.conf'/>";
        let auth = format!("<auth username='vm'><secret type='ceph' uuid='{uuid}'/></auth>");
        let source = |inside: &str| format!("<source protocol='rbd' name='pool/space/image'>{inside}</source>");
        let expected = NetworkAccess {
            hosts: vec![
                NetworkHost { name: "mon1".into(), port: Some(6321) },
                NetworkHost { name: "::1".into(), port: None },
            ],
            config: Some("/etc/ceph/x.conf".into()),
            user: Some("vm".into()),
            secret: Some(SecretRef::Uuid(uuid.parse().unwrap())),
            snapshot: None,
        };
        assert_eq!(access(&format!("{auth}{}", source(hosts))), expected);
        assert_eq!(access(&source(&format!("{hosts}{auth}"))), expected);
        let by_name =
            "<auth username='vm'><secret type='ceph' usage='client.vm secret'/></auth><snapshot name='monday'/>";
        let found = access(&source(by_name));
        assert_eq!(found.secret, Some(SecretRef::Usage("client.vm secret".into())));
        assert_eq!((found.hosts.len(), found.snapshot.as_deref()), (0, Some("monday")));
        assert!(access(&source("")).is_unsaid());
    }
}
