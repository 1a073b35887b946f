//! Moments of the past as a person types them: a time, or how long ago it is.

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// A moment: RFC 3339, or how long before now (`2h`, `90m`, `3d`, `1w`).
pub fn past(text: &str) -> Result<Timestamp, String> {
    past_at(text, Timestamp::now())
}

fn past_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    let neither = || format!("`{text}` is neither a time (RFC 3339) nor how long ago (`90m`, `2h`, `3d`)");
    let span: Span = text.parse().map_err(|_| neither())?;
    if span.is_negative() || text.starts_with(['-', '+']) {
        return Err(format!("`{text}` has a sign: `2h` alone means two hours ago"));
    }
    // Days and weeks as long as the clock has them in UTC.
    let before = now.to_zoned(TimeZone::UTC).checked_sub(span).map_err(|_| neither())?;
    Ok(before.timestamp())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn how_long_ago_is_as_good_as_a_time() {
        let now: Timestamp = "2026-11-30T14:00:00Z".parse().unwrap();
        for (text, moment) in [
            ("2026-11-30T00:00:00Z", "2026-11-30T00:00:00Z"),
            ("2026-11-30T01:00:00+01:00", "2026-11-30T00:00:00Z"),
            ("2h", "2026-11-30T12:00:00Z"),
            ("1h30m", "2026-11-30T12:30:00Z"),
            ("90m", "2026-11-30T12:30:00Z"),
            ("3d", "2026-11-27T14:00:00Z"),
            ("1w", "2026-11-23T14:00:00Z"),
            ("PT2H", "2026-11-30T12:00:00Z"),
        ] {
            assert_eq!(past_at(text, now), Ok(moment.parse().unwrap()), "{text}");
        }
        for text in ["", "soon", "2", "-2h", "+2h", "2h ago", "-PT2H", "20000y", "2026-11-30"] {
            assert!(past_at(text, now).is_err(), "{text}");
        }
    }
}
