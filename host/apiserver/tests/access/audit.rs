//! What is kept of requests.

use std::time::Duration;

use serde_json::{Value, json};
use wasmk_apiserver::audit::{FileSettings, Policy, ServiceSettings, Settings};

use crate::{
    support::{self, Server},
    world::service,
};

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [system:apiserver]
- level: None
  nonResourceURLs: [/healthz*]
- level: Metadata
  resources: [{group: '', resources: [pods]}]
- level: RequestResponse
  omitManagedFields: true
  resources: [{group: '', resources: [secrets, configmaps]}]
- level: Metadata
";

/// The events that `good` is true of, once there are that many.
async fn events(path: &std::path::Path, count: usize, good: impl Fn(&Value) -> bool) -> Vec<Value> {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        let found: Vec<Value> = all.filter(&good).collect();
        if found.len() >= count {
            return found;
        }
        assert!(tokio::time::Instant::now() < until, "only {found:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn start(folder: &std::path::Path, policy: &str) -> (Server, std::path::PathBuf) {
    let path = folder.join("audit.log");
    let file = FileSettings { path: path.clone(), max_megabytes: 0, max_days: 0, max_backups: 0 };
    let settings = Settings { policy: Policy::parse(policy).unwrap(), file: Some(file), service: None };
    (support::start_with(|config| config.audit = Some(settings)).await, path)
}

#[tokio::test]
async fn the_log_says_who_did_what_and_keeps_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let (server, path) = start(folder.path(), POLICY).await;
    server.get("/healthz").await;
    let secrets = "/api/v1/namespaces/default/secrets";
    let headers = [("content-type", "application/json"), ("audit-id", "mine-1"), ("user-agent", "tester/1")];
    let body = json!({"metadata": {"name": "s"}, "stringData": {"k": "hush-hush"}}).to_string();
    assert_eq!(server.send("POST", secrets, &headers, &body).await.code, 201);
    server.get(&format!("{secrets}/s")).await;
    server.send("GET", "/api/v1/pods", &[("impersonate-user", "ann")], "").await;
    server.send("GET", "/api/v1/pods", &[("authorization", "Bearer wrong")], "").await;
    let all = events(&path, 4, |_| true).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        !text.contains("hush-hush") && !text.contains("aHVzaC1odXNo") && !text.contains("Bearer"),
        "{text}"
    );
    assert!(!text.contains("/healthz"));

    let created = &all[0];
    assert_eq!(
        (created["kind"].as_str(), created["apiVersion"].as_str()),
        (Some("Event"), Some("audit.k8s.io/v1"))
    );
    assert_eq!(
        (created["auditID"].as_str(), created["userAgent"].as_str()),
        (Some("mine-1"), Some("tester/1"))
    );
    assert_eq!(
        (created["level"].as_str(), created["stage"].as_str()),
        (Some("RequestResponse"), Some("ResponseComplete"))
    );
    assert_eq!((created["verb"].as_str(), created["requestURI"].as_str()), (Some("create"), Some(secrets)));
    assert_eq!(created["user"]["username"], "admin");
    assert_eq!(
        created["objectRef"],
        json!({"resource": "secrets", "namespace": "default", "name": "s", "apiVersion": "v1"})
    );
    assert_eq!(created["responseStatus"]["code"], 201);
    assert_eq!(created["requestObject"]["stringData"]["k"], "<redacted>");
    assert_eq!(created["responseObject"]["data"]["k"], "<redacted>");
    assert_eq!(created["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(created["annotations"]["authorization.k8s.io/decision"], "allow");

    let refused = all.iter().find(|e| e["impersonatedUser"]["username"] == "ann").unwrap();
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(
        (refused["responseStatus"]["code"].as_i64(), refused.get("responseObject")),
        (Some(403), None)
    );
    assert_eq!(refused["responseStatus"]["reason"], "Forbidden");
    assert!(all.iter().any(|e| e["responseStatus"]["code"] == 401), "{all:?}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_watch_has_a_beginning_and_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let policy = "{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, verbs: [watch]}]}";
    let (server, path) = start(folder.path(), policy).await;
    server.get("/api/v1/configmaps?watch=1&timeoutSeconds=1").await;
    let stages = events(&path, 3, |_| true).await;
    let stages: Vec<_> = stages.iter().map(|e| e["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
}

#[tokio::test]
async fn a_service_is_sent_events_in_batches() {
    let service = service(|_| json!({})).await;
    let settings = Settings {
        policy: Policy::parse(POLICY).unwrap(),
        file: None,
        service: Some(ServiceSettings {
            config: service.config.clone(),
            buffer: 100,
            batch: 3,
            wait: Duration::from_millis(200),
        }),
    };
    let server = support::start_with(|config| config.audit = Some(settings)).await;
    for _ in 0..4 {
        server.get("/api/v1/pods").await;
    }
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    let batches = loop {
        let batches: Vec<usize> =
            service.asked.lock().unwrap().iter().map(|b| b["items"].as_array().unwrap().len()).collect();
        if batches.iter().sum::<usize>() == 4 {
            break batches;
        }
        assert!(tokio::time::Instant::now() < until, "{batches:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(batches.iter().all(|n| *n <= 3), "{batches:?}");
    assert_eq!(service.asked.lock().unwrap()[0]["kind"], "EventList");
}
