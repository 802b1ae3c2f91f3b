//! When a node counts as short of something, and whether it is now.

use std::{fmt, path::Path, str::FromStr};

use crate::machine;

/// Memory below which the node is under pressure when nothing is said, in bytes.
const MEMORY: i64 = 64 << 20;
/// Disk space below which the node is under pressure when nothing is said, in bytes.
const DISK: i64 = 256 << 20;
/// Free process numbers below which the node is under pressure when nothing is said.
const PROCESSES: i64 = 200;

/// What is to be left of a resource.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Least {
    /// Bytes, or processes.
    Amount(i64),
    /// Part of all there is, in hundredths.
    Percent(f64),
}

impl Least {
    /// Whether `available` of `total` is less than this.
    fn exceeds(self, (available, total): (i64, i64)) -> bool {
        match self {
            Self::Amount(least) => available < least,
            #[allow(clippy::cast_precision_loss, reason = "a part of a hundred needs no more digits")]
            Self::Percent(least) => (available as f64) < total as f64 * least / 100.0,
        }
    }
}

/// What is to be left of the node's resources; below it pods are evicted. Written as kubelets take it:
/// `memory.available<100Mi,nodefs.available<10%,pid.available<5%`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    memory: Least,
    disk: Least,
    processes: Least,
}

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(least) => write!(f, "{least}"),
            Self::Percent(least) => write!(f, "{least}%"),
        }
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, disk, processes } = self;
        write!(f, "memory.available<{memory},nodefs.available<{disk},pid.available<{processes}")
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { memory: Least::Amount(MEMORY), disk: Least::Amount(DISK), processes: Least::Amount(PROCESSES) }
    }
}

impl FromStr for Thresholds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (signal, amount) =
                part.split_once('<').ok_or_else(|| format!("{part}: SIGNAL<AMOUNT was expected"))?;
            let least = least(amount.trim()).ok_or_else(|| {
                format!("{part}: an amount like 100Mi, or a part like 10%, was expected after `<`")
            })?;
            match signal.trim() {
                "memory.available" => out.memory = least,
                // The images of this node are on the disk of everything else.
                "nodefs.available" | "imagefs.available" => out.disk = least,
                "pid.available" => out.processes = least,
                other => {
                    return Err(format!(
                        "{other} is no signal; memory.available, nodefs.available, imagefs.available and \
                         pid.available are"
                    ));
                }
            }
        }
        Ok(out)
    }
}

fn least(text: &str) -> Option<Least> {
    if let Some(part) = text.strip_suffix('%') {
        return part.parse().ok().filter(|p| (0.0..=100.0).contains(p)).map(Least::Percent);
    }
    let amount = text.parse::<wasmk_api::Quantity>().ok()?.value();
    (amount >= 0).then_some(Least::Amount(amount))
}

/// What the node is short of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) processes: bool,
}

impl Short {
    /// Of what this machine tells; what it does not tell is not short.
    pub(crate) fn now(data_dir: &Path, of: &Thresholds) -> Self {
        let exceeds = |least: Least, amounts: Option<(i64, i64)>| amounts.is_some_and(|a| least.exceeds(a));
        Self {
            memory: exceeds(of.memory, machine::memory()),
            disk: exceeds(of.disk, machine::disk(data_dir)),
            processes: exceeds(of.processes, machine::processes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_written_as_for_kubelets() {
        let default = Thresholds::default();
        for (text, expect) in [
            ("", Ok(default)),
            ("memory.available<1Gi", Ok(Thresholds { memory: Least::Amount(1 << 30), ..default })),
            (
                "nodefs.available<10%, pid.available<5",
                Ok(Thresholds { disk: Least::Percent(10.0), processes: Least::Amount(5), ..default }),
            ),
            ("memory.available", Err("memory.available: SIGNAL<AMOUNT was expected")),
            (
                "nodefs.available<200%",
                Err(
                    "nodefs.available<200%: an amount like 100Mi, or a part like 10%, was expected after `<`",
                ),
            ),
            (
                "swap<1",
                Err(
                    "swap is no signal; memory.available, nodefs.available, imagefs.available and pid.available are",
                ),
            ),
        ] {
            let read = text.parse::<Thresholds>();
            assert_eq!(read, expect.map_err(String::from), "{text}");
            if let Ok(read) = read {
                assert_eq!(read.to_string().parse(), Ok(read), "{text}");
            }
        }
    }

    #[test]
    fn parts_and_amounts_are_compared() {
        for (least, available, expect) in [
            (Least::Amount(10), 9, true),
            (Least::Amount(10), 10, false),
            (Least::Percent(10.0), 9, true),
            (Least::Percent(10.0), 10, false),
        ] {
            assert_eq!(least.exceeds((available, 100)), expect, "{least:?} {available}");
        }
    }
}
