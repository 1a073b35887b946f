//! `longshore job cancel`: one control message to one host's control queue, confirmed by the broker.

use clap::Args;
use jiff::Timestamp;

use super::ConfigArgs;
use super::broker::{block_on, connect};
use super::exit::Exit;
use super::output::CliError;
use crate::broker::topology::{CONTROL_EXCHANGE, control_key};
use crate::broker::{Outgoing, PublishError};
use crate::message::{Cancel, Encoding, decode_cancel, encode_cancel};
use crate::model::id::{HostId, JobId};

#[derive(Debug, Args)]
pub struct CancelArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The job
    job_id: JobId,
    /// Host that it was sent to
    #[arg(long)]
    host: HostId,
    /// Run of the job
    #[arg(long, default_value_t = 1, value_name = "N")]
    run: u32,
    /// Why, for those who read its end
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who wants it
    #[arg(long, value_name = "WHO")]
    requested_by: Option<String>,
    /// How long the host remembers it for a run that has not come; 30 days where it is absent
    #[arg(long, value_name = "SECONDS")]
    remember_seconds: Option<u64>,
}

pub fn run(args: &CancelArgs) -> Result<Exit, CliError> {
    let cancel = Cancel {
        job_id: args.job_id,
        run: args.run,
        requested_by: args.requested_by.clone(),
        reason: args.reason.clone(),
        remember_seconds: args.remember_seconds,
    };
    let encoded = encode_cancel(&cancel, Encoding::MessagePack, Timestamp::now())?;
    // As the worker will read it, so that a mistake is heard here.
    decode_cancel(&encoded.properties, &encoded.body).map_err(CliError::usage)?;
    let outgoing = Outgoing {
        exchange: CONTROL_EXCHANGE,
        routing_key: control_key(&args.host, Cancel::COMMAND),
        properties: encoded.properties,
        body: encoded.body,
    };
    block_on(publish(args, outgoing))
}

async fn publish(args: &CancelArgs, outgoing: Outgoing) -> Result<Exit, CliError> {
    let broker = connect(&args.config, "cancel")?;
    broker.publisher().publish(outgoing).await.map_err(|error| match error {
        PublishError::Unroutable { .. } => {
            CliError::not_found(format!("host `{}` has no control queue on this broker: {error}", args.host))
        }
        error => CliError::failed(error),
    })?;
    eprintln!("queued for host `{}`; whether it is obeyed, the run's last event says", args.host);
    Ok(Exit::Done)
}
