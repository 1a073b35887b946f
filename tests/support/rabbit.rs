//! A private RabbitMQ node: own name, ports, epmd, cookie and folders under `target/`, gone when it is dropped.
//!
//! Needed here, beside the lab's broker, because these tests kill it. Of two releases: Debian 12's own, and the one of Debian 13,
//! which `scripts/setup` has unpacked and which is started in there, with its folder mounted where nobody else sees it.
#![allow(dead_code)] // Each target uses its own part.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Debian's folder with the scripts that do not change the user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// Where `scripts/setup` has unpacked Debian 13's RabbitMQ, below the checkout.
const DEBIAN_13: &str = "target/lab/rabbitmq-4";
/// Where the node's folder is in there.
const INSIDE: &str = "/mnt";
/// Starts `$3...` in the root `$1`, where the folder `$2` is mounted. It stays one process, so that it is the node that is waited for.
const ENTER: &str = "mount -t proc proc \"$1/proc\" && mount --rbind /dev \"$1/dev\" && mount --bind \"$2\" \"$1/mnt\" && \
     root=$1 && shift 2 && exec chroot \"$root\" \"$@\"";
/// How long a node may take to open its port on a busy machine.
const START_WAIT: Duration = Duration::from_secs(90);
/// How often it is looked for.
const POLL: Duration = Duration::from_millis(50);

static NODES: AtomicUsize = AtomicUsize::new(0);

/// Which RabbitMQ.
#[allow(dead_code)] // Not every target starts both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// 3.10.
    Debian12,
    /// 4.0.
    Debian13,
}

/// A running node.
pub struct Rabbit {
    release: Release,
    folder: PathBuf,
    node: String,
    port: u16,
    management_port: u16,
    dist_port: u16,
    epmd_port: u16,
    epmd: Child,
    server: Option<Child>,
}

impl Rabbit {
    /// Starts one and waits for its port.
    pub fn start() -> Self {
        Self::start_with("", &[])
    }

    /// The same with more lines in its configuration, and with plugins.
    pub fn start_with(conf: &str, plugins: &[&str]) -> Self {
        Self::start_release(Release::Debian12, conf, plugins)
    }

    /// One with the management API.
    #[allow(dead_code)] // Not every target asks.
    pub fn start_managed(release: Release) -> Self {
        let mut rabbit = Self::start_release(release, "management.tcp.ip = 127.0.0.1\n", &["rabbitmq_management"]);
        rabbit.wait_for(rabbit.management_port);
        rabbit
    }

    fn start_release(release: Release, conf: &str, plugins: &[&str]) -> Self {
        let script = Path::new(SCRIPTS).join("rabbitmq-server");
        assert!(script.exists(), "`{}` is missing: install the package rabbitmq-server", script.display());
        let number = NODES.fetch_add(1, Ordering::Relaxed);
        let name = format!("longshore-{}-{number}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        fs::create_dir_all(&folder).unwrap();
        let [port, management_port, dist_port, epmd_port] = free_ports();
        let mut conf = format!("listeners.tcp.1 = 127.0.0.1:{port}\n{conf}");
        if plugins.contains(&"rabbitmq_management") {
            conf = format!("{conf}management.tcp.port = {management_port}\n");
        }
        fs::write(folder.join("rabbit.conf"), conf).unwrap();
        fs::write(folder.join("plugins"), format!("[{}].\n", plugins.join(","))).unwrap();
        let epmd = Command::new("epmd")
            .args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("`epmd` is missing: install the package erlang-base");
        let node = format!("{name}@localhost");
        let mut rabbit =
            Self { release, folder, node, port, management_port, dist_port, epmd_port, epmd, server: None };
        rabbit.boot();
        rabbit
    }

    /// Starts the node that was killed, with the data that it had. Gives the moment when its port was open.
    pub fn boot(&mut self) -> Instant {
        assert!(self.server.is_none(), "it runs already");
        let log = fs::File::create(self.folder.join("start.log")).unwrap();
        let server = self
            .command("rabbitmq-server")
            .process_group(0)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        self.wait_for(self.port);
        Instant::now()
    }

    fn wait_for(&mut self, port: u16) {
        let deadline = Instant::now() + START_WAIT;
        while TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), POLL).is_err() {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            let log = || fs::read_to_string(self.folder.join("start.log")).unwrap_or_default();
            assert!(ended.is_none(), "RabbitMQ ended with {ended:?}:\n{}", log());
            assert!(Instant::now() < deadline, "RabbitMQ did not open port {port}:\n{}", log());
            std::thread::sleep(POLL);
        }
    }

    /// Kills it as a power cut would, as far as a process can be.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            // The script and the node share a process group that we made.
            let group = Pid::from_raw(i32::try_from(server.id()).unwrap());
            match killpg(group, Signal::SIGKILL) {
                // It has ended, and been seen to.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("cannot kill RabbitMQ: {error}"),
            }
            server.wait().unwrap();
            let deadline = Instant::now() + START_WAIT;
            while TcpStream::connect_timeout(&self.address(), POLL).is_ok() {
                assert!(Instant::now() < deadline, "the killed RabbitMQ still answers");
                std::thread::sleep(POLL);
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Address of its management API, whose administrator is `guest` with that for a password.
    #[allow(dead_code)] // Not every target asks.
    pub fn management(&self) -> String {
        format!("http://127.0.0.1:{}", self.management_port)
    }

    /// Its address as a URI.
    pub fn uri(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address())
    }

    /// Runs `rabbitmqctl` and gives its output.
    #[allow(dead_code)] // The bench does not ask.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } =
            self.command("rabbitmqctl").arg("--quiet").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.success(), "rabbitmqctl {arguments:?}: {status}: {said}");
        String::from_utf8_lossy(&stdout).into_owned()
    }

    fn command(&self, script: &str) -> Command {
        let (mut command, folder) = match self.release {
            Release::Debian12 => (Command::new(Path::new(SCRIPTS).join(script)), self.folder.as_path()),
            Release::Debian13 => (self.in_debian_13(script), Path::new(INSIDE)),
        };
        command
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.node)
            .env("RABBITMQ_NODE_PORT", self.port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder.join("data"))
            .env("RABBITMQ_LOG_BASE", folder.join("log"))
            .env("RABBITMQ_PID_FILE", folder.join("pid"))
            .env("RABBITMQ_CONFIG_FILE", folder.join("rabbit.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
            // Idle schedulers of the node must not take the CPU from what is tested.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-noinput +sbwt none +sbwtdcpu none +sbwtdio none")
            // The script then becomes the node, so that it is the node that we wait for.
            .env("RABBITMQ_ALLOW_INPUT", "true")
            .stdin(Stdio::null())
            .current_dir(&self.folder);
        command
    }
}

impl Rabbit {
    /// A script of Debian 13's RabbitMQ, in a mount namespace of its own.
    fn in_debian_13(&self, script: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(DEBIAN_13);
        assert!(root.join("usr").exists(), "`{}` is missing: run scripts/setup", root.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]).arg(root).arg(&self.folder);
        command
            .arg(Path::new(SCRIPTS).join(script))
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LANG", "C.UTF-8");
        command
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("RabbitMQ's files are kept in {}", self.folder.display());
        }
        self.kill();
        self.epmd.kill().unwrap();
        self.epmd.wait().unwrap();
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).unwrap();
        }
    }
}

/// Ports that nobody uses now.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
