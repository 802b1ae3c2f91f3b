//! Health, version, metrics and the keys of service account tokens.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    call::Call,
    dispatch::not_found_page,
    http::{Answer, Wanted, respond},
    server::Core,
};

/// The checks behind the health paths.
const CHECKS: [&str; 4] = ["ping", "log", "store", "informer-sync"];

/// Answers those paths.
pub(crate) fn serve(core: &Arc<Core>, call: &Call, parts: &[&str]) -> Answer {
    match parts {
        ["healthz" | "livez" | "readyz"] => health(core, call, parts[0]),
        ["healthz" | "livez" | "readyz", check] if CHECKS.contains(check) => {
            verdict(failing(core).is_none_or(|f| f != *check), "ok")
        }
        ["version"] => json_of(call, &version(core)),
        ["metrics"] => {
            let mut body = core.metrics.text(&core.caches.sizes(), core.caches.revision());
            core.flow.metrics(&mut body);
            for (name, help, value) in core.config.store.health().figures {
                let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
                body += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
            }
            respond::bytes(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", body)
        }
        [".well-known", "openid-configuration"] => json_of(call, &openid(core)),
        ["openid", "v1", "jwks"] => {
            let body = serde_json::to_vec(&core.signer.key_set()).unwrap_or_default();
            respond::bytes(StatusCode::OK, "application/jwk-set+json", body)
        }
        _ => not_found_page(),
    }
}

fn json_of(call: &Call, value: &Value) -> Answer {
    respond::value_as(
        StatusCode::OK,
        Wanted { form: crate::http::Form::Whole, pretty: true, ..call.wanted },
        value,
    )
}

/// The check that fails, if any.
fn failing(core: &Core) -> Option<&'static str> {
    if core.shutdown.is_cancelled() {
        return Some("ping");
    }
    core.config.store.health().problem.map(|_| "store")
}

/// Why it does, and what else should be looked after.
fn reasons(core: &Core) -> (String, Vec<String>) {
    let health = core.config.store.health();
    (health.problem.unwrap_or_else(|| "shutting down".into()), health.warnings)
}

fn verdict(good: bool, text: &str) -> Answer {
    let code = if good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    respond::text(code, text)
}

fn health(core: &Core, call: &Call, name: &str) -> Answer {
    let failing = failing(core);
    if failing.is_none() && call.query.get("verbose").is_none() {
        return respond::text(StatusCode::OK, "ok");
    }
    let (why, warnings) = reasons(core);
    let mut text = String::new();
    for check in CHECKS {
        let excluded = call.query.all("exclude").any(|e| e == check);
        text += &match failing {
            _ if excluded => format!("[+]{check} excluded: ok\n"),
            Some(bad) if bad == check => format!("[-]{check} failed: {why}\n"),
            _ => format!("[+]{check} ok\n"),
        };
    }
    warnings.iter().for_each(|warning| text += &format!("[!]store: {warning}\n"));
    let word = if failing.is_none() { "passed" } else { "failed" };
    text += &format!("{name} check {word}\n");
    verdict(failing.is_none(), &text)
}

fn version(core: &Core) -> Value {
    let info = &core.config.version;
    let mut numbers = info.git_version.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or("1").to_owned();
    let minor: u32 = numbers.next().and_then(|m| m.parse().ok()).unwrap_or(0);
    json!({
        "major": major,
        "minor": minor.to_string(),
        "emulationMajor": major,
        "emulationMinor": minor.to_string(),
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": minor.saturating_sub(1).to_string(),
        "gitVersion": info.git_version,
        "gitCommit": info.git_commit,
        "gitTreeState": "clean",
        "buildDate": info.build_date,
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

fn openid(core: &Core) -> Value {
    let address = format!("https://{}:{}", core.config.advertise_address, core.config.advertise_port);
    json!({
        "issuer": core.signer.issuer(),
        "jwks_uri": format!("{address}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": core.signer.algorithms(),
    })
}
