//! What a validation found, for people: the worst first, each with where it is and what to do about it.

use super::exit::Exit;
use super::output::{self, CliError};
use crate::model::validation::{Finding, Severity, Validation};

/// Instances whose sizes are shown.
const SIZES_SHOWN_MAX: usize = 10;

/// How a command ends that found this.
pub fn exit(validation: &Validation) -> Exit {
    if validation.errors + validation.warnings == 0 { Exit::Done } else { Exit::Warnings }
}

/// Prints all of it.
pub fn print(validation: &Validation) -> Result<(), CliError> {
    let Validation { instances, backups, bytes_read, .. } = validation;
    let level = output::word(&validation.level);
    let read = output::bytes(*bytes_read);
    output::line(&format!("validated    {level}: {instances} instances, {backups} backups, {read} read"))?;
    let (free, capacity) = (output::bytes(validation.free_bytes), output::bytes(validation.capacity_bytes));
    output::line(&format!("room         {free} of {capacity} free"))?;
    for size in validation.instance_sizes.iter().take(SIZES_SHOWN_MAX) {
        let bytes = output::bytes(size.file_bytes);
        output::line(&format!("instance     {}: {} backups, {bytes}", size.instance_id, size.backups))?;
    }
    let more = validation.instance_sizes.len().saturating_sub(SIZES_SHOWN_MAX);
    if more > 0 || validation.instance_sizes_left_out > 0 {
        let more = u64::try_from(more).unwrap_or(u64::MAX).saturating_add(validation.instance_sizes_left_out);
        output::line(&format!("             and {more} more"))?;
    }
    for finding in &validation.findings {
        output::line(&line(finding))?;
        if finding.severity > Severity::Note {
            output::line(&format!("             {}", finding.remedy))?;
        }
    }
    if validation.findings_left_out > 0 {
        output::line(&format!("             and {} more findings", validation.findings_left_out))?;
    }
    let Validation { errors, warnings, notes, .. } = validation;
    output::line(&format!("found        {errors} errors, {warnings} warnings, {notes} notes"))
}

fn line(finding: &Finding) -> String {
    let word = output::word(&finding.severity);
    let offset = finding.offset.map_or_else(String::new, |offset| format!(" at {offset}"));
    let disk = finding.disk.as_ref().map_or_else(String::new, |disk| format!(" disk {disk}{offset}"));
    format!("{word:<12} {}{disk}: {} [{}]", finding.path, finding.text, finding.code.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::validation::FindingCode;

    #[test]
    fn a_finding_says_where_it_is_in_one_line() {
        let finding = Finding::new(FindingCode::ContentDiffers, "instances/i/b/vda.qcow2", "1 block differs");
        let finding = finding.of_disk(&"vda".parse().unwrap()).at(1 << 20);
        let said = "error        instances/i/b/vda.qcow2 disk vda at 1048576: 1 block differs [content_differs]";
        assert_eq!(line(&finding), said);
    }
}
