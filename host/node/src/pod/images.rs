//! Which image a container runs from, when it is fetched and with what logins.

use base64::Engine as _;
use wasmk_api::k8s_openapi::api::core::v1::{Container, Pod};
use wasmk_cri::v1::Image;

use super::env::{CONFIG_ERROR, Sources};
use crate::{
    containers::Containers,
    context::Context,
    engine::{Engine, Failure, Login, PullPolicy, Wanted},
};

/// Most logins tried for one image.
const MAX_LOGINS: usize = 32;

/// What runs an image.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice {
    /// This process: it is WebAssembly.
    Wasm,
    /// The container runtime, which has it already as this.
    Container(Option<Box<Image>>),
}

/// The image of a container.
///
/// # Errors
/// When the container names none, or a pull secret cannot be read.
pub(super) async fn wanted(cx: &Context, pod: &Pod, container: &Container) -> Result<Wanted, Failure> {
    let image = container.image.clone().filter(|i| !i.is_empty());
    let image = image.ok_or_else(|| Failure::new("InvalidImageName", "container names no image"))?;
    let policy = pull_policy(container.image_pull_policy.as_deref(), &image);
    let logins = logins(&*cx.sources, pod).await?;
    Ok(Wanted { image, policy, logins })
}

/// What runs an image: a WebAssembly artifact runs in this process, anything else in the container
/// runtime, if there is one.
pub(crate) async fn choose(engine: &dyn Engine, containers: Option<&Containers>, wanted: &Wanted) -> Choice {
    let Some(containers) = containers.filter(|c| c.info().borrow().is_some()) else {
        return Choice::Wasm;
    };
    let local = Wanted { policy: PullPolicy::Never, ..wanted.clone() };
    if engine.recognizes(&local).await == Some(true) {
        return Choice::Wasm;
    }
    if let Some(image) = containers.present(&wanted.image).await {
        return Choice::Container(Some(Box::new(image)));
    }
    match engine.recognizes(wanted).await {
        Some(true) => Choice::Wasm,
        // What cannot be had at all is the container runtime's to complain about.
        Some(false) | None => Choice::Container(None),
    }
}

/// When the image is fetched: as written, or by its tag.
pub(super) fn pull_policy(written: Option<&str>, image: &str) -> PullPolicy {
    match written {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None => {
            let last = image.rsplit('/').next().unwrap_or(image);
            let latest = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
            if latest { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

/// The same for a pod.
pub(super) async fn choose_for(cx: &Context, wanted: &Wanted) -> Choice {
    choose(&*cx.engine, cx.containers.as_deref(), wanted).await
}

/// The logins of the pod's image pull secrets.
pub(crate) async fn logins(sources: &dyn Sources, pod: &Pod) -> Result<Vec<Login>, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut out = Vec::new();
    for reference in pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten()).take(MAX_LOGINS) {
        // A missing secret is no error: the image may be public.
        let Some(secret) = sources.secret(namespace, &reference.name).await? else { continue };
        if let Some(config) = secret.data.as_ref().and_then(|d| d.get(".dockerconfigjson")) {
            out.extend(docker_logins(&config.0).map_err(|e| {
                Failure::new(
                    CONFIG_ERROR,
                    format!("secret \"{}\" key .dockerconfigjson: {e}", reference.name),
                )
            })?);
        }
    }
    out.truncate(MAX_LOGINS);
    Ok(out)
}

fn docker_logins(config: &[u8]) -> Result<Vec<Login>, String> {
    let config: serde_json::Value = serde_json::from_slice(config).map_err(|e| e.to_string())?;
    let auths = config.get("auths").and_then(|a| a.as_object());
    let mut out = Vec::new();
    for (registry, auth) in auths.into_iter().flatten() {
        let field = |name: &str| auth.get(name).and_then(|v| v.as_str()).map(String::from);
        let packed = || {
            let bytes = base64::engine::general_purpose::STANDARD.decode(field("auth")?).ok()?;
            let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
            Some((user.to_string(), password.to_string()))
        };
        let Some((username, password)) = field("username").zip(field("password")).or_else(packed) else {
            continue;
        };
        let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
        let registry = bare.split('/').next().unwrap_or(bare).to_string();
        out.push(Login { registry, username, password });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (policy, image, expect) in [
            (None, "a/b", PullPolicy::Always),
            (None, "host:5000/b:latest", PullPolicy::Always),
            (None, "host:5000/b", PullPolicy::Always),
            (None, "a/b:1", PullPolicy::IfNotPresent),
            (None, "a/b@sha256:00", PullPolicy::IfNotPresent),
            (Some("Never"), "a/b", PullPolicy::Never),
        ] {
            assert_eq!(pull_policy(policy, image), expect, "{policy:?} {image}");
        }
    }

    #[test]
    fn pull_secrets_are_read() {
        let config = json!({"auths": {
            "https://docker.io/v1/": {"auth": "dTpw"},
            "r:5000": {"username": "a", "password": "b"},
            "empty": {},
        }});
        let logins = docker_logins(config.to_string().as_bytes()).unwrap();
        let shown: Vec<_> =
            logins.iter().map(|l| format!("{} {}:{}", l.registry, l.username, l.password)).collect();
        assert_eq!(shown, ["docker.io u:p", "r:5000 a:b"]);
    }
}
