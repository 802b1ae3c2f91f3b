//! `config-autoscaler`.

use std::time::Duration;

use super::{Wrong, read::Values};

/// The class of Knative's own autoscaler.
pub(crate) const KPA: &str = "kpa.autoscaling.knative.dev";
/// The class that leaves scaling to a HorizontalPodAutoscaler.
pub(crate) const HPA: &str = "hpa.autoscaling.knative.dev";
/// Longest window, retention and delay.
const HOUR: Duration = Duration::from_secs(3600);

/// How revisions are scaled where their annotations say nothing.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Autoscaler {
    /// Share of the target that pods are loaded to, 0 to 1.
    pub utilization: f64,
    /// Requests at a time for a pod.
    pub concurrency: f64,
    /// Requests per second for a pod.
    pub rps: f64,
    /// Requests that may come at once and find spare room; -1 keeps the queue in the path for ever.
    pub burst: f64,
    /// The window that decides in calm times.
    pub stable_window: Duration,
    /// The window that notices bursts, in percent of the stable one.
    pub panic_window: f64,
    /// How much of the present capacity starts a panic, in percent.
    pub panic_threshold: f64,
    /// Most growth in one decision, as a factor.
    pub up_rate: f64,
    /// Most shrinking in one decision, as a divisor.
    pub down_rate: f64,
    /// Whether there may be no pod at all.
    pub to_zero: bool,
    /// Longest time between the decision for zero and the last pod's end.
    pub grace: Duration,
    /// Shortest time the last pod stays.
    pub retention: Duration,
    /// `kpa.…` or `hpa.…`.
    pub class: String,
    /// Pods at the start.
    pub initial: i32,
    /// Whether a revision may start without pods.
    pub zero_initial: bool,
    /// Fewest pods.
    pub min: i32,
    /// Most pods; 0 for no bound.
    pub max: i32,
    /// The largest `max-scale` a revision may ask for; 0 for any.
    pub max_limit: i32,
    /// How long a smaller number must be wanted before it is taken.
    pub down_delay: Duration,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            utilization: 0.7,
            concurrency: 100.0,
            rps: 200.0,
            burst: 211.0,
            stable_window: Duration::from_secs(60),
            panic_window: 10.0,
            panic_threshold: 200.0,
            up_rate: 1000.0,
            down_rate: 2.0,
            to_zero: true,
            grace: Duration::from_secs(30),
            retention: Duration::ZERO,
            class: KPA.into(),
            initial: 1,
            zero_initial: false,
            min: 0,
            max: 0,
            max_limit: 0,
            down_delay: Duration::ZERO,
        }
    }
}

impl Autoscaler {
    pub(super) fn read(values: &Values<'_>) -> Result<Self, Wrong> {
        let or = Self::default();
        // Written as a share of one or in percent.
        let percentage = values.number(
            "container-concurrency-target-percentage",
            70.0,
            "a percentage above 0 and up to 100",
            |p: f64| p > 0.0 && p <= 100.0,
        )?;
        let at_least = |key: &str, default: f64, least: f64| {
            values.number(key, default, &format!("a number of at least {least}"), |n: f64| n >= least)
        };
        let count =
            |key: &str, default: i32| values.number(key, default, "a whole number, 0 or more", |n| n >= 0);
        let read = Self {
            utilization: if percentage <= 1.0 { percentage } else { percentage / 100.0 },
            concurrency: at_least("container-concurrency-target-default", or.concurrency, 0.01)?,
            rps: at_least("requests-per-second-target-default", or.rps, 0.01)?,
            burst: values.number("target-burst-capacity", or.burst, "-1, or 0 and more", |n: f64| {
                n >= 0.0 || n == -1.0
            })?,
            stable_window: span(values, "stable-window", or.stable_window, Duration::from_secs(6))?,
            panic_window: values.number("panic-window-percentage", or.panic_window, "1 to 100", |p| {
                (1.0..=100.0).contains(&p)
            })?,
            panic_threshold: values.number(
                "panic-threshold-percentage",
                or.panic_threshold,
                "110 to 1000",
                |p| (110.0..=1000.0).contains(&p),
            )?,
            up_rate: values.number("max-scale-up-rate", or.up_rate, "more than 1", |n| n > 1.0)?,
            down_rate: values.number("max-scale-down-rate", or.down_rate, "more than 1", |n| n > 1.0)?,
            to_zero: values.flag("enable-scale-to-zero", or.to_zero)?,
            grace: span(values, "scale-to-zero-grace-period", or.grace, Duration::from_secs(6))?,
            retention: span(values, "scale-to-zero-pod-retention-period", or.retention, Duration::ZERO)?,
            class: values.get("pod-autoscaler-class").map_or(or.class, Into::into),
            initial: count("initial-scale", or.initial)?,
            zero_initial: values.flag("allow-zero-initial-scale", or.zero_initial)?,
            min: count("min-scale", or.min)?,
            max: count("max-scale", or.max)?,
            max_limit: count("max-scale-limit", or.max_limit)?,
            down_delay: span(values, "scale-down-delay", or.down_delay, Duration::ZERO)?,
        };
        if read.initial == 0 && !read.zero_initial {
            return Err(Wrong::new("initial-scale", "0", "allow-zero-initial-scale is false"));
        }
        Ok(read)
    }
}

fn span(values: &Values<'_>, key: &str, default: Duration, least: Duration) -> Result<Duration, Wrong> {
    let span = values.span(key, default)?;
    if span < least || span > HOUR {
        let why = format!("{} to {} was expected", super::go_duration(least), super::go_duration(HOUR));
        return Err(Wrong::new(key, &values.text(key), why));
    }
    Ok(span)
}
