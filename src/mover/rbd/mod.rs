//! RBD images of Ceph clusters: how QEMU opens one, and what the program `rbd` says of it.
//!
//! The key that a cluster asks for is in a file of the mover's own ([`keys`]) and in no argument. Everything that is asked of a cluster has
//! a bound: one that hangs is given up, and the tool that waits for it killed.

mod change;
mod keys;
mod pool;
mod settings;
mod tool;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

pub(super) use change::Info;
pub(super) use keys::{KeyFile, Keys};
pub(super) use pool::PoolRoom;
pub(super) use settings::Settings;
pub use tool::missing;
pub(super) use tool::{DENIED_TEXTS, NO_DRIVER, WATCHERS_GO};

use crate::failure::{Code, Failure};
use crate::model::instance::DiskSource;
use crate::model::network::{NetworkAccess, NetworkHost};

/// libvirt's word for them.
pub(super) const PROTOCOL: &str = "rbd";

/// The name of the key's object in each of QEMU's tools.
const KEY_ID: &str = "key";

/// One image, and the way to it.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pool: String,
    namespace: Option<String>,
    name: String,
    cluster: Arc<Cluster>,
}

/// A cluster as it is asked.
#[derive(Debug)]
struct Cluster {
    access: NetworkAccess,
    key: Option<KeyFile>,
}

impl Image {
    /// The image that a disk is on. `disk_unsupported`: it is on none, or on one that can't be named.
    pub fn of(source: &DiskSource, keys: &Keys) -> Result<Self, Failure> {
        let unsupported = |text: String| Err(Failure::new(Code::DiskUnsupported, text));
        let DiskSource::Network { protocol, name, access, .. } = source else {
            return unsupported("a volume is no RBD image".to_owned());
        };
        if protocol != PROTOCOL {
            return unsupported(format!("a `{protocol}` volume of a stopped instance cannot be read"));
        }
        Self::named(name, access, keys)
    }

    /// The image of that name, reached so.
    pub fn named(name: &str, access: &NetworkAccess, keys: &Keys) -> Result<Self, Failure> {
        let unsupported = |text: String| Err(Failure::new(Code::DiskUnsupported, text));
        if let Some(snapshot) = &access.snapshot {
            return unsupported(format!("`{name}` is read at its snapshot `{snapshot}`, and not as it is"));
        }
        let parts: Vec<&str> = name.split('/').collect();
        let (pool, namespace, image) = match parts[..] {
            [pool, image] => (pool, None, image),
            [pool, namespace, image] => (pool, Some(namespace), image),
            _ => return unsupported(format!("`{}` is no pool and image of RBD", name.escape_debug())),
        };
        if !parts.iter().all(|part| is_plain(part)) {
            return unsupported(format!("the RBD image `{}` has a name that tools misread", name.escape_debug()));
        }
        let key = access.secret.as_ref().map(|secret| keys.file(secret)).transpose()?;
        Ok(Self {
            pool: pool.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: image.to_owned(),
            cluster: Arc::new(Cluster { access: access.clone(), key }),
        })
    }

    /// One of another name in the same pool and namespace.
    pub fn beside(&self, name: &str) -> Option<Self> {
        is_plain(name).then(|| Self { name: name.to_owned(), ..self.clone() })
    }

    /// Its name in its pool and namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Pool, namespace and image, as `rbd` and people write them.
    pub fn spec(&self) -> String {
        let namespace = self.namespace.iter().map(String::as_str);
        let parts = std::iter::once(self.pool.as_str()).chain(namespace).chain([self.name.as_str()]);
        parts.collect::<Vec<_>>().join("/")
    }

    /// What takes this name alone, and not the image, off an image that has two.
    pub fn forgetting(&self) -> String {
        let namespace = self.namespace.as_ref().map_or(String::new(), |namespace| format!(" -N {namespace}"));
        format!("`rados -p {}{namespace} rm rbd_id.{}`", self.pool, self.name)
    }

