//! Runs one recorded case and tells how the answers differ from those of Kubernetes.

use std::{collections::HashMap, time::Duration};

use axum::body::Body;
use futures::StreamExt;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use rand::Rng;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use crate::{
    normal::Normal,
    support::{self, Server},
};

/// Longest wait for an answer a case waits for.
const PATIENCE: Duration = Duration::from_secs(8);
/// A watch is read until nothing came for so long.
const QUIET: Duration = Duration::from_millis(1000);
/// The same after all events that are expected.
const QUIET_AFTER: Duration = Duration::from_millis(250);
/// Most differences told of one case.
const MAX_TOLD: usize = 6;
/// Headers that are compared.
const HEADERS: [&str; 4] = ["Retry-After", "Allow", "Location", "WWW-Authenticate"];

struct Answer {
    code: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

struct Case<'a> {
    server: &'a Server,
    words: Vec<(String, String)>,
    normal: Normal,
    watches: HashMap<String, (u16, Body)>,
    made: Vec<String>,
}

/// The differences of a case; empty when there are none.
pub(crate) async fn case(server: &Server, case: &Value) -> Vec<String> {
    let word: String = std::iter::once('q')
        .chain((0..7).map(|_| char::from(b"bcdfghjklmnpqrstvwxz"[rand::rng().random_range(0..20)])))
        .collect();
    let steps = match case.get("steps").and_then(Value::as_array) {
        Some(steps) => steps.clone(),
        None => vec![case.clone()],
    };
    let mut own = vec![case["setup"].clone()];
    own.extend(steps.iter().map(|step| {
        let mut step = step.clone();
        let map = step.as_object_mut().unwrap();
        map.remove("expect");
        map.remove("setup");
        step
    }));
    let own = Value::Array(own).to_string();
    let namespace = own.contains("t-{u}").then(|| format!("t-{word}"));
    let mut run = Case {
        server,
        words: vec![("{u}".into(), word.clone())],
        normal: Normal::new(&word, own),
        watches: HashMap::new(),
        made: Vec::new(),
    };
    let mut told = match run.prepare(case, namespace.as_deref()).await {
        Ok(()) => run.steps(&steps).await,
        Err(why) => vec![format!("setup: {why}")],
    };
    run.clean(namespace.as_deref()).await;
    told.truncate(MAX_TOLD);
    told
}

