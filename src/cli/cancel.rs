//! `longshore job cancel`: one control message to one host.

use clap::Args;

use super::ConfigArgs;
use super::broker::{block_on, connect};
use super::control;
use super::exit::Exit;
use super::output::CliError;
use crate::message::{Cancel, Control};
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
    let cancel = Control::Cancel(Cancel {
        job_id: args.job_id,
        run: args.run,
        requested_by: args.requested_by.clone(),
        reason: args.reason.clone(),
        remember_seconds: args.remember_seconds,
    });
    block_on(async {
        let broker = connect(&args.config, "cancel")?;
        control::tell(broker.as_ref(), std::slice::from_ref(&args.host), &cancel).await
    })
}
