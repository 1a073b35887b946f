//! `longshore job publish`: one job to one host's queue, confirmed by the broker, refused when the host has no queue.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use secrecy::zeroize::Zeroizing;

use super::ConfigArgs;
use super::broker::{block_on, connect};
use super::destination::{ToArgs, instance_part};
use super::exit::Exit;
use super::options::refused;
use super::output::{self, CliError};
use super::watch::{Follow, follow};
use crate::broker::topology::{EVENTS_EXCHANGE, JOBS_EXCHANGE, jobs_key, urgent_jobs_key};
use crate::broker::{Outgoing, PublishError};
use crate::message::job::{
    BackupPart, CredentialsPart, DeletePart, InstancePart, JobMessage, RepositoryPart, RestorePart, RetryPart,
    SealedPart, ValidatePart,
};
use crate::message::{Encoded, Encoding, decode_job, encode_job};
use crate::model::id::{HostId, InstanceId, JobId};
use crate::model::job::{FullEvery, JobKind};
use crate::mover::private_file;
use crate::mover::sealed::{PublicKey, seal};

#[derive(Debug, Subcommand)]
pub enum PublishCommand {
    /// Back up an instance
    Backup(Box<BackupArgs>),
    /// Put the volumes of an instance that is shut off back to what they were at one of its backups; there has to be room for the new ones
    /// beside the old ones, which are removed afterwards. Or, with --new-instance or --volume, make of the backup what was not there
    Restore(Box<RestoreArgs>),
    /// Look whether a repository and the backups in it are whole; what is found comes with the end of the job. Nothing is repaired
    RepoValidate(Box<ValidateArgs>),
    /// Delete a backup; what others are based on is never taken from them
    BackupDelete(Box<DeleteArgs>),
}

/// What a job of any kind is published with.
#[derive(Debug, Args)]
pub struct JobArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Host that is to do it
    #[arg(long)]
    host: HostId,
    /// Identity of the repository, as in its longshore.json
    #[arg(long, value_name = "UUID")]
    repository_id: String,
    /// Kind of share
    #[arg(long = "type", value_name = "TYPE", default_value = "directory",
          value_parser = ["directory", "nfs", "cifs", "ceph"])]
    repository_type: String,
    /// Address of the share: /path, host:/path, //server/share, mon1,mon2:/path or user@fsid.fs=/path
    #[arg(long)]
    address: String,
    /// Mount options, separated by commas; no secrets
    #[arg(long, default_value = "")]
    options: String,
    /// Name of the file with the share's credentials in the host's credentials directory
    #[arg(long, value_name = "NAME")]
    credentials: Option<String>,
    /// File with the share's credentials, `-` for stdin, which go along sealed to the host
    #[arg(long, value_name = "FILE", conflicts_with = "credentials", requires = "host_key")]
    seal_credentials: Option<PathBuf>,
    /// The host's public key, as `longshore host key` prints it there
    #[arg(long, value_name = "KEY", requires = "seal_credentials")]
    host_key: Option<PublicKey>,
    /// Use the host's queue for urgent work
    #[arg(long)]
    urgent: bool,
    /// Failed attempts after which the run has failed
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Longest time that one attempt may take
    #[arg(long, value_name = "SECONDS")]
    deadline_seconds: Option<u64>,
    /// Not to be started after this moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    start_before: Option<String>,
    /// The publisher's own words, carried into every event; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Who asked for it
    #[arg(long, value_name = "WHO")]
    requested_by: Option<String>,
    /// Job id (UUID); drawn when absent
    #[arg(long, value_name = "UUID")]
    job_id: Option<String>,
    /// Run of the job
    #[arg(long, default_value_t = 1, value_name = "N")]
    run: u32,
    /// Encoding of the job, which its events follow
    #[arg(long, default_value = "msgpack", value_parser = ["msgpack", "json"])]
    encoding: String,
    /// Follow the job to its end, as `job watch` does
    #[arg(long)]
    watch: bool,
    /// With --watch: print the events, one JSON object a line
    #[arg(long, requires = "watch")]
    json: bool,
    /// With --watch: give up after so many seconds without an event of the job
    #[arg(long, value_name = "SECONDS", requires = "watch")]
    timeout_seconds: Option<u64>,
}

