//! `longshore broker setup`: what an operator wants of the broker, made so, and tried out.

use std::path::PathBuf;

use clap::Args;

use super::members::{hosts, members};
use super::probes;
use super::server::{ServerArgs, failed};
use super::told::{Counts, Sum, Teller, Trial};
use crate::broker::access::Role;
use crate::broker::address::BrokerUri;
use crate::broker::setup::apply::{Ground, Server};
use crate::broker::setup::password::Passwords;
use crate::broker::setup::plan::{Login, Wanted, steps};
use crate::broker::setup::terms::Asked;
use crate::broker::setup::version::ServerVersion;
use crate::broker::topology::QueueType;
use crate::cli::exit::Exit;
use crate::cli::output::CliError;
use crate::model::id::HostId;

#[derive(Debug, Args)]
#[command(
    override_usage = "longshore broker setup --management <URL> --user <NAME> [OPTIONS]\n       \
                      longshore broker setup --dry-run --server-version <VERSION> [OPTIONS]",
    mut_arg("management", |arg| arg.required(false).required_unless_present("server_version")),
    mut_arg("user", |arg| arg.required(false).required_unless_present("server_version"))
)]
pub struct SetupArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Host, whose broker user gets the same name; may be repeated
    #[arg(long = "host", value_name = "ID")]
    hosts: Vec<HostId>,
    /// File with a host a line; what follows a `#` is a remark
    #[arg(long, value_name = "FILE")]
    hosts_file: Option<PathBuf>,
    /// User who publishes jobs; may be repeated, as may the next four. The name of such a role has 1 to 63 of a-z, 0-9, `-`, `.` and `_`,
    /// and at least one `.` or `_`, so that it is no host's: fleet.planner
    #[arg(long = "publisher", value_name = "NAME")]
    publishers: Vec<String>,
    /// User who commands workers (`broker.controllers` of their configuration): `longshore job cancel`
    #[arg(long = "controller", value_name = "NAME")]
    controllers: Vec<String>,
    /// User who reads events; a publisher may be one, to watch its jobs
    #[arg(long = "event-reader", value_name = "NAME")]
    event_readers: Vec<String>,
    /// User who reads dead letters: to look at them and to export them
    #[arg(long = "letter-reader", value_name = "NAME")]
    letter_readers: Vec<String>,
    /// User who replays and discards dead letters: it reads them, publishes jobs, and tells in its own name what it did
    #[arg(long = "letter-operator", value_name = "NAME")]
    letter_operators: Vec<String>,
    /// Type of the job queues: classic for a single broker, quorum for a cluster; else the fleet's, or classic for a new one
    #[arg(long, value_name = "TYPE", value_parser = ["classic", "quorum"])]
    queue_type: Option<String>,
    /// Jobs that may wait in a host's queue; with as many the next publisher is refused. Urgent ones have no bound.
    /// Else as the fleet has it, or 1000 for a new one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    backlog: Option<u32>,
    /// Directory with a password file a user; those that are missing are made. Needed where not --external or --dry-run is given
    #[arg(long, value_name = "DIR", conflicts_with = "external")]
    passwords: Option<PathBuf>,
    /// Who has a password that no file holds gets a new one; else that is refused, before anything is changed
    #[arg(long, requires = "passwords")]
    new_passwords: bool,
    /// Users log in with certificates that bear their names (EXTERNAL), and have no passwords
    #[arg(long)]
    external: bool,
    /// Where users connect, as in amqps://broker: what must be refused to them is tried out there afterwards. Needed where not
    /// --no-probe or --dry-run is given
    #[arg(long, value_name = "URI", conflicts_with = "no_probe")]
    amqp: Option<BrokerUri>,
    /// Try nothing out
    #[arg(long)]
    no_probe: bool,
    /// Print what would be done, in order, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run and in place of a server: the version of RabbitMQ
    #[arg(long, value_name = "VERSION", requires = "dry_run", conflicts_with = "management")]
    server_version: Option<ServerVersion>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &SetupArgs) -> Result<Exit, CliError> {
    let mut wanted = args.wanted().map_err(CliError::usage)?;
    let teller = Teller { json: args.json, dry_run: args.dry_run };
    if let Some(version) = args.server_version {
        let server = Server::told(version).map_err(failed)?;
        teller.server(server, &wanted.vhost, "told")?;
        let steps = steps(&wanted, server.version, server.has_user_limits);
        steps.iter().try_for_each(|step| teller.step_in(step, "do"))?;
        return Ok(Exit::Done);
    }
    args.complete()?;
    let management = args.server.connect()?;
    let passwords = args.passwords.clone().map(Passwords::new);
    let ground = Ground {
        management: &management,
        vhost: &args.server.vhost,
        passwords: passwords.as_ref(),
        new_passwords: args.new_passwords,
    };
    let server = Server::of(&management).map_err(failed)?;
    teller.server(server, &wanted.vhost, "found")?;
    wanted.terms = ground.terms(args.asked()).map_err(failed)?;
    let counts = args.apply(&ground, &wanted, server, teller)?;
    if args.dry_run {
        teller.sum(&Sum { counts, harms: 0, trial: Trial::Skipped })?;
        return Ok(Exit::Done);
    }
    args.judge(&ground, &wanted, server.version, counts, teller)
}

