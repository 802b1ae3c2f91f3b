//! Cron schedules as CronJobs and PingSources have them: five fields, names, ranges, steps, and
//! the `@` forms. Wording of what is refused follows Kubernetes' validation.

use std::time::Duration;

use jiff::{Zoned, civil::Date, tz::TimeZone};

use crate::{Timestamp, parse_duration};

/// Days looked ahead before a schedule counts as never due (February 30th).
const MAX_DAYS: usize = 366 * 5;
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DESCRIPTORS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The zone that a prefix `TZ=` names; it goes before that of the object.
    zone: Option<TimeZone>,
    times: Times,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Times {
    /// At matching minutes of the local time.
    Calendar(Fields),
    /// At a fixed distance, of a second at least.
    Every(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields {
    minutes: Set,
    hours: Set,
    days: Set,
    months: Set,
    weekdays: Set,
}

/// The values a field allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set {
    /// One bit per value.
    bits: u64,
    /// Whether it was written `*`: of two fields for the day, the other then decides alone.
    star: bool,
}

/// What a field may hold.
struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: &MONTHS },
    Bounds { low: 0, high: 6, names: &WEEKDAYS },
];

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) else {
            return Ok(Self { zone: None, times: Times::parse(text)? });
        };
        let (zone, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let zone = match TimeZone::get(zone) {
            Ok(zone) => Some(zone),
            // A machine without a database of zones cannot tell.
            Err(_) if jiff::tz::db().is_definitively_empty() => None,
            Err(_) => return Err(format!("provided bad location {zone}: unknown time zone {zone}")),
        };
        Ok(Self { zone, times: Times::parse(rest.trim())? })
    }

    /// The first time after `after`, by the clocks of `zone` unless the schedule names its own.
    /// Local times that a clock change skips are skipped; those that come twice count twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.times {
            Times::Every(span) => {
                let whole = jiff::Timestamp::from_second(after.0.as_second()).ok()?;
                Some(Timestamp(whole).after(*span))
            }
            Times::Calendar(fields) => fields.next(after, self.zone.as_ref().unwrap_or(zone)),
        }
    }

    /// The last time in `(from, now]`, and whether more than `many` lie there.
    pub fn latest(
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

impl Times {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(span) = text.strip_prefix("@every ") {
            let Some(parsed) = parse_duration(span) else {
                return Err(format!("failed to parse duration {text}: time: invalid duration \"{span}\""));
            };
            let second = Duration::from_secs(1);
            return Ok(Self::Every(Duration::try_from(parsed).unwrap_or(second).max(second)));
        }
        if text.starts_with('@') {
            let known = DESCRIPTORS.iter().find(|(name, _)| *name == text);
            let (_, fields) = known.ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
            return Self::parse(fields);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = *fields else {
            let list = fields.join(" ");
            return Err(format!("expected exactly 5 fields, found {}: [{list}]", fields.len()));
        };
        Ok(Self::Calendar(Fields {
            minutes: Set::parse(minutes, &FIELDS[0])?,
            hours: Set::parse(hours, &FIELDS[1])?,
            days: Set::parse(days, &FIELDS[2])?,
            months: Set::parse(months, &FIELDS[3])?,
            weekdays: Set::parse(weekdays, &FIELDS[4])?,
        }))
    }
}

impl Fields {
    /// Steps through the minutes as they pass, by days and hours where none can match: so changes
    /// of the clocks need no rule of their own.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.minutes.bits == 0 || self.hours.bits == 0 {
            return None;
        }
        let minute = after.0.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
        let mut at = jiff::Timestamp::from_second(minute).ok()?.to_zoned(zone.clone());
        let last = at.date().saturating_add(jiff::Span::new().days(MAX_DAYS as i64));
        while at.date() <= last {
            at = if !self.allows(at.date()) {
                at.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?
            } else if !self.hours.has(at.hour()) {
                later(&at, 60 - at.minute())?
            } else if !self.minutes.has(at.minute()) {
                later(&at, 1)?
            } else {
                return Some(Timestamp(at.timestamp()));
            };
        }
        None
    }

    fn allows(&self, date: Date) -> bool {
        let day = self.days.has(date.day());
        let weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        let right_day = if self.days.star || self.weekdays.star { day && weekday } else { day || weekday };
        self.months.has(date.month()) && right_day
    }
}

fn later(at: &Zoned, minutes: i8) -> Option<Zoned> {
    at.checked_add(jiff::SignedDuration::from_mins(minutes.into())).ok()
}

impl Set {
    fn has(self, value: i8) -> bool {
        self.bits >> value & 1 == 1
    }

    /// A list of `*`, `a` and `a-b`, each with an optional `/step`.
    fn parse(field: &str, bounds: &Bounds) -> Result<Self, String> {
        let mut set = Self::default();
        for part in field.split(',').filter(|part| !part.is_empty()) {
            let part = Self::parse_range(part, bounds)?;
            set = Self { bits: set.bits | part.bits, star: set.star || part.star };
        }
        Ok(set)
    }

