//! Logs of containers and of functions.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use wasmk_api::{Timestamp, k8s_openapi::api::core::v1::Pod};

use super::{Refusal, Shared};
use crate::logs::{LogName, LogOptions, LogRing, LogStream};

/// Query of a request for logs, as the kubelet takes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Params {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<i64>,
}

impl Params {
    fn options(&self) -> Result<LogOptions, Refusal> {
        let flag = |name: &str, value: &Option<String>| match value.as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1" | "") => Ok(true),
            Some(other) => Err(Refusal::bad(format!("{name}: expected true or false, found \"{other}\""))),
        };
        let count = |name: &str, value: Option<i64>| match value {
            None => Ok(None),
            Some(n) => usize::try_from(n)
                .map(Some)
                .map_err(|_| Refusal::bad(format!("{name}: must be at least 0, found {n}"))),
        };
        if self.since_seconds.is_some() && self.since_time.is_some() {
            return Err(Refusal::bad("at most one of sinceTime and sinceSeconds may be given"));
        }
        let mut since = None;
        if let Some(text) = &self.since_time {
            let time: Timestamp = text
                .parse()
                .map_err(|_| Refusal::bad(format!("sinceTime: \"{text}\" is not a time of RFC 3339")))?;
            since = Some(time);
        }
        if let Some(seconds) = count("sinceSeconds", self.since_seconds)? {
            let span = Duration::from_secs(seconds as u64);
            since = Timestamp::now().0.checked_sub(span).ok().map(Timestamp);
        }
        Ok(LogOptions {
            follow: flag("follow", &self.follow)?,
            timestamps: flag("timestamps", &self.timestamps)?,
            tail: count("tailLines", self.tail_lines)?,
            limit: count("limitBytes", self.limit_bytes)?,
            since,
        })
    }

    fn previous(&self) -> bool {
        matches!(self.previous.as_deref(), Some("true" | "1" | ""))
    }
}

pub(super) async fn container(
    State(shared): State<Shared>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(params): Query<Params>,
) -> Result<Response, Refusal> {
    let options = params.options()?;
    let stream = if params.previous() {
        open(&shared, &namespace, &pod, &container, true, options)
    } else {
        latest(&shared, &namespace, &pod, &container, options)
    }?;
    Ok(([("content-type", "text/plain")], Body::from_stream(stream)).into_response())
}

/// The log of a container's last run.
pub(super) fn latest(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
    options: LogOptions,
) -> Result<LogStream, Refusal> {
    open(shared, namespace, pod, container, false, options)
}

