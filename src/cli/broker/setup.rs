//! `longshore broker setup`: what an operator wants of the broker, made so, and tried out.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::members::{hosts, members};
use super::probes::{self, Tried};
use super::server::{ServerArgs, failed};
use crate::broker::access::Role;
use crate::broker::address::BrokerUri;
use crate::broker::setup::apply::{Ground, Server};
use crate::broker::setup::harm::Harm;
use crate::broker::setup::look::Found;
use crate::broker::setup::password::Passwords;
use crate::broker::setup::plan::{Login, Wanted, steps};
use crate::broker::setup::step::Step;
use crate::broker::setup::terms::Asked;
use crate::broker::setup::version::ServerVersion;
use crate::broker::topology::QueueType;
use crate::cli::exit::Exit;
use crate::cli::output::{self, CliError};
use crate::model::id::HostId;

#[derive(Debug, Args)]
pub struct SetupArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Host, whose broker user gets the same name; may be repeated
    #[arg(long = "host", value_name = "ID")]
    hosts: Vec<HostId>,
    /// File with a host a line; what follows a `#` is a remark
    #[arg(long, value_name = "FILE")]
    hosts_file: Option<PathBuf>,
    /// User who publishes jobs; may be repeated, as may the next three
    #[arg(long = "publisher", value_name = "NAME")]
    publishers: Vec<String>,
    /// User who commands workers (`broker.controllers` of their configuration)
    #[arg(long = "controller", value_name = "NAME")]
    controllers: Vec<String>,
    /// User who reads events; a publisher may be one, to watch its jobs
    #[arg(long = "event-reader", value_name = "NAME")]
    event_readers: Vec<String>,
    /// User who reads dead letters
    #[arg(long = "letter-reader", value_name = "NAME")]
    letter_readers: Vec<String>,
    /// Type of the job queues: classic for a single broker, quorum for a cluster; else the fleet's, or classic for a new one
    #[arg(long, value_name = "TYPE", value_parser = ["classic", "quorum"])]
    queue_type: Option<String>,
    /// Jobs that may wait in a host's queue; with as many the next publisher is refused. Urgent ones have no bound.
    /// Else as the fleet has it, or 1000 for a new one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    backlog: Option<u32>,
    /// Directory with a password file a user; those that are missing are made
    #[arg(long, value_name = "DIR", conflicts_with = "external")]
    passwords: Option<PathBuf>,
    /// Who has a password that no file holds gets a new one; else that is refused, before anything is changed
    #[arg(long, requires = "passwords")]
    new_passwords: bool,
    /// Users log in with certificates that bear their names (EXTERNAL), and have no passwords
    #[arg(long)]
    external: bool,
    /// Where users connect, as in amqps://broker: what must be refused to them is tried out there afterwards
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
    if let Some(version) = args.server_version {
        let server = Server::told(version).map_err(failed)?;
        args.tell_server(server, "told")?;
        for step in steps(&wanted, server.version, server.has_user_limits) {
            args.tell(&step, "do")?;
        }
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
    args.tell_server(server, "found")?;
    wanted.terms = ground.terms(args.asked()).map_err(failed)?;
    let mut counts = Counts::default();
    let steps = steps(&wanted, server.version, server.has_user_limits);
    // Whatever is in the way is found before anything is changed.
    steps.iter().try_for_each(|step| ground.look(step).map(drop)).map_err(failed)?;
    if wanted.login == Login::Certificate && args.amqp.is_some() {
        wanted.members().iter().try_for_each(|member| ground.look_at_twin(member)).map_err(failed)?;
    }
    for step in steps {
        let found = if args.dry_run { ground.look(&step) } else { ground.make_so(&step) }.map_err(failed)?;
        counts.add(found);
        args.tell(&step, word(found, args.dry_run))?;
    }
    for rival in ground.rivals().map_err(failed)? {
        args.note(&rival)?;
    }
    for member in wanted.members() {
        for vhost in ground.elsewhere(&member.user).map_err(failed)? {
            args.note(&format!(
                "{} has rights in the virtual host `{vhost}` as well, which are left as they are",
                member.user
            ))?;
        }
    }
    args.sum_up(&counts)?;
    if !args.dry_run {
        args.lament(&ground.harms(&wanted, server.version).map_err(failed)?)?;
    }
    match &args.amqp {
        Some(place) if !args.dry_run => {
            let tried = probes::all(&ground, &wanted, place, args.server.ca_file.as_deref(), server.version)?;
            args.judge(&tried, server.version)
        }
        _ => Ok(Exit::Done),
    }
}