impl Case<'_> {
    async fn steps(&mut self, steps: &[Value]) -> Vec<String> {
        let mut told = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            match self.step(step).await {
                Ok(None) => {}
                Ok(Some(found)) => {
                    differences(&step["expect"], &found, &format!("step {}", at + 1), &mut told)
                }
                Err(why) => told.push(format!("step {}: {why}", at + 1)),
            }
        }
        told
    }

    async fn prepare(&mut self, case: &Value, namespace: Option<&str>) -> Result<(), String> {
        if let Some(namespace) = namespace {
            let mut meta = json!({ "name": namespace });
            if let Some(labels) = case.get("namespaceLabels") {
                meta["labels"] = labels.clone();
            }
            self.plain("POST", "/api/v1/namespaces", &json!({ "metadata": meta })).await;
            let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
            self.plain("POST", &accounts, &json!({ "metadata": { "name": "default" } })).await;
        }
        for item in case["setup"].as_array().into_iter().flatten() {
            self.prepare_one(item).await?;
        }
        Ok(())
    }

    async fn prepare_one(&mut self, item: &Value) -> Result<(), String> {
        if let Some(seconds) = item["sleep"].as_f64() {
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            return Ok(());
        }
        if let Some(wanted) = item.get("await") {
            return self.wait_for(wanted).await;
        }
        if item.get("watch").is_some() {
            return self.open(item).await;
        }
        let request = item.get("request").unwrap_or(item);
        let (answer, _) = self.request(request).await;
        if !(200..300).contains(&answer.code) {
            return Err(format!("{} {}", answer.code, String::from_utf8_lossy(&answer.body)));
        }
        let value = answer.json().unwrap_or_default();
        self.normal.learn(&value);
        self.capture(item, &value);
        Ok(())
    }

    async fn wait_for(&mut self, wanted: &Value) -> Result<(), String> {
        let status = wanted["status"].as_u64().unwrap_or(200);
        let part = self.fill_text(wanted["contains"].as_str().unwrap_or(""));
        let mut request = wanted.clone();
        if request.get("method").is_none() {
            request["method"] = "GET".into();
        }
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (answer, _) = self.request(&request).await;
            let text = String::from_utf8_lossy(&answer.body);
            if u64::from(answer.code) == status && text.contains(&part) {
                return Ok(());
            }
            if tokio::time::Instant::now() > until {
                return Err(format!("waited in vain for {wanted}: {} {text}", answer.code));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    async fn open(&mut self, step: &Value) -> Result<(), String> {
        let request = self.fill(&step["request"]);
        // A watch from revision 0 shows what the server has at hand: let that be all that was written before.
        self.plain("GET", "/api/v1/namespaces?limit=1", &Value::Null).await;
        let response = self.response(&request).await;
        let (parts, body) = response.into_parts();
        let name = step["watch"].as_str().ok_or("a watch without a name")?;
        self.watches.insert(name.into(), (parts.status.as_u16(), body));
        Ok(())
    }

    /// Takes a step; what was found, in the form of what is expected.
    async fn step(&mut self, step: &Value) -> Result<Option<Value>, String> {
        if step.get("watch").is_some() && step.get("request").is_some() {
            return self.open(step).await.map(|()| None);
        }
        if step.get("collect").is_some() {
            return self.collect(step).await.map(Some);
        }
        let Some(request) = step.get("request") else {
            return self.prepare_one(step).await.map(|()| None);
        };
        let (answer, sent) = self.request(request).await;
        let found = self.outcome(step, &answer, &sent);
        Ok(step.get("expect").is_some().then_some(found))
    }

    fn outcome(&mut self, step: &Value, answer: &Answer, sent: &Value) -> Value {
        let value = answer.json();
        self.capture(step, value.as_ref().unwrap_or(&Value::Null));
        let mut out = json!({ "status": answer.code });
        let header =
            |name: &str| answer.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let warnings: Vec<String> = answer
            .headers
            .get_all("warning")
            .iter()
            .map(|w| warning(&String::from_utf8_lossy(w.as_bytes())))
            .collect();
        if !warnings.is_empty() {
            out["warnings"] = warnings.iter().map(|w| Value::from(self.normal.text(w))).collect();
        }
        let media = header("content-type").replace(' ', "");
        if !matches!(media.as_str(), "" | "application/json") {
            out["contentType"] = media.into();
        }
        let kept: Map<String, Value> = HEADERS
            .iter()
            .filter(|name| !header(name).is_empty())
            .map(|name| ((*name).to_owned(), self.normal.text(&header(name)).into()))
            .collect();
        if !kept.is_empty() {
            out["headers"] = kept.into();
        }
        let mode = step["mode"].as_str().unwrap_or("");
        if mode == "status" {
            return out;
        }
        let Some(value) = value else {
            if !answer.body.is_empty() {
                out["text"] = self.normal.text(&String::from_utf8_lossy(&answer.body)).into();
            }
            return out;
        };
        let value = self.normal.body(&value, sent);
        out["body"] = match mode {
            "shape" => shape(&value),
            "names" => names(&value),
            "spec" => {
                let mut value = value;
                if let Some(map) = value.as_object_mut() {
                    map.remove("metadata");
                    map.remove("status");
                }
                value
            }
            "" => value,
            pointer => value.pointer(pointer).cloned().unwrap_or_default(),
        };
        out
    }

    /// Reads a watch until it is quiet.
    async fn collect(&mut self, step: &Value) -> Result<Value, String> {
        let name = step["collect"].as_str().unwrap_or("");
        let (status, body) = self.watches.remove(name).ok_or("a watch that was not opened")?;
        let closes = step["closes"] == true;
        let wanted = step["expect"]["events"].as_array().map(Vec::len);
        let until = tokio::time::Instant::now() + PATIENCE;
        let (mut text, mut events, mut closed) = (String::new(), Vec::<Value>::new(), false);
        let mut frames = body.into_data_stream();
        loop {
            let enough = wanted.is_some_and(|n| events.iter().filter(|e| counts(e)).count() >= n);
            let quiet = match (closes, enough) {
                (true, _) => PATIENCE,
                (false, true) => QUIET_AFTER,
                (false, false) if wanted.is_some() => PATIENCE,
                _ => QUIET,
            };
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            match tokio::time::timeout(quiet.min(left), frames.next()).await {
                Err(_) => break,
                Ok(Some(Ok(bytes))) => text.push_str(&String::from_utf8_lossy(&bytes)),
                Ok(_) => {
                    closed = true;
                    break;
                }
            }
            while let Some((line, rest)) = text.split_once('\n') {
                if status == 200 && !line.trim().is_empty() {
                    events.push(serde_json::from_str(line).map_err(|e| format!("{e}: {line}"))?);
                }
                text = rest.to_owned();
            }
        }
        let mut out = json!({ "status": status });
        if status != 200 {
            let failure: Value = serde_json::from_str(&text).unwrap_or_default();
            out["body"] = self.normal.body(&failure, &Value::Null);
            return Ok(out);
        }
        if closes {
            out["closed"] = closed.into();
        }
        events.retain(counts);
        let first = usize::try_from(step["sorted"].as_u64().unwrap_or(0)).unwrap_or(0).min(events.len());
        events[..first].sort_by_key(|e| e["object"]["metadata"]["name"].to_string());
        out["events"] = events.iter().map(|event| self.event(event)).collect();
        Ok(out)
    }

    fn event(&mut self, event: &Value) -> Value {
        let mut object = event["object"].clone();
        let bookmark = event["type"] == "BOOKMARK";
        if bookmark {
            object["metadata"]["resourceVersion"] = "0".into();
        }
        let mut object = self.normal.body(&object, &Value::Null);
        if bookmark {
            object["metadata"]["resourceVersion"] = "<rv>".into();
        }
        json!({ "type": event["type"], "object": object })
    }

    fn capture(&mut self, step: &Value, value: &Value) {
        for (name, pointer) in step["capture"].as_object().into_iter().flatten() {
            let found = value.pointer(pointer.as_str().unwrap_or(""));
            let text = match found {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            };
            self.words.retain(|(known, _)| *known != format!("${{{name}}}"));
            self.words.push((format!("${{{name}}}"), text));
        }
    }

    fn fill_text(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value))
    }

    fn fill(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.fill_text(text).into(),
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::Object(map) => {
                map.iter().map(|(k, v)| (self.fill_text(k), self.fill(v))).collect::<Map<_, _>>().into()
            }
            other => other.clone(),
        }
    }

    async fn response(&self, request: &Value) -> http::Response<Body> {
        let mut headers = vec![
            ("User-Agent".to_owned(), "corpus/1.0".to_owned()),
            ("Accept".into(), "application/json".into()),
            ("Authorization".into(), format!("Bearer {}", support::TOKEN)),
        ];
        let body = match (request["raw"].as_str(), request.get("body").filter(|b| !b.is_null())) {
            (Some(raw), _) => raw.to_owned(),
            (None, Some(body)) => body.to_string(),
            (None, None) => String::new(),
        };
        if request.get("raw").is_some() || request.get("body").is_some_and(|b| !b.is_null()) {
            headers.push(("Content-Type".into(), "application/json".into()));
        }
        for (name, value) in request["headers"].as_object().into_iter().flatten() {
            headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
            if let Some(value) = value.as_str() {
                headers.push((name.clone(), value.to_owned()));
            }
        }
        let mut builder = Request::builder()
            .method(request["method"].as_str().unwrap_or("GET"))
            .uri(request["path"].as_str().unwrap_or("/"));
        for (name, value) in headers {
            builder = builder.header(name, value);
        }
        let request = builder.body(Body::from(body)).expect("a request");
        self.server.api.router().oneshot(request).await.expect("the router never fails")
    }

    async fn send(&self, request: &Value) -> Answer {
        let (parts, body) = self.response(request).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes().to_vec();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn plain(&self, method: &str, path: &str, body: &Value) -> Answer {
        self.send(&json!({ "method": method, "path": path, "body": body })).await
    }

    /// Sends a request of the case; remembers what it made.
    async fn request(&mut self, request: &Value) -> (Answer, Value) {
        let request = self.fill(request);
        let answer = self.send(&request).await;
        let path = request["path"].as_str().unwrap_or("");
        let plain = path.split('?').next().unwrap_or("");
        let name = answer.json().and_then(|v| Some(v.get("metadata")?.get("name")?.as_str()?.to_owned()));
        if answer.code == 201 && !path.contains("dryRun") {
            match (request["method"].as_str(), name) {
                (Some("POST"), Some(name)) if !plain.ends_with("/token") => {
                    self.made.push(format!("{plain}/{name}"))
                }
                (Some("PUT" | "PATCH"), _) => self.made.push(plain.to_owned()),
                _ => {}
            }
        }
        (answer, request.get("body").cloned().unwrap_or_default())
    }

    /// Removes what the case made: others list the whole cluster.
    async fn clean(&mut self, namespace: Option<&str>) {
        let options = json!({ "gracePeriodSeconds": 0, "propagationPolicy": "Background" });
        let mut made = std::mem::take(&mut self.made);
        made.reverse();
        made.extend(namespace.map(|name| format!("/api/v1/namespaces/{name}")));
        for path in made {
            let answer = self.plain("DELETE", &path, &options).await;
            let left = answer.json().filter(|v| v["metadata"]["finalizers"].is_array());
            if left.is_some_and(|v| v["kind"] != "CustomResourceDefinition") {
                let patch = json!({
                    "method": "PATCH", "path": path, "body": { "metadata": { "finalizers": null } },
                    "headers": { "Content-Type": "application/merge-patch+json" },
                });
                self.send(&patch).await;
            }
            let name = path.strip_prefix("/api/v1/namespaces/").filter(|rest| !rest.contains('/'));
            if let Some(name) = name {
                let body = json!({ "metadata": { "name": name }, "spec": { "finalizers": [] } });
                self.plain("PUT", &format!("{path}/finalize"), &body).await;
            }
        }
    }
}

