//! `longshore codes`: the table of failure codes.

use clap::Args;

use super::exit::Exit;
use super::output::{self, CliError};
use crate::failure::{Class, Code};

#[derive(Debug, Args)]
pub struct CodesArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &CodesArgs) -> Result<Exit, CliError> {
    for code in Code::ALL {
        if args.json {
            output::json_line(&serde_json::json!({
                "code": code, "class": code.class(), "meaning": code.meaning()
            }))?;
        } else {
            output::line(&format!("{:<28} {:<9}  {}", code.as_str(), class(code.class()), code.meaning()))?;
        }
    }
    Ok(Exit::Done)
}

fn class(class: Class) -> &'static str {
    match class {
        Class::Transient => "transient",
        Class::Permanent => "permanent",
        Class::Bug => "bug",
    }
}
