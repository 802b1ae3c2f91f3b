//! Schedules of five fields, as cron has them: minute, hour, day, month, day of the week.

/// When something happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether day and weekday are both restricted: then either is enough.
    either: bool,
}

/// A moment on a clock, to the minute. Sunday is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub minute: u32,
    pub hour: u32,
    pub day: u32,
    pub month: u32,
    pub weekday: u32,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    /// Reads a schedule or a name such as `@hourly`.
    ///
    /// # Errors
    /// With the field that cannot be read.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{text}]", fields.len()));
        };
        let mut week = field(weekdays, 0, 7, &WEEKDAYS, 0)?;
        // Sunday is 0 and 7.
        week |= (week >> 7) & 1;
        Ok(Self {
            minutes: field(minutes, 0, 59, &[], 0)?,
            hours: field(hours, 0, 23, &[], 0)?,
            days: field(days, 1, 31, &[], 0)?,
            months: field(months, 1, 12, &MONTHS, 1)?,
            weekdays: week,
            either: !days.starts_with(['*', '?']) && !weekdays.starts_with(['*', '?']),
        })
    }

    /// Whether it is time.
    pub(crate) fn is_at(&self, now: Moment) -> bool {
        let has = |set: u64, n: u32| set >> n & 1 == 1;
        let (day, weekday) = (has(self.days, now.day), has(self.weekdays, now.weekday));
        let date = if self.either { day || weekday } else { day && weekday };
        has(self.minutes, now.minute) && has(self.hours, now.hour) && has(self.months, now.month) && date
    }
}

/// A field as a set of numbers: a list of ranges, with steps.
fn field(text: &str, low: u32, high: u32, names: &[&str], first: u32) -> Result<u64, String> {
    let wrong = || format!("{text:?}: {low} to {high} was expected");
    let number = |text: &str| -> Option<u32> {
        let named =
            names.iter().position(|n| n.eq_ignore_ascii_case(text)).and_then(|i| u32::try_from(i).ok());
        named.map(|i| i + first).or_else(|| text.parse().ok()).filter(|n| (low..=high).contains(n))
    };
    let mut set = 0_u64;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let stride: u32 = step.map_or(Some(1), |s| s.parse().ok().filter(|s| *s > 0)).ok_or_else(wrong)?;
        let (from, to) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (low, high),
            Some((from, to)) => (number(from).ok_or_else(wrong)?, number(to).ok_or_else(wrong)?),
            None => {
                let one = number(range).ok_or_else(wrong)?;
                (one, if step.is_some() { high } else { one })
            }
        };
        if from > to {
            return Err(wrong());
        }
        (from..=to).step_by(stride as usize).for_each(|n| set |= 1 << n);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: &str, (minute, hour, day, month, weekday): (u32, u32, u32, u32, u32), expected: bool) {
        let moment = Moment { minute, hour, day, month, weekday };
        assert_eq!(Schedule::read(schedule).unwrap().is_at(moment), expected, "{schedule} {moment:?}");
    }

    #[test]
    fn schedules() {
        check("* * * * *", (7, 3, 1, 1, 4), true);
        check("*/15 * * * *", (45, 3, 1, 1, 4), true);
        check("*/15 * * * *", (46, 3, 1, 1, 4), false);
        check("5/20 * * * *", (25, 3, 1, 1, 4), true);
        check("0 9-17 * * mon-fri", (0, 12, 1, 1, 3), true);
        check("0 9-17 * * MON-FRI", (0, 12, 1, 1, 0), false);
        check("0 0 * * 7", (0, 0, 3, 1, 0), true);
        check("0 0 1,15 * fri", (0, 0, 15, 1, 2), true);
        check("0 0 1,15 * fri", (0, 0, 14, 1, 5), true);
        check("0 0 1,15 * *", (0, 0, 14, 1, 5), false);
        check("@hourly", (0, 5, 9, 9, 1), true);
    }

    #[test]
    fn what_is_no_schedule() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "5-1 * * * *",
            "*/0 * * * *",
            "x * * * *",
        ] {
            assert!(Schedule::read(text).is_err(), "{text}");
        }
    }
}
