//! A node over an API in memory and an engine that only pretends.

#![allow(dead_code, unreachable_pub)]

pub mod api;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::body::to_bytes;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::ServiceExt;
use wasmk_node::{
    Node, Settings,
    engine::{Body, End, Engine, Failure, Handler, Kind, Launch, Prepared, Program, Wanted},
    logs::Stream,
};
use wasmk_runtime::StopSignal;

use api::Api;

/// Images it knows: `exit/<code>` prints its environment's `SAY` and ends, `loop` runs until
/// stopped, `http` answers requests with `SAY` and the path.
pub struct Pretend;

struct Image(String);

#[async_trait]
impl Engine for Pretend {
    async fn prepare(&self, wanted: &Wanted) -> Result<Prepared, Failure> {
        let name = wanted.image.trim_end_matches(":1").to_string();
        let kind = match name.as_str() {
            "http" => Kind::Http,
            "loop" => Kind::Command,
            exit if exit.starts_with("exit/") => Kind::Command,
            _ => return Err(Failure::new("ErrImagePull", "no such image")),
        };
        let image_id = format!("{}@sha256:0", wanted.image);
        Ok(Prepared { image_id, kind, fetched: true, size: 1, program: Arc::new(Image(name)) })
    }

    fn version(&self) -> String {
        "pretend://1".into()
    }
}

fn say(launch: &Launch) -> String {
    let value = launch.env.iter().find(|(k, _)| k == "SAY").map(|(_, v)| v.clone());
    value.unwrap_or_else(|| "hello".into())
}

#[async_trait]
impl Program for Image {
    async fn run(&self, launch: Launch, stop: StopSignal) -> End {
        launch.log.write(Stream::Stdout, format!("{}\n", say(&launch)).as_bytes());
        if self.0 == "loop" {
            stop.requested().await;
            return End { code: 143, reason: "Error".into(), message: String::new() };
        }
        let code: i32 = self.0.trim_start_matches("exit/").parse().unwrap();
        let reason = if code == 0 { "Completed" } else { "Error" };
        End { code, reason: reason.into(), message: String::new() }
    }

    fn handler(&self, launch: Launch) -> Result<Arc<dyn Handler>, Failure> {
        Ok(Arc::new(Answer(launch)))
    }
}

struct Answer(Launch);

#[async_trait]
impl Handler for Answer {
    async fn handle(&self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path().to_string();
        self.0.log.write(Stream::Stdout, format!("asked for {path}\n").as_bytes());
        let text = Full::new(Bytes::from(format!("{} {path}", say(&self.0))));
        http::Response::new(text.map_err(|never| match never {}).boxed_unsync())
    }
}

/// A node with a range of pod addresses of its own, so that tests can run side by side.
pub struct Cluster {
    pub api: Api,
    pub dir: tempfile::TempDir,
    range: u8,
    engine: Arc<dyn Engine>,
    node: Option<Node>,
}

impl Cluster {
    pub async fn new(range: u8) -> Self {
        Self::with(range, Arc::new(Pretend)).await
    }

    pub async fn with(range: u8, engine: Arc<dyn Engine>) -> Self {
        let (api, dir) = (Api::new(), tempfile::tempdir().unwrap());
        let mut cluster = Self { api, dir, range, engine, node: None };
        cluster.start().await;
        cluster
    }

    pub async fn start(&mut self) {
        let mut settings = Settings::new("n1", self.dir.path());
        settings.pod_cidr = Some(format!("127.42.{}.0/24", self.range));
        settings.proxy = false;
        settings.pressure_period = Duration::from_millis(50);
        self.node = Some(Node::start(settings, self.api.client(), self.engine.clone()).await.unwrap());
    }

    pub async fn stop(&mut self) {
        self.node.take().unwrap().shutdown(Duration::from_secs(10)).await;
    }

    pub fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    pub fn pod(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("n1");
        self.api.put(&path(name), json!({"metadata": {"labels": {"app": name}}, "spec": spec}));
    }

    /// Waits until the pod's phase and its first container's state, reason and restarts read so:
    /// `Running running`, `Succeeded Completed`, `Pending ErrImagePull`, `Running Error 1`, …
    pub async fn until(&self, name: &str, expect: &str) -> Value {
        let read = |api: &Api| api.get(&path(name)).filter(|p| summary(p) == expect);
        self.api.until(&format!("pod {name} that is {expect}"), read).await
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let response = self.node().router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

pub fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

pub fn summary(pod: &Value) -> String {
    let container = &pod["status"]["containerStatuses"][0];
    let state = &container["state"];
    let word = ["waiting", "terminated"].iter().find_map(|k| state[k]["reason"].as_str());
    let phase = pod["status"]["phase"].as_str().unwrap_or("none");
    let mut out = format!("{phase} {}", word.unwrap_or("running"));
    if let Some(restarts) = container["restartCount"].as_u64().filter(|r| *r > 0) {
        out.push_str(&format!(" {restarts}"));
    }
    out
}