#[derive(Default)]
struct Counts {
    made: usize,
    changed: usize,
    unchanged: usize,
}

impl Counts {
    fn add(&mut self, found: Found) {
        match found {
            Found::AsWanted => self.unchanged += 1,
            Found::Missing => self.made += 1,
            Found::Otherwise => self.changed += 1,
        }
    }
}

const fn word(found: Found, dry_run: bool) -> &'static str {
    match (found, dry_run) {
        (Found::AsWanted, _) => "is so",
        (Found::Missing, false) => "made",
        (Found::Otherwise, false) => "changed",
        (Found::Missing, true) => "make",
        (Found::Otherwise, true) => "change",
    }
}

impl SetupArgs {
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
            Self { server, .. } if !server.names_server() => {
                missing("name the server with `--management`, or with `--dry-run` its version with `--server-version`")
            }
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

    fn tell_server(&self, server: Server, how: &str) -> Result<(), CliError> {
        if self.json {
            return output::json_line(&json!({ "server_version": server.version.to_string(), "how": how }));
        }
        output::line(&format!("RabbitMQ {} ({how}), virtual host `{}`", server.version, self.server.vhost))
    }

    fn tell(&self, step: &Step, state: &str) -> Result<(), CliError> {
        if self.json {
            let state = state.replace(' ', "_");
            return output::json_line(&json!({ "step": step.kind(), "what": step.to_string(), "state": state }));
        }
        output::line(&format!("{state:<8} {step}"))
    }

    fn note(&self, text: &str) -> Result<(), CliError> {
        if self.json {
            return output::json_line(&json!({ "note": text }));
        }
        output::line(&format!("{:<8} {text}", "note"))
    }

    fn sum_up(&self, Counts { made, changed, unchanged }: &Counts) -> Result<(), CliError> {
        if self.json {
            return output::json_line(&json!({ "made": made, "changed": changed, "unchanged": unchanged }));
        }
        let nothing = *made == 0 && *changed == 0;
        output::line(&match (self.dry_run, nothing) {
            (true, _) => format!("nothing was done: {made} to make, {changed} to change, {unchanged} are so"),
            (false, true) => format!("nothing was changed: all {unchanged} are so"),
            (false, false) => format!("{made} made, {changed} changed, {unchanged} were so"),
        })
    }

    /// Tells what makes the broker lose messages. The command fails with the first.
    fn lament(&self, harms: &[Harm]) -> Result<(), CliError> {
        harms.iter().try_for_each(|harm| self.note(&harm.to_string()))?;
        let more = harms.len().saturating_sub(1);
        match harms.first() {
            None => Ok(()),
            Some(first) if more == 0 => Err(CliError::failed(first.to_string())),
            Some(first) => Err(CliError::failed(format!("{first} ({more} more are noted)"))),
        }
    }

    /// Tells what was tried out. The command fails with the first that is not as it should be.
    fn judge(&self, tried: &[Tried], version: ServerVersion) -> Result<Exit, CliError> {
        let mut users: Vec<&str> = Vec::new();
        for one in tried {
            if self.json {
                output::json_line(one)?;
            } else if !users.contains(&one.user.as_str()) {
                let of_user = || tried.iter().filter(|other| other.user == one.user);
                let all = of_user().filter(|other| other.is_tried()).count();
                let (bad, untried) = (of_user().filter(|other| other.is_bad()).count(), of_user().count() - all);
                let untried = if untried == 0 { String::new() } else { format!(", {untried} not tried") };
                let good = all.saturating_sub(bad);
                output::line(&format!("{:<8} {}: {good} of {all} as they should be{untried}", "tried", one.user))?;
                users.push(&one.user);
            }
        }
        if tried.iter().any(Tried::is_known_gap) {
            self.note(&format!(
                "RabbitMQ {version} is known to let hosts copy messages to keys of other hosts (CC, until {}): Longshore's readers look \
                 for themselves, and other readers of events have to",
                ServerVersion::CHECKS_FURTHER_KEYS
            ))?;
        }
        let mut bad = tried.iter().filter(|one| one.is_bad());
        match (bad.next(), bad.count()) {
            (None, _) => Ok(Exit::Done),
            (Some(first), more) => {
                let more = if more == 0 { String::new() } else { format!(" ({more} more are not as they should be)") };
                Err(CliError::failed(format!("{first}{more}")))
            }
        }
    }
}
