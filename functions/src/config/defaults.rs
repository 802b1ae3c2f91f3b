//! `config-defaults`.

use wasmk_api::Quantity;

use super::{Wrong, read::Values};

/// What a template gets where it is silent, and the bounds of what it may ask for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Defaults {
    /// Seconds an answer may take.
    pub timeout: i64,
    /// Most of these.
    pub max_timeout: i64,
    /// Seconds until the first byte; 0 for no limit.
    pub response_start: i64,
    /// Seconds an answer may pause; 0 for no limit.
    pub idle: i64,
    /// Requests and limits of resources, as `(resource, request, limit)`.
    pub resources: [(&'static str, Option<String>, Option<String>); 3],
    /// The name of a container without one.
    pub container: String,
    /// The name of an init container without one.
    pub init_container: String,
    /// Requests at a time; 0 for no limit.
    pub concurrency: i64,
    /// Most of these.
    pub max_concurrency: i64,
    /// Whether "no limit" may be asked for.
    pub allow_unlimited: bool,
    /// Whether pods get variables of the services around; none leaves the field alone.
    pub service_links: Option<bool>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            timeout: 300,
            max_timeout: 600,
            response_start: 0,
            idle: 0,
            resources: [("cpu", None, None), ("memory", None, None), ("ephemeral-storage", None, None)],
            container: "user-container".into(),
            init_container: "init-container".into(),
            concurrency: 0,
            max_concurrency: 1000,
            allow_unlimited: true,
            service_links: Some(false),
        }
    }
}

impl Defaults {
    pub(super) fn read(values: &Values<'_>) -> Result<Self, Wrong> {
        let mut read = Self::default();
        let seconds = |key: &str, default: i64| values.number(key, default, "seconds, 0 or more", |n| n >= 0);
        read.max_timeout = seconds("max-revision-timeout-seconds", read.max_timeout)?;
        let most = read.max_timeout;
        let within = |key: &str, default: i64| {
            let what = format!("seconds up to max-revision-timeout-seconds ({most})");
            values.number(key, default, &what, |n| (0..=most).contains(&n))
        };
        read.timeout = within("revision-timeout-seconds", read.timeout.min(most))?;
        read.response_start = within("revision-response-start-timeout-seconds", read.response_start)?;
        read.idle = within("revision-idle-timeout-seconds", read.idle)?;
        for (name, request, limit) in &mut read.resources {
            *request = quantity(values, &format!("revision-{name}-request"))?;
            *limit = quantity(values, &format!("revision-{name}-limit"))?;
        }
        read.max_concurrency =
            values
                .number("container-concurrency-max-limit", read.max_concurrency, "1 or more", |n| n >= 1)?;
        let most = read.max_concurrency;
        let what = format!("0 up to container-concurrency-max-limit ({most})");
        read.concurrency =
            values.number("container-concurrency", read.concurrency, &what, |n| (0..=most).contains(&n))?;
        read.allow_unlimited = values.flag("allow-container-concurrency-zero", read.allow_unlimited)?;
        read.container = values.get("container-name-template").map_or(read.container, Into::into);
        read.init_container =
            values.get("init-container-name-template").map_or(read.init_container, Into::into);
        if values.get("enable-service-links") == Some("default") {
            read.service_links = None;
        } else {
            read.service_links = Some(values.flag("enable-service-links", false)?);
        }
        Ok(read)
    }
}

fn quantity(values: &Values<'_>, key: &str) -> Result<Option<String>, Wrong> {
    let Some(text) = values.get(key) else { return Ok(None) };
    text.parse::<Quantity>()
        .map(|_| Some(text.to_string()))
        .map_err(|_| Wrong::new(key, text, "a quantity like 100m or 64Mi was expected"))
}