    fn parse_range(text: &str, bounds: &Bounds) -> Result<Self, String> {
        let mut parts = text.split('/');
        let (span, step) = (parts.next().unwrap_or(""), parts.next());
        if parts.next().is_some() {
            return Err(format!("too many slashes: {text}"));
        }
        let mut ends = span.split('-');
        let (first, last) = (ends.next().unwrap_or(""), ends.next());
        if ends.next().is_some() {
            return Err(format!("too many hyphens: {text}"));
        }
        let any = matches!(first, "*" | "?");
        let (start, end) = match last {
            _ if any => (bounds.low, bounds.high),
            Some(last) => (number(first, bounds)?, number(last, bounds)?),
            None => {
                let start = number(first, bounds)?;
                // A single value with a step means from there on.
                (start, if step.is_some() { bounds.high } else { start })
            }
        };
        let step = step.map_or(Ok(1), plain_number)?;
        if start < bounds.low {
            return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.low));
        }
        if end > bounds.high {
            return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.high));
        }
        if start > end {
            return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
        }
        if step == 0 {
            return Err(format!("step of range should be a positive number: {text}"));
        }
        let bits = (start..=end).step_by(step as usize).fold(0, |bits, value| bits | 1 << value);
        Ok(Self { bits, star: any && step == 1 })
    }
}

fn number(text: &str, bounds: &Bounds) -> Result<u32, String> {
    match (bounds.low..).zip(bounds.names).find(|(_, name)| text.eq_ignore_ascii_case(name)) {
        Some((value, _)) => Ok(value),
        None => plain_number(text),
    }
}

fn plain_number(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(format!("negative number ({number}) not allowed: {text}")),
        Ok(number) => Ok(u32::try_from(number).unwrap_or(u32::MAX)),
        Err(_) => {
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing \"{text}\": invalid syntax"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, zone: &str, after: &str, expect: &[&str]) {
        let parsed = Schedule::parse(schedule).unwrap();
        let zone = TimeZone::get(zone).unwrap();
        let mut at: Timestamp = after.parse().unwrap();
        for wanted in expect {
            at = parsed.next(at, &zone).unwrap();
            assert_eq!(at.to_string(), *wanted, "{schedule}");
        }
    }

    #[test]
    fn fields_names_ranges_and_steps() {
        let from = "2026-01-01T00:00:00Z";
        check(
            "*/5 * * * *",
            "UTC",
            "2026-01-01T00:03:20Z",
            &["2026-01-01T00:05:00Z", "2026-01-01T00:10:00Z"],
        );
        check("30 8 * * mon-fri", "UTC", "2026-01-02T09:00:00Z", &["2026-01-05T08:30:00Z"]);
        check("0 0 31 * *", "UTC", "2026-01-31T00:00:00Z", &["2026-03-31T00:00:00Z"]);
        check("0 12 29 feb *", "UTC", from, &["2028-02-29T12:00:00Z"]);
        check("50/5 1 * * *", "UTC", from, &["2026-01-01T01:50:00Z", "2026-01-01T01:55:00Z"]);
        check("0 0 ? * SUN", "UTC", from, &["2026-01-04T00:00:00Z"]);
        check("@hourly", "UTC", from, &["2026-01-01T01:00:00Z"]);
        check("@every 1h30m", "UTC", "2026-01-01T00:00:07Z", &["2026-01-01T01:30:07Z"]);
    }

    #[test]
    fn of_two_restricted_fields_for_the_day_either_is_enough() {
        let from = "2026-02-12T00:00:00Z";
        check("0 0 13 * 5", "UTC", from, &["2026-02-13T00:00:00Z", "2026-02-20T00:00:00Z"]);
        // A step restricts.
        check("0 0 */20 * 0", "UTC", from, &["2026-02-15T00:00:00Z", "2026-02-21T00:00:00Z"]);
        check("0 0 */1 * 0", "UTC", from, &["2026-02-15T00:00:00Z", "2026-02-22T00:00:00Z"]);
    }

    #[test]
    fn local_time_with_its_clock_changes() {
        check("0 6 * * *", "Europe/Berlin", "2026-01-01T00:00:00Z", &["2026-01-01T05:00:00Z"]);
        check("TZ=Asia/Tokyo 0 6 * * *", "UTC", "2026-01-01T00:00:00Z", &["2026-01-01T21:00:00Z"]);
        // 02:30 does not exist on the 29th of March, and comes twice on the 25th of October.
        check("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", &["2026-03-30T00:30:00Z"]);
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check(
            "0 * * * *",
            "Europe/Berlin",
            "2026-10-24T23:59:00Z",
            &["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"],
        );
        // Half an hour, at the other end of the world.
        check("15 2 * * *", "Australia/Lord_Howe", "2026-10-02T20:00:00Z", &["2026-10-04T15:15:00Z"]);
    }

    #[test]
    fn refuses_what_is_no_schedule() {
        for (bad, why) in [
            ("", "empty spec string"),
            ("every day", "expected exactly 5 fields, found 2: [every day]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* 24 * * *", "end of range (24) above maximum (23): 24"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            (
                "TZ=Nowhere/At_All * * * * *",
                "provided bad location Nowhere/At_All: unknown time zone Nowhere/At_All",
            ),
        ] {
            assert_eq!(Schedule::parse(bad).err().as_deref(), Some(why), "{bad}");
        }
        // Days, minutes and hours that there are not.
        for text in ["0 0 30 2 *", ", * * * *", "* , * * *"] {
            let never = Schedule::parse(text).unwrap();
            assert_eq!(never.next("2026-01-01T00:00:00Z".parse().unwrap(), &TimeZone::UTC), None, "{text}");
        }
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
