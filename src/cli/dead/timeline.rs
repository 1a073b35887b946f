//! What an attempt told before its job was given up, for people.

use jiff::Timestamp;

use crate::cli::output::bytes;
use crate::message::DeadLetter;
use crate::message::told::ToldEvent;

/// A line for each event, in their order, under the date of each day; none where the letter is older than that.
pub fn timeline(letter: &DeadLetter) -> Vec<String> {
    let mut lines = of_events(&letter.events);
    if letter.events_left_out > 0 {
        lines.push(format!("and {} events more that had no room: see the worker's log", letter.events_left_out));
    }
    lines
}

fn of_events(events: &[ToldEvent]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut day = None;
    for told in events {
        let date = date(told.time);
        if day.as_ref() != Some(&date) {
            lines.push(format!("{date} UTC"));
        }
        lines.extend(of_event(told, &date));
        day = Some(date);
    }
    lines
}

fn of_event(told: &ToldEvent, day: &str) -> Vec<String> {
    let said = [step(told, day), retrying(told, day)].into_iter().flatten().collect::<String>();
    let time = clock(told.time, day);
    let mut lines = vec![format!("{time}  attempt {:<3} {:<9}{said}", told.attempt, told.event).trim_end().to_owned()];
    lines.extend(told.warnings.iter().map(|warning| format!("    warning: {warning}")));
    lines.extend(told.left_overs.iter().map(|left| format!("    left over: {}: {}", left.what, left.reason)));
    lines
}

fn date(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

/// A time, with its date where that is not the day that is spoken of.
fn clock(time: Timestamp, day: &str) -> String {
    let (clock, date) = (time.strftime("%H:%M:%S%.3f"), date(time));
    if date == day { clock.to_string() } else { format!("{date} {clock}") }
}

fn step(told: &ToldEvent, day: &str) -> Option<String> {
    let step = told.step.as_ref()?;
    let done = bytes(told.done_bytes.unwrap_or_default());
    let of =
        told.total_bytes.filter(|total| *total > 0).map_or_else(String::new, |total| format!(" of {}", bytes(total)));
    let since = told.since.map_or_else(String::new, |since| format!(", since {}", clock(since, day)));
    Some(format!("  {step}: {done}{of}{since}"))
}

fn retrying(told: &ToldEvent, day: &str) -> Option<String> {
    let failure = told.failure.as_ref()?;
    let next = told.next_attempt_at.map_or_else(String::new, |at| format!("; again from {}", clock(at, day)));
    let step = failure.step.as_ref().map_or_else(String::new, |step| format!(" in `{step}`"));
    Some(format!("  {}{step}: {}{next}", failure.code, failure.text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_event_is_a_line_with_what_it_says() {
        let told: Vec<ToldEvent> = serde_json::from_str(
            r#"[
            { "attempt": 1, "sequence": 3, "time": "2026-11-29T23:59:58.25Z", "event": "retrying",
              "failure": { "code": "mount_failed", "class": "transient", "step": "open", "text": "cannot mount" },
              "next_attempt_at": "2026-11-30T01:00:10Z", "warnings": ["odd"] },
            { "attempt": 2, "sequence": 1, "time": "2026-11-30T01:00:10Z", "event": "started" },
            { "attempt": 2, "sequence": 9, "time": "2026-11-30T01:00:20Z", "event": "progress", "step": "copy",
              "done_bytes": 1048576, "total_bytes": 4194304, "since": "2026-11-30T01:00:11Z" },
            { "attempt": 2, "sequence": 10, "time": "2026-11-30T01:00:21Z", "event": "failed",
              "left_overs": [{ "what": "/run/x", "reason": "it is busy" }] },
            { "attempt": 2, "sequence": 11, "time": "2026-11-30T01:00:22Z", "event": "of_a_later_version" }
            ]"#,
        )
        .unwrap();
        assert_eq!(
            of_events(&told),
            [
                "2026-11-29 UTC",
                "23:59:58.250  attempt 1   retrying   mount_failed in `open`: cannot mount; again from 2026-11-30 01:00:10.000",
                "    warning: odd",
                "2026-11-30 UTC",
                "01:00:10.000  attempt 2   started",
                "01:00:20.000  attempt 2   progress   copy: 1.00 MiB of 4.00 MiB, since 01:00:11.000",
                "01:00:21.000  attempt 2   failed",
                "    left over: /run/x: it is busy",
                "01:00:22.000  attempt 2   of_a_later_version",
            ]
        );
    }
}
