//! RBD images of the laboratory's Ceph cluster, looked at and changed past the code under test, as its administrator.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use longshore::model::network::{NetworkAccess, NetworkHost, SecretRef};
use longshore::mover::protocol::{NamedKey, StorageKey};
use serde_json::Value;

use crate::image::qemu_img;
use crate::lab::{LabInstance, eventually, variable, virsh};

/// Where images are as a rule.
pub const POOL: &str = "volumes";
/// Where they are when their storage is to hang.
pub const HANGING: &str = "hanging";
/// Where they are when there is to be too little room for them.
pub const SMALL: &str = "small";
/// Where the data of some is.
pub const BULK: &str = "bulk";

/// What the cluster has to find out by itself takes no longer.
const TOLD: Duration = Duration::from_secs(30);

/// It counts every few seconds: numbers that stay the same so often, with such pauses, are those of now.
const COUNTED_ALIKE: usize = 4;
const COUNT_AGAIN: Duration = Duration::from_secs(2);

/// What a client of the cluster needs.
pub struct Cluster {
    conf: String,
    port: String,
    pub user: String,
    pub key: String,
}

/// The laboratory's, which is started where it does not run yet.
pub fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let output = Command::new(variable("LONGSHORE_LAB_TOOL")).arg("ceph").output().expect("scripts/lab starts");
        assert!(output.status.success(), "lab ceph: {}", String::from_utf8_lossy(&output.stderr));
        let exports = String::from_utf8(output.stdout).unwrap();
        let value = |name: &str| {
            let line = exports.lines().find_map(|line| line.strip_prefix(&format!("export {name}=")));
            line.unwrap_or_else(|| panic!("no {name} in {exports}")).to_owned()
        };
        let mut cluster = Cluster {
            conf: value("LONGSHORE_LAB_CEPH_CONF"),
            port: value("LONGSHORE_LAB_CEPH_MONITOR_V2").rsplit(':').next().unwrap().to_owned(),
            user: value("LONGSHORE_LAB_RBD_USER"),
            key: String::new(),
        };
        // In no environment, in which it would be looked for.
        cluster.key = cluster.ceph(&["auth", "print-key", &format!("client.{}", cluster.user)]).trim().to_owned();
        cluster
    })
}

impl Cluster {
    /// What `rbd` says.
    pub fn rbd(&self, arguments: &[&str]) -> String {
        self.said("rbd", arguments)
    }

    /// What `ceph` says.
    pub fn ceph(&self, arguments: &[&str]) -> String {
        self.said("ceph", arguments)
    }

    /// What `rados` says.
    pub fn rados(&self, arguments: &[&str]) -> String {
        self.said("rados", arguments)
    }

