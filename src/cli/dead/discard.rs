//! `longshore dead discard`.

use clap::Args;

use super::audit::Audit;
use super::perform::{PerformArgs, Work};
use super::select::SelectArgs;
use crate::cli::broker::{block_on, connect};
use crate::cli::exit::Exit;
use crate::cli::output::CliError;
use crate::letters::{Deed, Strays};
use crate::message::event::{Discarded, LetterDetail};

#[derive(Debug, Args)]
pub struct DiscardArgs {
    #[command(flatten)]
    select: SelectArgs,
    #[command(flatten)]
    perform: PerformArgs,
    /// Why, for those who read the events
    #[arg(long, value_name = "TEXT", required = true)]
    reason: Option<String>,
}

pub fn run(args: &DiscardArgs) -> Result<Exit, CliError> {
    let filter = args.select.filter_or_all(args.perform.all)?;
    let audit = Audit::new(&args.select.config, &args.perform, args.reason.as_deref())?;
    block_on(async {
        let broker = connect(&args.select.config, "dead discard")?;
        let work = Work {
            args: &args.perform,
            broker: broker.as_ref(),
            filter: &filter,
            done: "discarded",
            strays: if args.perform.all { Strays::All } else { Strays::Old },
            spared: &|_, _| None,
            plan: &|letter| Ok(letter.code()),
            deed: &|letter| {
                let event = audit.event(letter, LetterDetail::Discarded(Discarded {}))?;
                Ok(Deed { job: None, event: Some(event) })
            },
        };
        work.run().await
    })
}
