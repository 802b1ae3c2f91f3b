//! Reads what pods refer to (ConfigMaps, Secrets, Services, tokens) from the API.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use kube::{Api, api::PostParams};
use wasmk_api::k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
};
use wasmk_net::View;

use crate::{
    engine::Failure,
    pod::env::{CONFIG_ERROR, Sources},
};

/// Longest wait for one read.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Sources over an API client. Services are in the shared view, the rest is read when needed.
pub(crate) struct ApiSources {
    client: kube::Client,
    view: View,
}

impl ApiSources {
    /// Sources over a client and a view.
    pub(crate) fn new(client: kube::Client, view: View) -> Self {
        Self { client, view }
    }
}

async fn limited<T>(what: &str, work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(READ_LIMIT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::new(CONFIG_ERROR, format!("{what}: {error}"))),
        Err(_) => Err(Failure::new(CONFIG_ERROR, format!("{what}: no answer from the API"))),
    }
}

#[async_trait]
impl Sources for ApiSources {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, Failure> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        limited(&format!("configmap \"{name}\""), api.get_opt(name)).await
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, Failure> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        limited(&format!("secret \"{name}\""), api.get_opt(name)).await
    }

    async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, Failure> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        let account = account.filter(|a| !a.is_empty()).unwrap_or_else(|| "default".into());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(String::from).into_iter().collect()),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let asked = api.create_token_request(&account, &params, &request);
        let answer = limited(&format!("token of serviceaccount \"{account}\""), asked).await?;
        let none =
            || Failure::new(CONFIG_ERROR, format!("serviceaccount \"{account}\": the API gave no token"));
        answer.status.and_then(|s| s.token).ok_or_else(none)
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let wanted = |s: &Arc<Service>| {
            let at = s.metadata.namespace.as_deref();
            at == Some(namespace)
                || (at == Some("default") && s.metadata.name.as_deref() == Some("kubernetes"))
        };
        let mut list: Vec<_> = self.view.services().into_iter().filter(wanted).collect();
        list.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        list
    }
}