    /// The image as QEMU's block layer opens it; with a key, beside the [`object`] of that.
    pub fn node(&self) -> Value {
        let Cluster { access, key } = self.cluster.as_ref();
        let mut node = json!({"driver": "rbd", "pool": self.pool, "image": self.name});
        let server = |host: &NetworkHost| json!({"host": host.name, "port": host.port.unwrap_or(0).to_string()});
        let servers: Vec<Value> = access.hosts.iter().map(server).collect();
        let said = [
            ("namespace", self.namespace.clone().map(Value::from)),
            ("server", (!servers.is_empty()).then(|| Value::from(servers))),
            ("conf", access.config.as_ref().map(|path| Value::from(path.display().to_string()))),
            ("user", access.user.clone().map(Value::from)),
            ("key-secret", key.as_ref().map(|_| Value::from(KEY_ID))),
            // As libvirt has it for the instance itself.
            ("auth-client-required", key.as_ref().map(|_| json!(["cephx", "none"]))),
        ];
        for (name, value) in said {
            if let Some(value) = value {
                node[name] = value;
            }
        }
        node
    }

    /// The file with the key that it takes to open it.
    pub fn key(&self) -> Option<&Path> {
        self.cluster.key.as_ref().map(KeyFile::path)
    }
}

/// An option of QEMU's tools by which a node finds its key.
pub(super) fn object(key: &Path) -> String {
    // A comma would begin another property.
    let file = key.display().to_string().replace(',', ",,");
    format!("secret,id={KEY_ID},format=base64,file={file}")
}

/// No tool takes the name for anything else: `@` begins a snapshot's, `-` an option.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('-') && !name.contains(['@', '/']) && !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::instance::ImageFormat;
    use crate::model::network::SecretRef;
    use crate::mover::protocol::{NamedKey, StorageKey};

    pub(super) fn source(name: &str, access: NetworkAccess) -> DiskSource {
        let (name, access) = (name.to_owned(), Box::new(access));
        DiskSource::Network { protocol: PROTOCOL.to_owned(), name, format: ImageFormat::Raw, access }
    }

    fn host(name: &str, port: Option<u16>) -> NetworkHost {
        NetworkHost { name: name.to_owned(), port }
    }

    #[test]
    fn an_image_is_opened_as_libvirt_opens_it_and_its_key_is_in_no_description() {
        let place = tempfile::tempdir().unwrap();
        let secret = SecretRef::Usage("client.vm".into());
        let mut keys = Keys::new(place.path().to_owned());
        keys.replace(vec![NamedKey { secret: secret.clone(), key: StorageKey::new("QUJD".to_owned().into()) }]);
        let access = NetworkAccess {
            hosts: vec![host("mon1", Some(6321)), host("::1", None)],
            config: Some("/etc/ceph/x.conf".into()),
            user: Some("vm".into()),
            secret: Some(secret),
            snapshot: None,
        };
        let image = Image::of(&source("pool/space/image", access), &keys).unwrap();
        let expected = json!({
            "driver": "rbd", "pool": "pool", "namespace": "space", "image": "image", "conf": "/etc/ceph/x.conf", "user": "vm",
            "key-secret": "key", "auth-client-required": ["cephx", "none"],
            "server": [{"host": "mon1", "port": "6321"}, {"host": "::1", "port": "0"}],
        });
        assert_eq!((image.node(), image.spec()), (expected, "pool/space/image".to_owned()));
        let object = object(image.key().unwrap());
        assert!(object.starts_with("secret,id=key,format=base64,file=/") && !object.contains("QUJD"), "{object}");
        let bare = Image::of(&source("pool/image", NetworkAccess::default()), &Keys::default()).unwrap();
        assert_eq!(bare.node(), json!({"driver": "rbd", "pool": "pool", "image": "image"}));
        assert_eq!(bare.key(), None);
    }

    #[test]
    fn what_is_no_image_or_has_a_name_that_leads_elsewhere_is_refused() {
        for name in ["pool", "a/b/c/d", "pool/", "/image", "pool/a@monday", "pool/-a", "--id/a", "pool/a\nb", ""] {
            let refused = Image::of(&source(name, NetworkAccess::default()), &Keys::default()).unwrap_err();
            assert_eq!(refused.code, Code::DiskUnsupported, "{name}");
        }
        let at_monday = NetworkAccess { snapshot: Some("monday".into()), ..NetworkAccess::default() };
        let refused = Image::of(&source("pool/image", at_monday), &Keys::default()).unwrap_err();
        assert!(refused.text.contains("monday"), "{refused:#}");
    }
}
