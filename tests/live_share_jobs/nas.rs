//! The servers of network shares in this virtual host (`tests/lab/shares`) and the Ceph cluster outside (`tests/lab/ceph-share`), and
//! repositories on what they serve.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use longshore::message::job::{CredentialsPart, RepositoryPart};

use crate::fleet::Fleet;
use crate::share::Share;

/// A server that is gone is noticed after seconds, where the default waits for minutes.
const NFS_OPTIONS: &str = "vers=4.2,timeo=10,retrans=1";
const CIFS_OPTIONS: &str = "vers=3.1.1";

/// Names of files with credentials in the worker's directory.
pub const RIGHT: &str = "right";
pub const WRONG: &str = "wrong";

/// A type of share and its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nas {
    Nfs,
    Cifs,
    Ceph,
}

impl Nas {
    pub fn name(self) -> &'static str {
        match self {
            Nas::Nfs => "nfs",
            Nas::Cifs => "cifs",
            Nas::Ceph => "ceph",
        }
    }

    /// The export that has little room, where there is one.
    pub fn small(self) -> Option<&'static str> {
        match self {
            Nas::Nfs => Some("small-nfs"),
            Nas::Cifs => Some("small-cifs"),
            Nas::Ceph => None,
        }
    }

    /// What jobs say of `path` below this server's root.
    pub fn part(self, path: &str) -> RepositoryPart {
        let (address, options) = match self {
            Nas::Nfs => (format!("127.0.0.1:/{path}"), NFS_OPTIONS),
            Nas::Cifs => (format!("//127.0.0.1/{path}"), CIFS_OPTIONS),
            Nas::Ceph => (format!("{}:/{path}", variable("LONGSHORE_LAB_CEPH_MONITOR")), ""),
        };
        RepositoryPart {
            id: String::new(),
            repository_type: self.name().to_owned(),
            address,
            options: options.to_owned(),
            credentials: (self != Nas::Nfs).then(|| by(RIGHT)),
        }
    }

    /// A repository of this worker's on one of the shares.
    pub fn share(self, fleet: &Fleet, export: &str) -> Share {
        let path = format!("{export}/{}", fleet.host);
        let mut served = PathBuf::from(variable("LONGSHORE_SHARES_DIR"));
        if self == Nas::Ceph {
            served.push("ceph");
        }
        served.push(&path);
        Share::served(served, self.part(&path))
    }

    pub fn stop_server(self) {
        server(self, "stop");
    }

    pub fn start_server(self) {
        server(self, "start");
    }
}

/// Credentials by that reference.
pub fn by(name: &str) -> CredentialsPart {
    CredentialsPart { reference: Some(name.to_owned()), sealed: None }
}

/// Puts the credentials where the worker looks for them.
pub fn give_credentials(fleet: &Fleet, nas: Nas) {
    let (right, wrong) = match nas {
        Nas::Nfs => return,
        Nas::Cifs => {
            let of = |password| format!("username={}\npassword={password}\n", variable("LONGSHORE_SHARES_USER"));
            (of(variable("LONGSHORE_SHARES_PASSWORD")), of("wrong".to_owned()))
        }
        // What is no key at all fails before anybody is asked.
        Nas::Ceph => {
            let of = |secret| format!("name={}\nsecret={}\n", variable("LONGSHORE_LAB_CEPH_USER"), variable(secret));
            (of("LONGSHORE_LAB_CEPH_SECRET"), of("LONGSHORE_LAB_CEPH_ADMIN_SECRET"))
        }
    };
    let directory = fleet.folder.join("credentials");
    fs::create_dir(&directory).unwrap();
    for (name, text) in [(RIGHT, right), (WRONG, wrong)] {
        let file = directory.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }
}

fn server(nas: Nas, word: &str) {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/share-server");
    let output = Command::new(tool).args([nas.name(), word]).output().unwrap();
    assert!(output.status.success(), "share-server: {}", String::from_utf8_lossy(&output.stderr));
}

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("`{name}` is not set: run this through tests/lab/shares and tests/lab/ceph-share"))
}
