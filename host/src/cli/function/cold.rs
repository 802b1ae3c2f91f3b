//! `wasmk fn cold`: how long a function takes from nothing to its first byte, by phase.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;

use super::{
    super::{Context, Exit, api::Api},
    endpoint, path,
};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest number of calls.
const MAX_CALLS: u32 = 10_000;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// The function
    name: String,
    /// How often to call it; each call gets an instance of its own
    #[arg(long, default_value_t = 20)]
    calls: u32,
    /// The path
    #[arg(long, default_value = "/")]
    path: String,
    /// How to print
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Json,
}

/// Phases with what they are, in the order they happen.
const PHASES: [(&str, &str); 4] = [
    ("prepare", "pull and compile, once for each revision"),
    ("route", "host to revision"),
    ("first-byte", "instance made, request handled"),
    ("round-trip", "as seen from here"),
];

pub(in super::super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    if !(1..=MAX_CALLS).contains(&args.calls) {
        bail!("--calls {}: 1 to {MAX_CALLS} was expected", args.calls);
    }
    let api = Api::new(cx.client().await?);
    let gateway = endpoint(&api, "gateway").await?;
    let service = api.get(&path(api.default_namespace(), &args.name)).await?;
    let url = service["status"]["url"].as_str().with_context(|| format!("{} has no URL yet", args.name))?;
    let host = url.split_once("://").map_or(url, |(_, host)| host);
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut seen: Vec<[f64; PHASES.len()]> = Vec::new();
    for _ in 0..args.calls {
        let request = Request::get(format!("http://{gateway}{}", args.path))
            .header(header::HOST, host)
            .header("wasmk-timing", "1")
            .body(Empty::<bytes::Bytes>::new())?;
        let begun = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, client.request(request)).await;
        let answer = answer.context("the function did not answer")?;
        let answer = answer.with_context(|| format!("cannot reach the gateway at {gateway}"))?;
        let round_trip = begun.elapsed().as_secs_f64() * 1e3;
        let status = answer.status();
        let timing = answer.headers().get("server-timing").and_then(|v| v.to_str().ok()).map(String::from);
        answer.into_body().collect().await?;
        let timing = timing.with_context(|| format!("{} answered {status} and no times", args.name))?;
        let phase = |name: &str| duration(&timing, name).unwrap_or(round_trip);
        seen.push(PHASES.map(|(name, _)| phase(name)));
    }
    report(&args, &seen, cx)
}

fn report(args: &Args, seen: &[[f64; PHASES.len()]], cx: &Context) -> Result<Exit> {
    let column = |i: usize| {
        let mut all: Vec<f64> = seen.iter().map(|one| one[i]).collect();
        all.sort_by(f64::total_cmp);
        let at = |percent: usize| all[(all.len() - 1) * percent / 100];
        [at(50), at(99), all[all.len() - 1]]
    };
    if args.output.is_some() {
        let phases: serde_json::Map<String, serde_json::Value> = PHASES
            .iter()
            .enumerate()
            .map(|(i, (name, _))| {
                let [p50, p99, max] = column(i);
                (name.to_string(), json!({"p50Millis": p50, "p99Millis": p99, "maxMillis": max}))
            })
            .collect();
        let all = json!({"function": args.name, "calls": seen.len(), "phases": phases});
        cx.out.line(serde_json::to_string_pretty(&all)?);
        return Ok(Exit::Done);
    }
    let mut rows = vec![["PHASE", "P50 MS", "P99 MS", "MAX MS", ""].map(String::from).to_vec()];
    for (i, (name, about)) in PHASES.iter().enumerate() {
        let [p50, p99, max] = column(i).map(|ms| format!("{ms:.3}"));
        rows.push(vec![name.to_string(), p50, p99, max, about.to_string()]);
    }
    cx.out.columns(&rows);
    Ok(Exit::Done)
}

/// A phase's milliseconds in the value of a `Server-Timing` header.
fn duration(header: &str, phase: &str) -> Option<f64> {
    header.split(',').find_map(|part| {
        let (name, parameters) = part.trim().split_once(';')?;
        let duration = parameters.split(';').find_map(|p| p.trim().strip_prefix("dur="))?;
        (name == phase).then(|| duration.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_found_in_the_header() {
        let header = "prepare;dur=12.5, route;dur=0.004, first-byte;desc=x;dur=0.3";
        assert_eq!(duration(header, "prepare"), Some(12.5));
        assert_eq!(duration(header, "first-byte"), Some(0.3));
        assert_eq!(duration(header, "compile"), None);
    }
}
