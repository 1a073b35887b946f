//! Certificates for one test, made with the `openssl` tool.

use std::path::{Path, PathBuf};
use std::process::Command;

use longshore::broker::tls::ClientFiles;

/// An authority and what it signed, made with the `openssl` tool.
pub struct Authority(PathBuf);

impl Authority {
    pub fn make(folder: &Path, name: &str) -> Self {
        let authority = Self(folder.join(name));
        std::fs::create_dir_all(&authority.0).unwrap();
        authority.openssl(&[
            "req",
            "-x509",
            "-subj",
            &format!("/CN=authority {name}"),
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
        ]);
        authority
    }

    /// Certificate and key for `name`, which is an address or a user.
    pub fn sign(&self, name: &str, extension: &str) -> ClientFiles {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        let subject = format!("/CN={name}");
        let arguments = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", &subject, "-addext", extension];
        let own = ["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &key, "-out", &certificate];
        self.openssl(&[&arguments[..], &own].concat());
        ClientFiles { certificate: self.0.join(certificate), key: self.0.join(key) }
    }

    pub fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// What a RabbitMQ with this certificate is configured with, for passwords and for certificates of ours in their place.
    pub fn broker_conf(&self, port: u16, server: &ClientFiles) -> String {
        format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
             ssl_options.keyfile = {}\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n\
             ssl_cert_login_from = common_name\nauth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\n",
            self.ca().display(),
            server.certificate.display(),
            server.key.display(),
        )
    }

    fn openssl(&self, arguments: &[&str]) {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let output = Command::new("openssl").args(arguments).args(key).current_dir(&self.0).output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
