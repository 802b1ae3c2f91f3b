use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    let meta = json!({"name": "p", "namespace": "ns", "uid": "u1"});
    serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
}

fn made(spec: Value, user: User) -> Result<ContainerConfig, String> {
    let pod = pod(spec);
    let of = Identity {
        pod: &pod,
        container: &pod.spec.as_ref().unwrap().containers[0],
        attempt: 2,
        image: "sha256:1",
        user: &user,
        env: &[("A".into(), "b".into())],
        command: None,
        args: Some(vec!["x".into()]),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi: Vec::new(),
        annotations: HashMap::new(),
        node_memory: 1 << 30,
    };
    container(of, HashMap::new()).map_err(|e| format!("{}: {e}", e.reason))
}

#[test]
fn limits_become_those_of_a_control_group() {
    let check = |resources: Value, expect: [i64; 4]| {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        let r = made(spec, User::Id(0)).unwrap().linux.unwrap().resources.unwrap();
        let shown = [r.cpu_quota, r.cpu_shares, r.memory_limit_in_bytes, r.oom_score_adj];
        assert_eq!(shown, expect, "{resources}");
    };
    check(json!({}), [0, 2, 0, 1000]);
    check(json!({"limits": {"cpu": "500m", "memory": "16Mi"}}), [50_000, 512, 16 << 20, -997]);
    check(json!({"requests": {"cpu": "1", "memory": "256Mi"}}), [0, 1024, 0, 750]);
    check(json!({"limits": {"cpu": "1m"}}), [1000, 2, 0, 999]);
}

#[test]
fn security_follows_the_container_then_the_pod() {
    let security = |pods: Value, own: Value, user: User| {
        let container = json!({"name": "c", "securityContext": own});
        let made = made(json!({"securityContext": pods, "containers": [container]}), user)?;
        Ok::<_, String>(made.linux.unwrap().security_context.unwrap())
    };
    let usual = security(json!({}), json!({}), User::Id(5)).unwrap();
    assert_eq!(
        (usual.run_as_user.unwrap().value, usual.privileged, usual.masked_paths.len()),
        (5, false, 11)
    );
    assert_eq!(usual.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    let named = security(json!({"fsGroup": 7}), json!({}), User::Name("www".into())).unwrap();
    assert_eq!((named.run_as_username.as_str(), named.supplemental_groups), ("www", vec![7]));
    let own = json!({"runAsUser": 1000, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}});
    let own = security(json!({"runAsUser": 1, "runAsGroup": 2}), own, User::Id(0)).unwrap();
    assert_eq!((own.run_as_user.unwrap().value, own.run_as_group.unwrap().value), (1000, 2));
    assert!(own.readonly_rootfs && own.no_new_privs);
    assert_eq!(own.capabilities.unwrap().drop_capabilities, ["ALL"]);
    let privileged = security(json!({}), json!({"privileged": true}), User::Id(0)).unwrap();
    assert!(privileged.privileged && privileged.masked_paths.is_empty() && privileged.seccomp.is_none());
    for (own, user, text) in [
        (json!({"runAsNonRoot": true}), User::Id(0), "image will run as root"),
        (json!({"runAsNonRoot": true}), User::Name("www".into()), "non-numeric user (www)"),
        (json!({"runAsNonRoot": true, "runAsUser": 0}), User::Id(9), "breaks non-root policy"),
    ] {
        let error = security(json!({}), own, user).unwrap_err();
        assert!(error.starts_with("CreateContainerConfigError") && error.contains(text), "{error}");
    }
}

#[test]
fn a_sandbox_is_as_the_pod_asks() {
    let shown = |spec: Value| {
        let config = sandbox(&pod(spec), 1, HashMap::new(), Path::new("/logs"), None);
        let linux = config.linux.unwrap().security_context.unwrap();
        let modes = linux.namespace_options.unwrap();
        (config.hostname, modes.network(), modes.pid(), config.port_mappings.len(), config.log_directory)
    };
    let ports = json!([{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]);
    let containers = json!([{"name": "c", "ports": ports}]);
    let logs = String::from("/logs/ns_p_u1");
    assert_eq!(
        shown(json!({"containers": containers, "hostname": "h"})),
        ("h".into(), NamespaceMode::Pod, NamespaceMode::Container, 1, logs.clone())
    );
    assert_eq!(
        shown(json!({"containers": containers, "hostNetwork": true, "shareProcessNamespace": true})),
        (String::new(), NamespaceMode::Node, NamespaceMode::Pod, 0, logs)
    );
}

#[test]
fn names_are_resolved_by_policy() {
    let server = Some("10.0.0.10".parse().unwrap());
    let check = |spec: Value, expect: &[&str]| {
        let shown = dns(&pod(spec.clone()), server).map(|d| [d.servers, d.searches, d.options].concat());
        assert_eq!(shown.unwrap_or_default(), expect, "{spec}");
    };
    let cluster = ["10.0.0.10", "ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "ndots:5"];
    check(json!({"containers": []}), &cluster);
    check(json!({"containers": [], "hostNetwork": true}), &[]);
    check(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), &cluster);
    check(json!({"containers": [], "dnsPolicy": "Default"}), &[]);
    let own = json!({"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "1"}]});
    check(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own}), &["1.1.1.1", "ndots:1"]);
}

#[test]
fn hosts_name_the_pod_and_its_aliases() {
    let alias = json!([{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]);
    let own = hosts(&pod(json!({"containers": [], "hostAliases": alias})), "10.0.0.2".parse().ok(), "node\n");
    assert!(
        own.ends_with("10.0.0.2\tp\n1.2.3.4\ta\tb\n") && own.starts_with("127.0.0.1\tlocalhost\n"),
        "{own}"
    );
    assert_eq!(hosts(&pod(json!({"containers": [], "hostNetwork": true})), None, "node\n"), "node\n");
}
