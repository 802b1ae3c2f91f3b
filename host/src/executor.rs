//! Lets the gateway answer in place through the functions of this process's node.

use async_trait::async_trait;
use http::{Request, Response};
use std::{sync::Arc, time::Duration};
use wasmk_api::k8s_openapi::api::core::v1::Container;
use wasmk_functions::{Body, Executor, Function, Handler, Prepared, Refused};
use wasmk_node::{FunctionError, FunctionSpec, Functions};

/// An [`Executor`] over a node.
pub(crate) struct InPlace(pub Functions);

#[async_trait]
impl Executor for InPlace {
    async fn prepare(&self, function: &Function) -> Result<Prepared, Refused> {
        if let Some(why) = needs_pod(function) {
            return Err(Refused::NeedsPod(why.into()));
        }
        let spec = FunctionSpec {
            namespace: function.namespace.clone(),
            revision: function.revision.clone(),
            labels: function.labels.clone(),
            annotations: function.annotations.clone(),
            pod: function.pod.clone(),
            timeout: Some(Duration::from_secs(function.timeout_seconds.into())),
            concurrency: usize::try_from(function.concurrency).ok().filter(|n| *n > 0),
        };
        let prepared = self.0.prepare(spec).await.map_err(|e| match e {
            FunctionError::Failed { reason, message } => Refused::Failed { reason: reason.into(), message },
            FunctionError::NotHttp(_) | FunctionError::Container(_) => Refused::NeedsPod(e.to_string()),
            FunctionError::Full => Refused::Failed { reason: "NodeFull".into(), message: e.to_string() },
        })?;
        Ok(Prepared { image: prepared.image_id().into(), handler: Arc::new(Call(prepared)) })
    }

    fn forget(&self, namespace: &str, revision: &str) {
        self.0.remove(namespace, revision);
    }
}

/// Why a function cannot be answered without a pod around it.
fn needs_pod(function: &Function) -> Option<&'static str> {
    let pod = &function.pod;
    let some = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l: &Vec<Container>| !l.is_empty());
    if pod.containers.len() != 1 {
        return Some("it has more than one container");
    }
    if some(&pod.init_containers) {
        return Some("it has init containers");
    }
    pod.volumes.as_ref().is_some_and(|v| !v.is_empty()).then_some("it has volumes")
}

struct Call(Arc<wasmk_node::Function>);

#[async_trait]
impl Handler for Call {
    async fn call(&self, request: Request<Body>, routed: Duration) -> Response<Body> {
        self.0.call(request, routed).await
    }
}

/// An [`Executor`] of a program without a node: every function needs a pod elsewhere.
#[derive(Debug)]
pub(crate) struct Elsewhere;

#[async_trait]
impl Executor for Elsewhere {
    async fn prepare(&self, _: &Function) -> Result<Prepared, Refused> {
        Err(Refused::NeedsPod("there is no node in this process".into()))
    }

    fn forget(&self, _: &str, _: &str) {}
}