fn open(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
    previous: bool,
    options: LogOptions,
) -> Result<LogStream, Refusal> {
    let known = shared.pods.find(namespace, pod);
    let known = known.ok_or_else(|| Refusal::not_found(format!("pod \"{pod}\" not found")))?;
    if !has_container(&known, container) {
        return Err(Refusal::bad(format!("container {container} is not valid for pod {pod}")));
    }
    let uid = known.metadata.uid.clone().unwrap_or_default();
    let waiting = || {
        let why = waits_for(&known, container);
        Refusal::bad(format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {why}"))
    };
    let run = match (previous, latest_run(shared, &known, container)) {
        (false, Some(run)) => run,
        (true, Some(run)) if run > 0 => run - 1,
        (true, _) => {
            let text = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
            return Err(Refusal::bad(text));
        }
        (false, None) => return Err(waiting()),
    };
    let name = LogName { namespace, pod, uid: &uid, container, run };
    shared.cx.logs.read(&name, options).map_err(|_| waiting())
}

/// What a container waits for, as kubectl's users know it.
fn waits_for(pod: &Pod, container: &str) -> String {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let state = all.flatten().flatten().find(|s| s.name == container).and_then(|s| s.state.clone());
    match state.and_then(|s| s.waiting?.reason).as_deref() {
        Some("ErrImagePull" | "ImagePullBackOff") => "trying and failing to pull image".into(),
        Some(reason) => reason.into(),
        None => "ContainerCreating".into(),
    }
}

pub(super) fn has_container(pod: &Pod, name: &str) -> bool {
    let spec = pod.spec.as_ref();
    spec.is_some_and(|s| {
        s.containers.iter().chain(s.init_containers.iter().flatten()).any(|c| c.name == name)
    })
}

/// Number of the container's last run that wrote a log.
fn latest_run(shared: &Shared, pod: &Pod, container: &str) -> Option<u32> {
    let part = |s: &Option<String>| s.clone().unwrap_or_default();
    let meta = &pod.metadata;
    shared.cx.logs.latest(&part(&meta.namespace), &part(&meta.name), &part(&meta.uid), container)
}

pub(super) async fn function(
    State(shared): State<Shared>,
    Path((namespace, revision)): Path<(String, String)>,
    Query(params): Query<Params>,
) -> Result<Response, Refusal> {
    let options = params.options()?;
    let log = shared.cx.functions.log(&namespace, &revision);
    let log =
        log.ok_or_else(|| Refusal::not_found(format!("revision \"{revision}\" is not known to this node")))?;
    let body = Body::from_stream(ring_stream(log, options));
    Ok(([("content-type", "text/plain")], body).into_response())
}

/// The lines of a ring, and those to come when following.
fn ring_stream(
    log: std::sync::Arc<LogRing>,
    options: LogOptions,
) -> impl futures::Stream<Item = Result<Vec<u8>, Infallible>> {
    let news = log.subscribe();
    let start = (log, news, options, 0_u64, true);
    futures::stream::unfold(start, |(log, mut news, mut options, from, first)| async move {
        loop {
            news.mark_unchanged();
            let (mut lines, next) = log.since(from);
            if let Some(tail) = options.tail.take() {
                lines.drain(..lines.len().saturating_sub(tail));
            }
            let mut out = Vec::new();
            for line in lines.iter().filter(|l| options.since.is_none_or(|s| l.time >= s)) {
                if options.timestamps {
                    out.extend_from_slice(format!("{:.9} ", line.time.0).as_bytes());
                }
                out.extend_from_slice(&line.text);
                out.push(b'\n');
            }
            if let Some(limit) = &mut options.limit {
                out.truncate(*limit);
                *limit -= out.len();
            }
            let over = options.limit == Some(0) || !options.follow;
            if !out.is_empty() {
                options.follow &= !over;
                return Some((Ok(out), (log, news, options, next, false)));
            }
            if over && !first || !options.follow {
                return None;
            }
            if news.changed().await.is_err() {
                return None;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;
    use crate::logs::{LogSink, Stream};

    #[test]
    fn options_are_checked() {
        let refused = |params: Params| params.options().err().map(|r| r.1).unwrap_or_default();
        for (params, text) in [
            (Params { tail_lines: Some(-1), ..Params::default() }, "tailLines: must be at least 0, found -1"),
            (
                Params { follow: Some("yes".into()), ..Params::default() },
                "follow: expected true or false, found \"yes\"",
            ),
            (
                Params { since_time: Some("x".into()), ..Params::default() },
                "sinceTime: \"x\" is not a time of RFC 3339",
            ),
            (Params { limit_bytes: Some(5), ..Params::default() }, ""),
        ] {
            assert_eq!(refused(params), text);
        }
    }

    #[tokio::test]
    async fn a_ring_is_read_and_followed() {
        let ring = std::sync::Arc::new(LogRing::default());
        ring.write(Stream::Stdout, b"one\ntwo\n");
        let last = LogOptions { tail: Some(1), ..LogOptions::default() };
        let parts: Vec<_> = ring_stream(ring.clone(), last.clone()).map(Result::unwrap).collect().await;
        assert_eq!(parts.concat(), b"two\n");
        let mut follow = Box::pin(ring_stream(ring.clone(), LogOptions { follow: true, ..last }));
        assert_eq!(follow.next().await.unwrap().unwrap(), b"two\n");
        ring.write(Stream::Stderr, b"three\n");
        assert_eq!(follow.next().await.unwrap().unwrap(), b"three\n");
    }
}