/// The instance of a job that is about one.
#[derive(Debug, Args)]
pub struct InstanceArgs {
    /// Instance, by uuid or by its name on the host; where a backup becomes something new or is deleted, the one whose backup it is, by
    /// its uuid if it is no more on that host
    #[arg(long)]
    instance: String,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    instance: InstanceArgs,
    /// How much is stored: `full` for everything, `incremental` for what has changed since the instance's latest backup in the
    /// repository, `auto` for that with a full one each `--full-every`. What can't be incremental is stored whole, and told why
    #[arg(long, default_value = "auto", value_parser = ["auto", "full", "incremental"])]
    mode: String,
    /// With `--mode auto`: most backups in a chain, the full one among them (1 to 20)
    #[arg(long, value_name = "N", default_value_t = FullEvery::default().0)]
    full_every: u32,
    /// Freeze the guest's file systems for the moment of the backup
    #[arg(long, default_value = "off", value_parser = ["off", "prefer", "require"])]
    quiesce: String,
    /// How the bytes of a running instance travel: `pull`, so that the guest never waits for the share, or `push`, where QEMU writes there
    /// itself, proven as `structure` (`auto`: as the host is configured, `pull` as a rule). A stopped one's volumes are read
    #[arg(long, default_value = "auto", value_parser = ["auto", "pull", "push"])]
    transfer: String,
    /// How far the backup is proven before it is published; a push is always proven as `structure`
    #[arg(long, default_value = "compared", value_parser = ["compared", "unverified"])]
    verification: String,
    /// Disk to leave out, by its target; may be repeated
    #[arg(long, value_name = "TARGET")]
    exclude_disk: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    #[command(flatten)]
    job: JobArgs,
    /// How far: `reachable` (mounted, right, writable), `catalogue` (manifests, files, chains), `structure` (images and hashes), `content`
    /// (every block is read)
    #[arg(long, default_value = "catalogue", value_parser = ["reachable", "catalogue", "structure", "content"])]
    level: String,
    /// Remove what attempts that were cut off have left, where nobody is at work
    #[arg(long)]
    sweep: bool,
    /// Only the backups of this instance; may be repeated
    #[arg(long, value_name = "UUID")]
    instance: Vec<InstanceId>,
    /// Read no more than so many bytes of disks within a second
    #[arg(long, value_name = "BYTES")]
    max_bytes_per_second: Option<u64>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    instance: InstanceArgs,
    /// The backup's id, as `longshore backup list` prints it
    #[arg(long, value_name = "UUID")]
    backup: String,
    /// Only this disk of the backup, by its target; may be repeated
    #[arg(long, value_name = "TARGET")]
    disk: Vec<String>,
    /// Disk of the backup that is to become this disk of the instance; those not named are found by their serial number, or, without
    /// one, by target and source together. May be repeated
    #[arg(long, value_name = "TARGET=TARGET", value_parser = pair)]
    onto: Vec<(String, String)>,
    /// Keep the old volumes beside the new ones, as `<volume>.longshore-….previous`. Needed where one holds internal snapshots
    #[arg(long)]
    keep_previous: bool,
    /// Restore nothing, and say in the last event what would be restored: use --watch
    #[arg(long)]
    dry_run: bool,
    /// Write over block devices that are no logical volumes of LVM, for which there is no way back: no second one can take their place.
    /// Without it they are refused
    #[arg(long, conflicts_with = "keep_previous")]
    overwrite: bool,
    #[command(flatten)]
    to: ToArgs,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    instance: InstanceArgs,
    /// The backup's id, as `longshore backup list` prints it
    #[arg(long, value_name = "UUID")]
    backup: String,
    /// `only`: the backup alone; what its one child needs of it is merged into that child first, and with several children it is refused.
    /// `chain`: the backup and all that depend on it. `leaf_only`: refused where any depends on it
    #[arg(long, default_value = "only", value_parser = ["only", "chain", "leaf_only"])]
    mode: String,
    /// Delete nothing, and say what would be deleted
    #[arg(long)]
    dry_run: bool,
}

