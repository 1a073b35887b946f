//! The servers of network shares in this virtual host (`tests/lab/shares`), and repositories on what they serve.

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
}

impl Nas {
    pub fn name(self) -> &'static str {
        match self {
            Nas::Nfs => "nfs",
            Nas::Cifs => "cifs",
        }
    }

    /// What jobs say of `path` below this server's root.
    pub fn part(self, path: &str) -> RepositoryPart {
        let (address, options) = match self {
            Nas::Nfs => (format!("127.0.0.1:/{path}"), NFS_OPTIONS),
            Nas::Cifs => (format!("//127.0.0.1/{path}"), CIFS_OPTIONS),
        };
        RepositoryPart {
            id: String::new(),
            repository_type: self.name().to_owned(),
            address,
            options: options.to_owned(),
            credentials: (self == Nas::Cifs).then(|| by(RIGHT)),
        }
    }

    /// A repository of this worker's on one of the shares.
    pub fn share(self, fleet: &Fleet, export: &str) -> Share {
        let path = format!("{export}/{}", fleet.host);
        let served = PathBuf::from(variable("LONGSHORE_SHARES_DIR")).join(&path);
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
pub fn give_credentials(fleet: &Fleet) {
    let directory = fleet.folder.join("credentials");
    fs::create_dir(&directory).unwrap();
    let (user, password) = (variable("LONGSHORE_SHARES_USER"), variable("LONGSHORE_SHARES_PASSWORD"));
    for (name, password) in [(RIGHT, password.as_str()), (WRONG, "wrong")] {
        let file = directory.join(name);
        fs::write(&file, format!("username={user}\npassword={password}\n")).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }
}

fn server(nas: Nas, word: &str) {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/share-server");
    let output = Command::new(tool).args([nas.name(), word]).output().unwrap();
    assert!(output.status.success(), "share-server: {}", String::from_utf8_lossy(&output.stderr));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("`{name}` is not set: run this through tests/lab/shares"))
}
