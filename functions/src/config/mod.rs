//! The settings in the `config-*` ConfigMaps of the namespace `knative-serving`, honoured as they change.
//!
//! A map that cannot be read is refused when it is written; one that got in anyway leaves the settings before it.

mod autoscaler;
mod defaults;
mod domain;
mod examples;
mod features;
mod gc;
mod network;
mod read;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use self::read::Values;
pub use self::read::Wrong;
pub(crate) use self::{
    autoscaler::{Autoscaler, HPA, KPA},
    defaults::Defaults,
    domain::Domains,
    examples::config_maps,
    features::Features,
    gc::Gc,
    network::{Named, Network},
    read::{duration, go_duration},
};

/// The namespace of the settings.
pub const NAMESPACE: &str = "knative-serving";

/// All settings at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// `config-autoscaler`.
    pub autoscaler: Autoscaler,
    /// `config-defaults`.
    pub defaults: Defaults,
    /// `config-domain`.
    pub domains: Domains,
    /// `config-features`.
    pub features: Features,
    /// `config-gc`.
    pub gc: Gc,
    /// `config-network`.
    pub network: Network,
    /// `config-deployment`: seconds until a deployment that makes no progress has failed.
    pub progress_deadline: u64,
    /// `config-observability`: whether each request is a line of the log.
    pub request_log: bool,
}

impl Config {
    /// The settings of a cluster without any map; `domain` is the suffix of host names.
    pub(crate) fn new(domain: &str) -> Self {
        Self {
            autoscaler: Autoscaler::default(),
            defaults: Defaults::default(),
            domains: Domains::new(domain),
            features: Features::default(),
            gc: Gc::default(),
            network: Network::default(),
            progress_deadline: 600,
            request_log: false,
        }
    }

    /// These settings with those of one map in place of what it set before; a map of another name changes nothing.
    ///
    /// # Errors
    /// When a value is not what its key takes.
    pub(crate) fn with(mut self, name: &str, data: &BTreeMap<String, String>) -> Result<Self, Wrong> {
        let values = Values(data);
        match name {
            "config-autoscaler" => self.autoscaler = Autoscaler::read(&values)?,
            "config-defaults" => self.defaults = Defaults::read(&values)?,
            "config-domain" => self.domains = self.domains.read(&values)?,
            "config-features" => self.features = Features::read(&values)?,
            "config-gc" => self.gc = Gc::read(&values)?,
            "config-network" => self.network = Network::read(&values)?,
            "config-deployment" => {
                let deadline = values.span("progress-deadline", std::time::Duration::from_secs(600))?;
                if deadline.is_zero() || deadline.subsec_nanos() != 0 {
                    let why = "must be a positive number of whole seconds";
                    return Err(Wrong::new("progress-deadline", &values.text("progress-deadline"), why));
                }
                self.progress_deadline = deadline.as_secs();
            }
            "config-observability" => {
                self.request_log = values.flag("logging.enable-request-log", false)?;
            }
            _ => {}
        }
        Ok(self)
    }
}

/// The settings, shared by all who go by them.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    now: ArcSwap<Config>,
    changed: watch::Sender<u64>,
}

impl Live {
    /// Knative's defaults; `domain` is the suffix of host names where no map says another.
    pub fn new(domain: &str) -> Self {
        let now = ArcSwap::from_pointee(Config::new(domain));
        Self(Arc::new(Inner { now, changed: watch::Sender::new(0) }))
    }

    pub(crate) fn get(&self) -> Arc<Config> {
        self.0.now.load_full()
    }

    /// What [`get`](Self::get) gives, for a look that is over at once.
    pub(crate) fn peek(&self) -> Guard<Arc<Config>> {
        self.0.now.load()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Takes a map as it is now; one that is gone is empty.
    ///
    /// # Errors
    /// When a value is not what its key takes; the settings stay as they were.
    pub(crate) fn take(&self, name: &str, data: &BTreeMap<String, String>) -> Result<(), Wrong> {
        let next = (*self.get()).clone().with(name, data)?;
        if next != *self.get() {
            self.0.now.store(Arc::new(next));
            self.0.changed.send_modify(|turn| *turn += 1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn maps_change_what_they_name_and_give_it_back_when_emptied() {
        let live = Live::new("example.com");
        let mut changes = live.subscribe();
        live.take("config-autoscaler", &map(&[("stable-window", "30s"), ("_example", "ignored")])).unwrap();
        assert_eq!(live.get().autoscaler.stable_window.as_secs(), 30);
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        live.take("config-else", &map(&[("a", "b")])).unwrap();
        assert!(!changes.has_changed().unwrap());
        live.take("config-autoscaler", &map(&[])).unwrap();
        assert_eq!(*live.get(), Config::new("example.com"));
    }

    #[test]
    fn a_wrong_value_names_its_key_and_changes_nothing() {
        let live = Live::new("example.com");
        for (name, key, value) in [
            ("config-autoscaler", "stable-window", "soon"),
            ("config-autoscaler", "stable-window", "1s"),
            ("config-autoscaler", "container-concurrency-target-percentage", "0"),
            ("config-autoscaler", "target-burst-capacity", "-2"),
            ("config-autoscaler", "max-scale-up-rate", "1"),
            ("config-defaults", "revision-timeout-seconds", "700"),
            ("config-defaults", "container-concurrency", "2000"),
            ("config-defaults", "revision-cpu-request", "much"),
            ("config-gc", "min-non-active-revisions", "-1"),
            ("config-gc", "max-non-active-revisions", "3"),
            ("config-network", "rollout-duration", "-1"),
            ("config-network", "domain-template", "{{.Nothing}}"),
            ("config-network", "http-protocol", "maybe"),
            ("config-domain", "bad_domain", ""),
            ("config-deployment", "progress-deadline", "1.5s"),
        ] {
            let wrong = live.take(name, &map(&[(key, value)])).unwrap_err();
            assert!(wrong.to_string().contains(key), "{name}: {wrong}");
        }
        assert_eq!(*live.get(), Config::new("example.com"));
    }

    #[test]
    fn the_maps_of_a_new_cluster_can_be_read() {
        for object in config_maps() {
            let data: BTreeMap<String, String> =
                serde_json::from_value(object["data"].clone()).unwrap_or_default();
            let name = object["metadata"]["name"].as_str().unwrap();
            assert!(data.contains_key("_example"), "{name}");
            Config::new("example.com").with(name, &data).unwrap();
            // What the example shows is a map as well.
            let example: BTreeMap<String, String> = serde_yaml::from_str(&data["_example"]).unwrap();
            Config::new("example.com").with(name, &example).unwrap();
        }
    }
}