pub fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("there is no `=` in it")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub fn run(command: &PublishCommand) -> Result<Exit, CliError> {
    let (args, mut job) = match command {
        PublishCommand::Backup(args) => (&args.job, args.message()),
        PublishCommand::Restore(args) => (&args.job, args.message()),
        PublishCommand::RepoValidate(args) => (&args.job, args.message()),
        PublishCommand::BackupDelete(args) => (&args.job, args.message()),
    };
    if let (Some(file), Some(key)) = (&args.seal_credentials, &args.host_key) {
        job.repository.credentials = Some(sealed(&read_credentials(file)?, key, &args.host, &job)?);
    }
    let encoding = if args.encoding == "json" { Encoding::Json } else { Encoding::MessagePack };
    let encoded = encode_job(&job, encoding, Timestamp::now())?;
    // As the worker will read it, so that a mistake is heard here and not in the dead letters, and a secret gets nowhere.
    decode_job(&encoded.properties, &encoded.body, &args.host).map_err(refused)?;
    block_on(publish(args, &job, encoded))
}

/// A share's credentials from a file, or from stdin.
pub fn read_credentials(file: &Path) -> Result<Zeroizing<String>, CliError> {
    if file == Path::new("-") { from_stdin() } else { Ok(private_file::read(file)?) }
}

/// Credentials that only the host can open, and only for this job.
pub fn sealed(text: &str, key: &PublicKey, host: &HostId, job: &JobMessage) -> Result<CredentialsPart, CliError> {
    if matches!(job.repository.repository_type.as_str(), "directory" | "nfs") {
        return Err(CliError::usage("a repository of this type takes no credentials"));
    }
    let job_id: JobId = job.job_id.parse().map_err(CliError::usage)?;
    let id = job.repository.id.parse().map_err(CliError::usage)?;
    let bound_to = job.repository.bound_to(job_id, host.as_str(), id);
    let sealed = seal(text, key, bound_to).map_err(CliError::usage)?;
    Ok(CredentialsPart { reference: None, sealed: Some(SealedPart::from(&sealed)) })
}

