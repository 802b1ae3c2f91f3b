//! The scheduler's profiles as kube-scheduler is told of them: a file with a KubeSchedulerConfiguration. Fields
//! that would change nothing here are refused, so that nobody relies on them.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use wasmk_controllers::scheduler::{Profile, Settings, Strategy};

const VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<ProfileText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ProfileText {
    scheduler_name: Option<String>,
    #[serde(default)]
    plugins: Plugins,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Plugins {
    score: Scores,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scores {
    enabled: Vec<Score>,
    disabled: Vec<Score>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Score {
    name: String,
    weight: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct Args {
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    #[serde(rename = "kind")]
    _kind: Option<String>,
    scoring_strategy: Option<ScoringStrategy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScoringStrategy {
    #[serde(rename = "type")]
    kind: String,
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read, or says what this scheduler cannot do.
pub(crate) fn read(path: &Path) -> Result<Settings> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no usable {KIND}", path.display()))
}

fn parse(text: &str) -> Result<Settings> {
    let all: Configuration = serde_yaml::from_str(text)?;
    if all.api_version != VERSION || all.kind != KIND {
        bail!("{VERSION} {KIND} was expected, not {} {}", all.api_version, all.kind);
    }
    let mut settings = Settings::default();
    if !all.profiles.is_empty() {
        settings.profiles = all.profiles.into_iter().map(profile).collect::<Result<_>>()?;
    }
    settings.check()?;
    Ok(settings)
}

fn profile(text: ProfileText) -> Result<Profile> {
    let mut profile = Profile::default();
    if let Some(name) = text.scheduler_name {
        profile.name = name;
    }
    let Scores { enabled, disabled } = text.plugins.score;
    let mut weights: BTreeMap<String, i64> = disabled.into_iter().map(|s| (s.name, 0)).collect();
    weights.extend(enabled.into_iter().map(|s| (s.name, s.weight.unwrap_or(1))));
    profile.weights = weights;
    for PluginConfig { name, args } in text.plugin_config {
        let Some(strategy) = args.scoring_strategy.filter(|_| name == "NodeResourcesFit") else {
            bail!("pluginConfig of {name} can only be the scoringStrategy of NodeResourcesFit");
        };
        profile.strategy = match &*strategy.kind {
            "LeastAllocated" => Strategy::LeastAllocated,
            "MostAllocated" => Strategy::MostAllocated,
            other => bail!("scoringStrategy {other}: LeastAllocated or MostAllocated was expected"),
        };
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(profiles: &str, expect: Result<&str, &str>) {
        let text = format!("apiVersion: {VERSION}\nkind: {KIND}\n{profiles}");
        let shown = parse(&text).map(|s| {
            let each = s.profiles.iter().map(|p| format!("{} {:?} {:?}", p.name, p.strategy, p.weights));
            each.collect::<Vec<_>>().join(", ")
        });
        match (shown, expect) {
            (Ok(shown), Ok(expect)) => assert_eq!(shown, expect),
            (Err(error), Err(word)) => assert!(format!("{error:#}").contains(word), "{error:#}"),
            (shown, _) => panic!("{profiles}: {shown:?}"),
        }
    }

    #[test]
    fn profiles_are_read() {
        check("", Ok("default-scheduler LeastAllocated {}"));
        check(
            "profiles: [{}, {schedulerName: packing, pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: MostAllocated}}}]}]",
            Ok("default-scheduler LeastAllocated {}, packing MostAllocated {}"),
        );
        check(
            "profiles: [{plugins: {score: {disabled: [{name: ImageLocality}], enabled: [{name: NodeAffinity, weight: 5}]}}}]",
            Ok("default-scheduler LeastAllocated {\"ImageLocality\": 0, \"NodeAffinity\": 5}"),
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        check("percentageOfNodesToScore: 5", Err("percentageOfNodesToScore"));
        check("profiles: [{schedulerName: a}, {schedulerName: a}]", Err("two profiles"));
        check("profiles: [{plugins: {score: {enabled: [{name: Luck}]}}}]", Err("Luck"));
        check("profiles: [{plugins: {filter: {}}}]", Err("filter"));
        assert!(parse("apiVersion: v1\nkind: Pod").is_err());
    }
}
