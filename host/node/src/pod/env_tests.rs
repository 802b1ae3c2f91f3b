use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::*;

/// ConfigMap `settings` {color: blue}, Secret `keys` {token: s3cret}, Service `web-app`.
pub(crate) struct Fixed;

#[async_trait]
impl Sources for Fixed {
    async fn config_map(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, Failure> {
        let map = json!({"metadata": {"name": name}, "data": {"color": "blue", "size": "9"}});
        Ok((name == "settings").then(|| serde_json::from_value(map).unwrap()))
    }

    async fn secret(&self, _: &str, name: &str) -> Result<Option<Secret>, Failure> {
        let secret = json!({"metadata": {"name": name}, "data": {"token": "czNjcmV0"}});
        Ok((name == "keys").then(|| serde_json::from_value(secret).unwrap()))
    }

    async fn token(&self, _: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, Failure> {
        Ok(format!("token for {} {seconds}", audience.unwrap_or("api")))
    }

    async fn claim(&self, _: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, Failure> {
        let claim = json!({"spec": {"volumeName": name}, "status": {"phase": "Bound"}});
        Ok(Some(serde_json::from_value(claim).unwrap()))
    }

    /// Its name is its path, with `_` for `/`.
    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, Failure> {
        let volume = json!({"spec": {"local": {"path": name.replace('_', "/")}}});
        Ok(Some(serde_json::from_value(volume).unwrap()))
    }

    async fn namespace(&self, name: &str) -> Result<Option<Namespace>, Failure> {
        let namespace = json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")}});
        Ok((name != "gone").then(|| serde_json::from_value(namespace).unwrap()))
    }

    async fn runtime_class(&self, _: &str) -> Result<Option<RuntimeClass>, Failure> {
        Ok(None)
    }

    fn services(&self, namespace: &str) -> Vec<Arc<Service>> {
        let service = json!({
            "metadata": {"name": "web-app", "namespace": namespace},
            "spec": {"clusterIP": "127.43.0.9", "ports": [{"name": "http", "port": 80}]},
        });
        vec![Arc::new(serde_json::from_value(service).unwrap())]
    }
}

fn pod(container: Value) -> Pod {
    let pod = json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": {"app": "x"}},
        "spec": {"nodeName": "n1", "enableServiceLinks": false, "containers": [container]},
    });
    serde_json::from_value(pod).unwrap()
}

pub(crate) fn place() -> Place {
    Place {
        pod_ip: Some(IpAddr::V4(Ipv4Addr::new(127, 42, 0, 2))),
        host_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        allocatable: [("cpu".to_string(), Quantity::units(2))].into(),
        memory: None,
    }
}

async fn resolve(container: Value) -> Result<String, String> {
    let pod = pod(container);
    let env = environment(&pod, &pod.spec.as_ref().unwrap().containers[0], &place(), &Fixed).await;
    let list = env.map_err(|e| format!("{}: {e}", e.reason))?;
    let shown: Vec<String> =
        list.iter().filter(|(k, _)| k != "HOSTNAME").map(|(k, v)| format!("{k}={v}")).collect();
    Ok(shown.join(" "))
}

#[tokio::test]
async fn variables_come_from_everywhere() {
    let key = |kind: &str, name: &str, key: &str| json!({kind: {"name": name, "key": key}});
    for (env, expect) in [
        (json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)$$(A)"}]), "A=1 B=1$(C)$(A)"),
        (json!([{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "A=2"),
        (json!([{"name": "A", "valueFrom": key("configMapKeyRef", "settings", "color")}]), "A=blue"),
        (json!([{"name": "A", "valueFrom": key("secretKeyRef", "keys", "token")}]), "A=s3cret"),
        (json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]), "A=127.42.0.2"),
        (json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]), "A=x"),
        (
            json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}}]),
            "A=64",
        ),
        (json!([{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]), "A=2"),
        (
            json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": true}}}]),
            "",
        ),
    ] {
        let container = json!({"name": "c", "env": env, "resources": {"limits": {"memory": "64Mi"}}});
        assert_eq!(resolve(container).await.unwrap(), expect, "{env}");
    }
    let from =
        json!([{"prefix": "S_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}]);
    let all = resolve(json!({"name": "c", "envFrom": from})).await.unwrap();
    assert_eq!(all, "S_color=blue S_size=9 token=s3cret");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    for (source, expect) in [
        (json!({"configMapKeyRef": {"name": "no", "key": "k"}}), "configmap \"no\" not found"),
        (json!({"secretKeyRef": {"name": "keys", "key": "k"}}), "couldn't find key k in Secret default/keys"),
        (json!({"fieldRef": {"fieldPath": "spec.secret"}}), "unsupported fieldPath: spec.secret"),
    ] {
        let env = json!([{"name": "A", "valueFrom": source}]);
        let error = resolve(json!({"name": "c", "env": env})).await.unwrap_err();
        assert_eq!(error, format!("{CONFIG_ERROR}: {expect}"));
    }
}

#[tokio::test]
async fn services_are_linked_unless_unwanted() {
    let mut pod = pod(json!({"name": "c"}));
    pod.spec.as_mut().unwrap().enable_service_links = None;
    let container = pod.spec.as_ref().unwrap().containers[0].clone();
    let env = environment(&pod, &container, &place(), &Fixed).await.unwrap();
    for (name, value) in [
        ("WEB_APP_SERVICE_HOST", "127.43.0.9"),
        ("WEB_APP_SERVICE_PORT_HTTP", "80"),
        ("WEB_APP_PORT", "tcp://127.43.0.9:80"),
        ("WEB_APP_PORT_80_TCP_ADDR", "127.43.0.9"),
        ("HOSTNAME", "p"),
    ] {
        assert!(env.contains(&(name.into(), value.into())), "{name}={value} in {env:?}");
    }
}

#[test]
fn words_are_expanded() {
    let env = [("A".to_string(), "1".to_string())];
    let list = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(words(None, &env), None);
    assert_eq!(words(Some(&vec![]), &env), None);
    assert_eq!(words(Some(&list(&["$(A)", "$(B)"])), &env), Some(list(&["1", "$(B)"])));
}
