//! `wasmk wait`: until objects are as they should be.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::time::{Duration, Instant, sleep};

use super::{
    Context, Exit,
    api::{Api, is_not_found},
    jsonpath::Template,
    resources::Resources,
    selection::{self, with_query},
};

/// How often the objects are looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE NAME... or TYPE/NAME..., or TYPE with --all or -l
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// `condition=NAME[=VALUE]`, `jsonpath={PATH}[=VALUE]`, `create` or `delete`
    #[arg(long = "for", value_name = "CONDITION")]
    until: String,
    /// Give up after so long, like 30s or 5m
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    timeout: String,
    /// All objects of the type in the namespace
    #[arg(long)]
    all: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
}

/// What is waited for.
#[derive(Debug, PartialEq)]
enum Until {
    Condition(String, String),
    Path(Template, Option<String>),
    There,
    Gone,
}

impl Until {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text.split_once('=') {
            None if text == "delete" => Self::Gone,
            None if text == "create" => Self::There,
            Some(("condition", rest)) => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, "True"));
                Self::Condition(name.into(), value.into())
            }
            Some(("jsonpath", rest)) => {
                let end =
                    rest.rfind('}').with_context(|| format!("--for: the path in {text} is not in braces"))?;
                let value = rest[end + 1..].strip_prefix('=').map(str::to_string);
                Self::Path(Template::parse_path(rest[..=end].trim_matches('\''))?, value)
            }
            _ => bail!("unrecognized condition: {text:?}"),
        })
    }

    fn holds(&self, object: Option<&Value>) -> bool {
        match (self, object) {
            (Self::Gone, object) => object.is_none(),
            (Self::There, object) => object.is_some(),
            (_, None) => false,
            (Self::Condition(name, value), Some(object)) => {
                let current = object["status"]["observedGeneration"].as_i64().unwrap_or(i64::MAX)
                    >= object["metadata"]["generation"].as_i64().unwrap_or(0);
                let conditions = object["status"]["conditions"].as_array();
                let fits = |c: &Value| {
                    c["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(name))
                        && c["status"].as_str().is_some_and(|s| s.eq_ignore_ascii_case(value))
                };
                current && conditions.into_iter().flatten().any(fits)
            }
            (Self::Path(path, value), Some(object)) => {
                let found = path.find(object).unwrap_or_default();
                let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_string);
                match value {
                    None => !found.is_empty(),
                    Some(value) => found.len() == 1 && text(&found[0]) == *value,
                }
            }
        }
    }
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let until = Until::parse(&args.until)?;
    let deadline = Instant::now() + duration(&args.timeout)?;
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    let mut waited = 0;
    for selection in selection::read(&resources, &args.words)? {
        let path = selection.resource.path(Some(api.default_namespace()));
        let mut names = selection.names.clone();
        if names.is_empty() {
            if !args.all && args.selector.is_none() {
                bail!("resource(s) were provided, but no name was specified");
            }
            let query = [("labelSelector", args.selector.as_deref().unwrap_or(""))];
            let list = api.get(&with_query(&path, &query)).await?;
            let all = list["items"].as_array().into_iter().flatten();
            names = all.filter_map(|o| Some(o["metadata"]["name"].as_str()?.to_string())).collect();
        }
        for name in names {
            let named = selection.resource.named(&name);
            let plural = format!("{}/{name}", selection.resource.plural);
            one(&api, &format!("{path}/{name}"), &plural, &until, deadline).await?;
            cx.out.line(format!("{named} condition met"));
            waited += 1;
        }
    }
    if waited == 0 && until != Until::Gone {
        bail!("no matching resources found");
    }
    Ok(Exit::Done)
}

async fn one(api: &Api, path: &str, named: &str, until: &Until, deadline: Instant) -> Result<()> {
    loop {
        let object = match api.get(path).await {
            Err(e) if is_not_found(&e) && matches!(until, Until::Gone | Until::There) => None,
            object => Some(object?),
        };
        if until.holds(object.as_ref()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("timed out waiting for the condition on {named}");
        }
        sleep(LOOK).await;
    }
}

/// A duration like `90s`, `5m`, `1h30m`, `500ms` or `0`.
///
/// # Errors
/// When it is none; the message names it.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let parsed = wasmk_api::parse_duration(text);
    let parsed = parsed.with_context(|| format!("{text:?} is not a duration like 30s, 5m or 1h30m"))?;
    let span = Duration::try_from(parsed).ok().with_context(|| format!("{text:?} is negative"))?;
    // Longer than anybody waits; later times cannot be counted with.
    Ok(span.min(Duration::from_secs(u64::from(u32::MAX))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions() {
        let pod = json!({"metadata": {"generation": 1}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        for (text, expected) in [
            ("condition=Ready", true),
            ("condition=ready=false", false),
            ("condition=Other", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath={.status.phase}=Failed", false),
            ("jsonpath={.status.phase}", true),
            ("delete", false),
            ("create", true),
        ] {
            assert_eq!(Until::parse(text).unwrap().holds(Some(&pod)), expected, "{text}");
        }
        assert!(Until::parse("nothing").is_err() && Until::Gone.holds(None));
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90.0), ("1h30m", 5400.0), ("500ms", 0.5), ("0", 0.0), ("0s", 0.0)] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for bad in ["5", "m", "1d", "x", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
