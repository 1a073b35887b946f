//! Validating a mounted repository without a broker: the work is done by a mover, as it is for a job, so that what lies on the share can
//! do no more harm here than there.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::broker::block_on;
use super::exit::Exit;
use super::findings;
use super::output::{self, CliError};
use crate::failure::{Code, Failure};
use crate::host::mover::{Mover, MoverName, Movers, ProcessMovers};
use crate::model::id::BackupId;
use crate::model::repository::{Repository, RepositoryType};
use crate::model::validation::{Validation, ValidationLevel};
use crate::mover::protocol::{CredentialPlaces, OURSELVES, Reply, Request, WantedValidation};
use crate::mover::share::{Dir, read_identity};

/// Where the mover's directory is made: local, root's alone, and short, since sockets lie below.
const RUN_DIR: &str = "/run";
/// Longest time for opening the repository.
const OPEN_SECONDS_MAX: u64 = 120;
/// Longest time for a validation: as long as that of a job may be.
const VALIDATE_SECONDS_MAX: u64 = 30 * 24 * 60 * 60;
/// Longest time for unmounting what the mover has bound.
const CLOSE_SECONDS_MAX: u64 = 60;
/// Findings that are told: as many as surely fit into the mover's answer.
const FINDINGS_MAX: usize = 2000;

/// What is validated, and how it is shown.
pub struct Wanted<'w> {
    /// Directory of the repository.
    pub directory: &'w Path,
    /// How far.
    pub level: ValidationLevel,
    /// Only this backup, with what it is based on.
    pub backup: Option<BackupId>,
    /// Bytes of disks that are read within a second, at most.
    pub max_bytes_per_second: Option<u64>,
    /// For a program.
    pub json: bool,
}

/// A level by its word.
pub fn level(word: &str) -> Result<ValidationLevel, CliError> {
    serde_json::from_value(word.into()).map_err(CliError::usage)
}

/// Validates and prints what was found.
pub fn run(wanted: &Wanted<'_>) -> Result<Exit, CliError> {
    block_on(async {
        let place = RunDir::make()?;
        tokio::select! {
            validated = validate(wanted, &place) => {
                let validation = validated?;
                match wanted.json {
                    true => output::json(&validation)?,
                    false => findings::print(&validation)?,
                }
                Ok(findings::exit(&validation))
            }
            // The mover is killed as its end of the pipe is dropped, and everything that it has bound and started goes with it.
            _ = tokio::signal::ctrl_c() => Ok(Exit::Interrupted),
        }
    })
}

async fn validate(wanted: &Wanted<'_>, place: &RunDir) -> Result<Validation, Failure> {
    let repository = repository(wanted.directory)?;
    let nowhere = CredentialPlaces { dir: place.0.clone(), host_key: place.0.join("none") };
    let movers = ProcessMovers::new(PathBuf::from(OURSELVES), place.0.clone(), nowhere);
    let name = "validate".parse::<MoverName>();
    let name = name.map_err(|error| Failure::new(Code::Internal, "the mover cannot be named").because(&error))?;
    let mut mover = movers.start(&name).await?;
    let validated = ask(mover.as_mut(), repository, wanted).await;
    let stopped = mover.stop().await;
    let validation = validated?;
    stopped?;
    Ok(validation)
}

async fn ask(mover: &mut dyn Mover, repository: Repository, wanted: &Wanted<'_>) -> Result<Validation, Failure> {
    let seconds = Duration::from_secs;
    // A directory is what the operator has named; whether something is mounted there is for them to know.
    mover.ask(Request::OpenToLook { repository, same_device_ok: true }, seconds(OPEN_SECONDS_MAX)).await?;
    let request = Request::Validate {
        wanted: Box::new(WantedValidation {
            level: wanted.level,
            instances: Vec::new(),
            backup: wanted.backup,
            max_bytes_per_second: wanted.max_bytes_per_second,
            findings_max: FINDINGS_MAX,
        }),
    };
    let mut progress = mover.progress();
    let bar = bar();
    let shown = async {
        while progress.changed().await.is_ok() {
            let now = *progress.borrow_and_update();
            bar.set_length(now.total_bytes);
            bar.set_position(now.done_bytes);
        }
        std::future::pending().await
    };
    let answer = tokio::select! {
        answer = mover.ask(request, seconds(VALIDATE_SECONDS_MAX)) => answer,
        () = shown => Err(Failure::new(Code::Internal, "there is no end of progress")),
    };
    bar.finish_and_clear();
    let validation = match answer? {
        Reply::Validated { validation, .. } => *validation,
        other => {
            return Err(
                Failure::new(Code::Internal, "the mover answered something else").caused_by(format!("{other:?}"))
            );
        }
    };
    mover.ask(Request::Close, seconds(CLOSE_SECONDS_MAX)).await?;
    Ok(validation)
}

fn repository(directory: &Path) -> Result<Repository, Failure> {
    let not_found = |error: &std::io::Error| {
        let text = format!("there is no directory `{}`", directory.display());
        Failure::new(Code::RepositoryNotFound, text).because(error)
    };
    let directory = directory.canonicalize().map_err(|error| not_found(&error))?;
    let identity = read_identity(&Dir::open_root(&directory)?)?;
    let address = directory.to_str().map(str::to_owned);
    let unnamed = || Failure::new(Code::RepositoryNotFound, format!("`{}` is no path in UTF-8", directory.display()));
    Ok(Repository {
        id: identity.repository_id,
        repository_type: RepositoryType::Directory,
        address: address.ok_or_else(unnamed)?,
        options: Vec::new(),
        credentials: None,
    })
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    match ProgressStyle::with_template("[{bar:32}] {percent} %  {elapsed}") {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// A directory for the mover that goes with this process.
struct RunDir(PathBuf);

impl RunDir {
    fn make() -> Result<Self, Failure> {
        let path = Path::new(RUN_DIR).join(format!("longshore-validate.{}", std::process::id()));
        let failed = |error: &std::io::Error| {
            let text = format!("cannot make `{}`; validating needs to be root", path.display());
            Failure::new(Code::HostUnfit, text).because(error)
        };
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| failed(&error))?;
        Ok(Self(path))
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What is left is an empty directory of a mover that was killed, and this one; nobody else makes anything there.
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}
