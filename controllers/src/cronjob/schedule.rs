//! Cron schedules: five fields, names, ranges, steps, and the `@` forms.

use std::time::Duration;

use jiff::{
    civil::{Date, DateTime, Time},
    tz::{AmbiguousOffset, TimeZone},
};
use wasmk_api::Timestamp;

/// Days looked ahead before a schedule counts as never due (February 30th).
const MAX_DAYS: usize = 366 * 5;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Schedule {
    /// At matching minutes of the local time.
    Calendar(Box<Fields>),
    /// At a fixed distance.
    Every(Duration),
}

/// One bit per allowed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether the field was `*`: then the other one alone decides about the day.
    any_day: bool,
    any_weekday: bool,
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// With a text that names the field at fault.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        if let Some(span) = text.strip_prefix("@every ") {
            return every(span).map(Self::Every).ok_or_else(|| format!("failed to parse duration {text}"));
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = *fields else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let star = |field: &str| matches!(field, "*" | "?") || field.starts_with("*/");
        let mut weekdays = bits(weekday, 0, 7, &DAYS)?;
        // Both 0 and 7 are Sunday.
        if weekdays & (1 << 7) != 0 {
            weekdays = (weekdays | 1) & 0x7f;
        }
        Ok(Self::Calendar(Box::new(Fields {
            minutes: bits(minute, 0, 59, &[])?,
            hours: bits(hour, 0, 23, &[])?,
            days: bits(day, 1, 31, &[])?,
            months: bits(month, 1, 12, &MONTHS)?,
            weekdays,
            any_day: star(day),
            any_weekday: star(weekday),
        })))
    }

    /// The first time after `after`. Local times that a clock change skips are skipped; of
    /// those that come twice the first counts.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(span) => {
                let whole = jiff::Timestamp::from_second(after.0.as_second()).ok()?;
                Some(Timestamp(whole).after(*span))
            }
            Self::Calendar(fields) => fields.next(after, zone),
        }
    }

    /// The last time in `(from, now]`, and whether more than `many` lie there.
    pub(super) fn latest(
        &self,
        from: Timestamp,
        now: Timestamp,
        zone: &TimeZone,
        many: usize,
    ) -> (Option<Timestamp>, bool) {
        let (mut latest, mut at, mut count) = (None, from, 0);
        while let Some(next) = self.next(at, zone).filter(|t| *t <= now) {
            (latest, at) = (Some(next), next);
            count += 1;
            if count > many {
                return (self.latest_near(now, zone).or(latest), true);
            }
        }
        (latest, false)
    }

    /// The last time before `now`, found from ever further back.
    fn latest_near(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        const HOUR: u64 = 3600;
        for hours in [1, 24, 24 * 8, 24 * 32, 24 * 400] {
            let mut at = Timestamp(now.0.checked_sub(Duration::from_secs(hours * HOUR)).ok()?);
            let mut latest = None;
            while let Some(next) = self.next(at, zone).filter(|t| *t <= now) {
                (latest, at) = (Some(next), next);
            }
            if latest.is_some() {
                return latest;
            }
        }
        None
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut date = after.0.to_zoned(zone.clone()).date();
        for _ in 0..MAX_DAYS {
            if self.allows(date)
                && let Some(found) = self.in_day(date, after, zone)
            {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    fn allows(&self, date: Date) -> bool {
        let has = |set: u64, value: i8| set & (1 << value) != 0;
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        let right_day = if self.any_day || self.any_weekday { day && weekday } else { day || weekday };
        has(self.months, date.month()) && right_day
    }

    fn in_day(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        for hour in (0..24).filter(|h| self.hours & (1 << h) != 0) {
            for minute in (0..60).filter(|m| self.minutes & (1 << m) != 0) {
                let local = DateTime::from_parts(date, Time::constant(hour, minute, 0, 0));
                let local = zone.to_ambiguous_timestamp(local);
                if matches!(local.offset(), AmbiguousOffset::Gap { .. }) {
                    continue;
                }
                if let Ok(at) = local.earlier()
                    && at > after.0
                {
                    return Some(Timestamp(at));
                }
            }
        }
        None
    }
}

/// `1h30m`, `90s`: units h, m, s.
fn every(text: &str) -> Option<Duration> {
    let (mut total, mut number) = (0_u64, String::new());
    for c in text.trim().chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && total > 0).then(|| Duration::from_secs(total))
}

/// A field's values as bits: lists of `*`, `a`, `a-b`, each with an optional `/step`.
fn bits(field: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, String> {
    let value = |text: &str| -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        if let Some(i) = names.iter().position(|n| *n == lower) {
            return Ok(u32::try_from(i).unwrap_or(0) + min);
        }
        text.parse().map_err(|_| format!("failed to parse int from {text}: invalid syntax"))
    };
    let mut all = 0;
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
        let (low, high) = match range {
            "*" | "?" => (min, max.min(if names.len() == 7 { 6 } else { max })),
            range => match range.split_once('-') {
                Some((low, high)) => (value(low)?, value(high)?),
                // A single value with a step means from there on.
                None => (value(range)?, if step.is_some() { max } else { value(range)? }),
            },
        };
        let step = step.map_or(Ok(1), &value)?;
        if low < min {
            return Err(format!("beginning of range ({low}) below minimum ({min}): {part}"));
        }
        if high > max {
            return Err(format!("end of range ({high}) above maximum ({max}): {part}"));
        }
        if low > high || step == 0 {
            return Err(format!(
                "beginning of range ({low}) beyond end of range ({high}), or a step of 0: {part}"
            ));
        }
        all |= (low..=high).step_by(step as usize).fold(0_u64, |bits, v| bits | 1 << v);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, zone: &str, after: &str, expect: &[&str]) {
        let schedule = Schedule::parse(schedule).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for wanted in expect {
            at = schedule.next(at, &zone).unwrap();
            assert_eq!(at.to_string(), *wanted, "{schedule:?}");
        }
    }

    #[test]
    fn fields_names_ranges_and_steps() {
        check(
            "*/5 * * * *",
            "UTC",
            "2026-01-01T00:03:20Z",
            &["2026-01-01T00:05:00Z", "2026-01-01T00:10:00Z"],
        );
        check("30 8 * * mon-fri", "UTC", "2026-01-02T09:00:00Z", &["2026-01-05T08:30:00Z"]);
        check("0 0 31 * *", "UTC", "2026-01-31T00:00:00Z", &["2026-03-31T00:00:00Z"]);
        check("0 0 13 * 5", "UTC", "2026-02-12T00:00:00Z", &["2026-02-13T00:00:00Z", "2026-02-20T00:00:00Z"]);
        check("0 12 29 feb *", "UTC", "2026-01-01T00:00:00Z", &["2028-02-29T12:00:00Z"]);
        check("0 0 * * 7", "UTC", "2026-01-01T00:00:00Z", &["2026-01-04T00:00:00Z"]);
        check(
            "50/5 1 * * *",
            "UTC",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T01:50:00Z", "2026-01-01T01:55:00Z"],
        );
        check("@hourly", "UTC", "2026-01-01T00:00:00Z", &["2026-01-01T01:00:00Z"]);
        check("@every 1h30m", "UTC", "2026-01-01T00:00:07Z", &["2026-01-01T01:30:07Z"]);
    }

    #[test]
    fn local_time_with_its_clock_changes() {
        check("0 6 * * *", "Europe/Berlin", "2026-01-01T00:00:00Z", &["2026-01-01T05:00:00Z"]);
        // 02:30 does not exist on the 29th of March, and comes twice on the 25th of October.
        check("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]);
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
    }

    #[test]
    fn refuses_what_is_no_schedule() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "a * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@every x",
            "@never",
        ] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None);
    }

    #[test]
    fn the_latest_of_many_missed_times() {
        let often = Schedule::parse("* * * * *").unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (from, now) = (at("2026-01-01T00:00:00Z"), at("2026-01-09T00:00:30Z"));
        assert_eq!(often.latest(from, now, &TimeZone::UTC, 100), (Some(at("2026-01-09T00:00:00Z")), true));
        assert_eq!(often.latest(from, at("2026-01-01T00:00:59Z"), &TimeZone::UTC, 100), (None, false));
    }
}