    fn said(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program).args(["-c", &self.conf]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// The image as a name that QEMU's tools take.
    pub fn name(&self, image: &str) -> String {
        format!("rbd:{image}:conf={}", self.conf)
    }

    /// The cluster's key under that name.
    pub fn key_named(&self, secret: SecretRef) -> NamedKey {
        NamedKey { secret, key: StorageKey::new(self.key.clone().into()) }
    }

    /// The way to it, for whoever has a key of that name.
    pub fn access(&self, secret: SecretRef) -> NetworkAccess {
        let host = NetworkHost { name: "127.0.0.1".to_owned(), port: Some(self.port.parse().unwrap()) };
        let (user, secret) = (Some(self.user.clone()), Some(secret));
        NetworkAccess { hosts: vec![host], user, secret, ..NetworkAccess::default() }
    }

    /// What `rbd` says of an image; none where there is none of that name.
    pub fn info(&self, image: &str) -> Option<Value> {
        let output = Command::new("rbd").args(["-c", &self.conf, "info", "--format=json", image]).output().unwrap();
        match output.status.code() {
            Some(0) => Some(serde_json::from_slice(&output.stdout).unwrap()),
            Some(2) => None,
            _ => panic!("rbd info {image}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// The id of an image that is there.
    pub fn id_of(&self, image: &str) -> String {
        self.info(image).expect("the image is there")["id"].as_str().unwrap().to_owned()
    }

    /// Bounds what a pool may hold; 0 for no bound.
    pub fn quota(&self, pool: &str, bytes: u64) {
        self.ceph(&["osd", "pool", "set-quota", pool, "max_bytes", &bytes.to_string()]);
        eventually("the quota is told", TOLD, || self.stats(pool)["quota_bytes"] == bytes);
    }

    /// What the cluster says of the room of a pool.
    pub fn stats(&self, pool: &str) -> Value {
        let said: Value = serde_json::from_str(&self.ceph(&["df", "detail", "--format=json"])).unwrap();
        let pools = said["pools"].as_array().unwrap();
        pools.iter().find(|one| one["name"] == pool).unwrap()["stats"].clone()
    }

    /// What a pool stores, once the cluster has counted all that was written.
    pub fn stored(&self, pool: &str) -> u64 {
        let mut seen = vec![u64::MAX; COUNTED_ALIKE];
        eventually("the cluster has counted", TOLD, || {
            std::thread::sleep(COUNT_AGAIN);
            seen.remove(0);
            seen.push(self.stats(pool)["stored"].as_u64().unwrap());
            seen.iter().all(|stored| *stored == seen[0])
        });
        seen[0]
    }

    /// Waits until a pool takes no write any more.
    pub fn is_full(&self, pool: &str) {
        let says_full = || {
            let pools: Value =
                serde_json::from_str(&self.ceph(&["osd", "pool", "ls", "detail", "--format=json"])).unwrap();
            let pool = pools.as_array().unwrap().iter().find(|one| one["pool_name"] == pool).unwrap().clone();
            pool["flags_names"].as_str().unwrap().split(',').any(|flag| flag == "full")
        };
        eventually("the pool is full", TOLD, says_full);
    }

    /// Makes an image of what is in a raw file.
    pub fn fill(&self, image: &str, from: &Path) {
        qemu_img(&["convert", "-f", "raw", "-O", "raw", from.to_str().unwrap(), &self.name(image)]);
    }

    /// Whether the image reads as that.
    pub fn reads_as(&self, image: &str, other: &Path, format: &str) -> bool {
        let (name, other) = (self.name(image), other.to_str().unwrap());
        let compare = ["compare", "-q", "-f", "raw", "-F", format, &name, other];
        match Command::new("qemu-img").args(compare).status().unwrap().code() {
            Some(0) => true,
            Some(1) => false,
            other => panic!("qemu-img compare of {image}: {other:?}"),
        }
    }

    /// Does what that command of qemu-io says to an image.
    pub fn qemu_io(&self, image: &str, command: &str) {
        crate::image::qemu_io(Path::new(&self.name(image)), "raw", &[command]);
    }

    /// The names of images in a pool that begin so.
    pub fn images(&self, pool: &str, begin: &str) -> Vec<String> {
        self.rbd(&["ls", pool]).lines().filter(|name| name.starts_with(begin)).map(str::to_owned).collect()
    }

    /// Nobody has the image open, nor is one that was killed still taken for somebody.
    pub fn is_closed(&self, image: &str) -> bool {
        !self.rbd(&["status", image]).contains("watcher=")
    }

    /// From now on nothing in the pool that hangs is answered, or all of it again.
    pub fn hang(&self, hangs: bool) {
        let copies = if hangs { "2" } else { "1" };
        for what in ["size", "min_size"] {
            self.ceph(&["osd", "pool", "set", HANGING, what, copies, "--yes-i-really-mean-it"]);
        }
    }
}

/// A key in libvirt's store, for as long as this lives.
pub struct LibvirtSecret {
    pub uuid: String,
}

impl LibvirtSecret {
    /// With that content, in base64.
    pub fn new(folder: &Path, name: &str, key: &str) -> Self {
        let (definition, value) = (folder.join("secret.xml"), folder.join("secret.value"));
        let uuid = uuid::Uuid::new_v4().to_string();
        let usage = format!("<usage type='ceph'><name>{name}</name></usage>");
        let xml = format!("<secret ephemeral='yes' private='no'><uuid>{uuid}</uuid>{usage}</secret>");
        std::fs::write(&definition, xml).unwrap();
        virsh(&["secret-define", definition.to_str().unwrap()]);
        std::fs::write(&value, key).unwrap();
        virsh(&["secret-set-value", "--secret", &uuid, "--file", value.to_str().unwrap()]);
        std::fs::remove_file(value).unwrap();
        Self { uuid }
    }
}

impl LibvirtSecret {
    /// None of that uuid is no error.
    pub fn remove(&self) {
        let _gone = Command::new(variable("LONGSHORE_LAB_VIRSH")).args(["-q", "secret-undefine", &self.uuid]).output();
    }
}

impl Drop for LibvirtSecret {
    fn drop(&mut self) {
        self.remove();
    }
}

/// An instance with a qcow2 file `vda`, a raw file `vdb` and, as `vdc`, an RBD image. It is shut off.
pub struct OnRbd {
    pub bare: LabInstance,
    /// With its pool.
    pub image: String,
    pub secret: LibvirtSecret,
}

impl OnRbd {
    /// The image holds what `vdb.reference.raw` does.
    pub fn new(pool: &str) -> Self {
        Self::with_key(pool, &cluster().key)
    }

    /// Likewise, with another key in libvirt's store.
    pub fn with_key(pool: &str, key: &str) -> Self {
        let cluster = cluster();
        let bare = LabInstance::bare();
        bare.stop();
        let image = format!("{pool}/{}", bare.name);
        cluster.fill(&image, &bare.folder.join("vdb.reference.raw"));
        let secret = LibvirtSecret::new(&bare.folder, &bare.name, key);
        let disk = format!(
            "<disk type='network' device='disk'><driver name='qemu' type='raw'/>\
             <auth username='{}'><secret type='ceph' uuid='{}'/></auth>\
             <source protocol='rbd' name='{image}'><host name='127.0.0.1' port='{}'/></source>\
             <target dev='vdc' bus='virtio'/><serial>rbd-{}</serial></disk>",
            cluster.user, secret.uuid, cluster.port, bare.name
        );
        let definition = virsh(&["dumpxml", "--inactive", &bare.name]);
        let file = bare.folder.join("rbd.xml");
        std::fs::write(&file, definition.replace("</devices>", &format!("{disk}</devices>"))).unwrap();
        virsh(&["define", file.to_str().unwrap()]);
        Self { bare, image, secret }
    }

    /// What the image held at first.
    pub fn reference(&self) -> std::path::PathBuf {
        self.bare.folder.join("vdb.reference.raw")
    }
}

impl Drop for OnRbd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if virsh(&["domstate", &self.bare.name]) == "running" {
            self.bare.stop();
        }
        let (pool, name) = self.image.split_once('/').unwrap();
        for left in cluster().images(pool, name) {
            let image = format!("{pool}/{left}");
            cluster().rbd(&["snap", "purge", "--no-progress", &image]);
            cluster().rbd(&["rm", "--no-progress", &image]);
        }
    }
}
