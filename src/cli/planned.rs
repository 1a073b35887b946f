//! What a restore would do, for people: of `backup plan-restore`, and of a job that only says so.

use super::output::{self, CliError, printable};
use crate::model::restoration::{PlannedInstance, PlannedRestore};

/// A line for each thing that would be made.
pub fn print(planned: &PlannedRestore) -> Result<(), CliError> {
    for volume in &planned.volumes {
        let (word, end) = match (volume.overwrites, volume.replaces) {
            (true, _) => ("would write over", "; there is no way back"),
            (false, true) => ("would replace", ""),
            (false, false) => ("would make", ""),
        };
        let (path, format) = (printable(&volume.path), volume.format.as_str());
        let [size, data] = [volume.virtual_bytes, volume.data_bytes].map(output::bytes);
        let of = format!("disk {} of the backup", volume.disk);
        output::line(&format!("{word:<13}  {path} ({format}): {of}, {size}, at most {data} of data{end}"))?;
    }
    for file in &planned.files {
        output::line(&format!("would make     {}", printable(file)))?;
    }
    if let Some(PlannedInstance { id, id_is_drawn, name, start }) = &planned.new_instance {
        let start = if *start { ", and start it" } else { "" };
        output::line(&format!("would define   instance {name} ({id}){start}"))?;
        if *id_is_drawn {
            output::line(
                "               the uuid, and with it new MAC addresses, is drawn again for the restore: --new-id keeps it",
            )?;
        }
    }
    if let (Some(PlannedInstance { id, name, .. }), Some(volume)) = (&planned.attach_to, planned.volumes.first()) {
        output::line(&format!("would attach   it to instance {name} ({id}) as {}", volume.target))?;
    }
    output::line(&format!("written        at most {}", output::bytes(planned.data_bytes)))
}