impl SetupArgs {
    /// Does what is to be done, or with `--dry-run` looks at it.
    fn apply(&self, ground: &Ground<'_>, wanted: &Wanted, server: Server, teller: Teller) -> Result<Counts, CliError> {
        let steps = steps(wanted, server.version, server.has_user_limits);
        // Whatever is in the way is found before anything is changed.
        steps.iter().try_for_each(|step| ground.look(step).map(drop)).map_err(failed)?;
        if wanted.login == Login::Certificate && self.amqp.is_some() {
            wanted.members().iter().try_for_each(|member| ground.look_at_twin(member)).map_err(failed)?;
        }
        let mut counts = Counts::default();
        for step in steps {
            let found = if self.dry_run { ground.look(&step) } else { ground.make_so(&step) }.map_err(failed)?;
            counts.add(found);
            teller.step(&step, found)?;
        }
        for rival in ground.rivals().map_err(failed)? {
            teller.note(&rival)?;
        }
        for member in wanted.members() {
            for vhost in ground.elsewhere(&member.user).map_err(failed)? {
                let user = &member.user;
                teller.note(&format!(
                    "{user} has rights in the virtual host `{vhost}` as well, which are left as they are"
                ))?;
            }
        }
        Ok(counts)
    }

    /// Looks whether the broker loses messages, and tries out what users can do. All of it is told, and summed up, before the command
    /// fails over any of it.
    fn judge(
        &self,
        ground: &Ground<'_>,
        wanted: &Wanted,
        version: ServerVersion,
        counts: Counts,
        teller: Teller,
    ) -> Result<Exit, CliError> {
        let harms = ground.harms(wanted, version).map_err(failed)?;
        harms.iter().try_for_each(|harm| teller.note(&harm.to_string()))?;
        let try_out = |place| probes::all(ground, wanted, place, self.server.ca_file.as_deref(), version);
        let tried = self.amqp.as_ref().map(try_out).transpose();
        if let Ok(Some(tried)) = &tried {
            teller.tried(tried, version)?;
        }
        let trial = match &tried {
            Ok(None) => Trial::Skipped,
            Ok(Some(tried)) => Trial::of(tried),
            Err(_) => Trial::BrokenOff,
        };
        teller.sum(&Sum { counts, harms: harms.len(), trial })?;
        let tried = tried?.unwrap_or_default();
        first_of(&harms, "are noted")?;
        first_of(tried.iter().filter(|one| one.is_bad()), "are not as they should be")?;
        Ok(Exit::Done)
    }

    fn asked(&self) -> Asked {
        let jobs_type = self.queue_type.as_deref().map(|name| match name {
            "quorum" => QueueType::Quorum,
            _ => QueueType::Classic,
        });
        Asked { jobs_type, backlog_max: self.backlog }
    }

    /// As for a new fleet.
    fn wanted(&self) -> Result<Wanted, String> {
        let hosts = hosts(&self.hosts, self.hosts_file.as_deref())?;
        let others = members(&[
            (Role::Publisher, &self.publishers),
            (Role::Controller, &self.controllers),
            (Role::EventReader, &self.event_readers),
            (Role::LetterReader, &self.letter_readers),
            (Role::LetterOperator, &self.letter_operators),
        ])?;
        if others.iter().any(|member| Some(member.user.as_str()) == self.server.user()) {
            return Err("the administrator is none of the roles: take another name".to_owned());
        }
        let terms = self.asked().beside(None, None).map_err(|error| error.to_string())?;
        let login = if self.external { Login::Certificate } else { Login::Password };
        Ok(Wanted { vhost: self.server.vhost.clone(), terms, hosts, others, login })
    }

    /// What cannot be left out where something is done.
    fn complete(&self) -> Result<(), CliError> {
        let missing = |what: &str| Err(CliError::usage(what.to_owned()));
        match self {
            Self { dry_run: false, passwords: None, external: false, .. } => {
                missing("say how users log in: `--passwords DIR` or `--external`")
            }
            Self { dry_run: false, amqp: None, no_probe: false, .. } => {
                missing("say where users connect, so that it can be tried out: `--amqp URI`, or `--no-probe`")
            }
            Self { amqp: Some(place), .. } if place.names_user() || place.holds_password() => {
                missing("`--amqp` names neither user nor password: it is tried out as each of the users")
            }
            _ => Ok(()),
        }
    }
}

/// Fails with the first of what is wrong, if anything is.
fn first_of<T: std::fmt::Display>(wrong: impl IntoIterator<Item = T>, more_are: &str) -> Result<(), CliError> {
    let mut wrong = wrong.into_iter();
    let Some(first) = wrong.next() else { return Ok(()) };
    Err(CliError::failed(match wrong.count() {
        0 => first.to_string(),
        more => format!("{first} ({more} more {more_are})"),
    }))
}