/// Whether an event is compared: bookmarks come when they come, unless they end the initial events.
fn counts(event: &Value) -> bool {
    event["type"] != "BOOKMARK" || event["object"]["metadata"].get("annotations").is_some()
}

/// The text in a `Warning` header.
fn warning(header: &str) -> String {
    let quoted = header.splitn(3, ' ').nth(2).unwrap_or("");
    let inner = quoted.strip_prefix('"').and_then(|q| q.strip_suffix('"')).unwrap_or(quoted);
    inner.replace("\\\"", "\"").replace("\\\\", "\\")
}

fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), shape(v))).collect::<Map<_, _>>().into(),
        Value::Array(items) => items.iter().take(1).map(shape).collect(),
        Value::String(_) => "<str>".into(),
        Value::Bool(_) => "<bool>".into(),
        Value::Number(n) if n.is_f64() => "<float>".into(),
        Value::Number(_) => "<int>".into(),
        Value::Null => "<NoneType>".into(),
    }
}

fn names(value: &Value) -> Value {
    let lists = ["items", "resources", "groups"];
    let items = lists.iter().filter_map(|key| value[*key].as_array()).find(|items| !items.is_empty());
    let name = |item: &Value| {
        item.pointer("/metadata/name").or_else(|| item.get("name")).cloned().unwrap_or_default()
    };
    items.into_iter().flatten().map(name).collect()
}

fn differences(wanted: &Value, found: &Value, place: &str, told: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, wanted) in a {
                match b.get(key) {
                    Some(found) => differences(wanted, found, &format!("{place}.{key}"), told),
                    None => told.push(format!("{place}.{key}: expected {}, found nothing", short(wanted))),
                }
            }
            for (key, found) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                told.push(format!("{place}.{key}: expected nothing, found {}", short(found)));
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (wanted, found)) in a.iter().zip(b).enumerate() {
                differences(wanted, found, &format!("{place}[{at}]"), told);
            }
        }
        _ if wanted == found => {}
        _ => told.push(format!("{place}: expected {}, found {}", short(wanted), short(found))),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