fn from_stdin() -> Result<Zeroizing<String>, CliError> {
    let mut text = Zeroizing::new(String::with_capacity(private_file::BYTES_MAX + 1));
    std::io::stdin().take(private_file::BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

async fn publish(args: &JobArgs, job: &JobMessage, encoded: Encoded) -> Result<Exit, CliError> {
    let broker = connect(&args.config, "publish")?;
    let job_id: JobId = job.job_id.parse().map_err(CliError::usage)?;
    // Before publishing, or the first events would be missed.
    let keys = [format!("{}.*.{}", job.kind, args.host), format!("message.refused.{}", args.host)];
    let events = match args.watch {
        true => Some(broker.subscribe(EVENTS_EXCHANGE, &keys).await.map_err(CliError::failed)?),
        false => None,
    };
    let routing_key = if args.urgent { urgent_jobs_key(&args.host) } else { jobs_key(&args.host) };
    let outgoing =
        Outgoing { exchange: JOBS_EXCHANGE, routing_key, properties: encoded.properties, body: encoded.body };
    // Before publishing: without a confirm, this is what keeps a second try from becoming a second job.
    eprintln!("job {job_id}");
    let publisher = broker.publisher();
    publisher
        .publish(outgoing.clone())
        .await
        .map_err(|error| not_published(error, &args.host, job_id, args.seal_credentials.is_some()))?;
    match events {
        None => output::line(&job.job_id).map(|()| Exit::Done),
        Some(events) => {
            let timeout = args.timeout_seconds.map(Duration::from_secs);
            let again = Some((publisher, outgoing));
            follow(
                events,
                Follow { job_id, run: Some(job.run), host: Some(args.host.clone()), json: args.json, timeout, again },
            )
            .await
        }
    }
}

/// `sealed`: with credentials that were sealed for it.
fn not_published(error: PublishError, host: &HostId, job_id: JobId, sealed: bool) -> CliError {
    match error {
        PublishError::Unroutable { .. } => {
            CliError::not_found(format!("host `{host}` has no queue on this broker: {error}"))
        }
        PublishError::Unconfirmed { sent: false, reason, .. } => {
            CliError::failed(format!("the job was not sent, since the broker cannot be reached: {reason}"))
        }
        // Sealing again makes another body, which would be refused as `run_body_differs` though the first is being done.
        PublishError::Unconfirmed { sent: true, .. } if sealed => CliError::failed(format!(
            "{error}; the job may have been kept all the same: `longshore job watch {job_id}` shows it if it was"
        )),
        PublishError::Unconfirmed { sent: true, .. } => CliError::failed(format!(
            "{error}; the job may have been kept all the same: publish it again with `--job-id {job_id}`, so that it is \
             not done twice"
        )),
        PublishError::Refused { .. } => CliError::failed(error),
    }
}

impl BackupArgs {
    fn message(&self) -> JobMessage {
        let backup = BackupPart {
            mode: Some(self.mode.clone()),
            full_every: Some(self.full_every),
            transfer: Some(self.transfer.clone()),
            quiesce: Some(self.quiesce.clone()),
            verification: Some(self.verification.clone()),
            exclude_disks: self.exclude_disk.clone(),
        };
        JobMessage { backup: Some(backup), ..self.job.message(JobKind::Backup, Some(self.instance.part())) }
    }
}

impl RestoreArgs {
    fn message(&self) -> JobMessage {
        let instance = Some(self.instance.part());
        if let Some(restore_new) = self.to.part(&self.backup, &self.disk, self.dry_run) {
            let message = self.job.message(JobKind::RestoreNew, instance);
            return JobMessage { restore_new: Some(restore_new), ..message };
        }
        let restore = RestorePart {
            backup_id: self.backup.clone(),
            disks: self.disk.clone(),
            onto: self.onto.iter().cloned().collect(),
            keep_previous: self.keep_previous,
            dry_run: self.dry_run,
            overwrite: self.overwrite,
        };
        JobMessage { restore: Some(restore), ..self.job.message(JobKind::Restore, instance) }
    }
}

impl ValidateArgs {
    fn message(&self) -> JobMessage {
        let validate = ValidatePart {
            level: Some(self.level.clone()),
            sweep: self.sweep,
            instances: self.instance.iter().map(ToString::to_string).collect(),
            max_bytes_per_second: self.max_bytes_per_second,
        };
        JobMessage { validate: Some(validate), ..self.job.message(JobKind::RepoValidate, None) }
    }
}

impl InstanceArgs {
    fn part(&self) -> InstancePart {
        instance_part(&self.instance)
    }
}

impl DeleteArgs {
    fn message(&self) -> JobMessage {
        let (backup_id, mode) = (self.backup.clone(), Some(self.mode.clone()));
        let delete = DeletePart { backup_id, mode, dry_run: self.dry_run };
        JobMessage { delete: Some(delete), ..self.job.message(JobKind::BackupDelete, Some(self.instance.part())) }
    }
}

impl JobArgs {
    /// A job of that kind, without the kind's own part.
    fn message(&self, kind: JobKind, instance: Option<InstancePart>) -> JobMessage {
        let credentials = self.credentials.clone();
        JobMessage {
            job_id: self.job_id.clone().unwrap_or_else(|| JobId::draw().to_string()),
            run: self.run,
            kind: kind.as_str().to_owned(),
            host: self.host.to_string(),
            instance,
            repository: RepositoryPart {
                id: self.repository_id.clone(),
                repository_type: self.repository_type.clone(),
                address: self.address.clone(),
                options: self.options.clone(),
                credentials: credentials.map(|name| CredentialsPart { reference: Some(name), sealed: None }),
            },
            backup: None,
            restore: None,
            restore_new: None,
            validate: None,
            delete: None,
            retry: self.attempts.map(|attempts| RetryPart { attempts: Some(attempts), ..RetryPart::default() }),
            start_before: self.start_before.clone(),
            deadline_seconds: self.deadline_seconds,
            labels: self.label.iter().cloned().collect::<BTreeMap<_, _>>(),
            requested_by: self.requested_by.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_may_have_been_kept_can_be_published_again_under_its_id() {
        let (job_id, reason) = (JobId::draw(), String::from("it does not answer"));
        let unconfirmed = |sent| PublishError::Unconfirmed {
            routing_key: String::new(),
            sent,
            waited_seconds: 1,
            reason: reason.clone(),
        };
        let said = |sent| "kvm-07".parse().map(|host| not_published(unconfirmed(sent), &host, job_id, false).chain());
        let sealed = "kvm-07".parse().map(|host| not_published(unconfirmed(true), &host, job_id, true).chain());
        let advice = format!("`--job-id {job_id}`");
        assert!(said(true).is_ok_and(|said| said.contains(&advice)));
        assert!(
            sealed.is_ok_and(|said| said.contains("job watch") && !said.contains(&advice)),
            "it would be another body"
        );
        assert!(said(false).is_ok_and(|said| said.contains("was not sent") && !said.contains(&advice)));
    }
}
