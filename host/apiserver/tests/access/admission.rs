//! Admission plugins, chosen by name.

use serde_json::{Value, json};
use wasmk_apiserver::AdmissionPlugins;

use crate::support::{self, Answer, Server};

async fn with(enable: &[&str], disable: &[&str]) -> Server {
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let chosen = AdmissionPlugins::choose(&list(enable), &list(disable)).unwrap();
    let server = support::start_with(|config| config.admission = chosen).await;
    server.post("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    server
}

async fn pod(server: &Server, name: &str, spec: Value) -> Answer {
    let mut whole = json!({"containers": [{"name": "c", "image": "i:1"}]});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let body = json!({"metadata": {"name": name}, "spec": whole});
    server.post("/api/v1/namespaces/default/pods", body).await
}

#[tokio::test]
async fn plugins_do_what_they_are_for_only_when_they_are_on() {
    let usual = with(&["AlwaysAdmit"], &[]).await;
    assert_eq!(
        pod(&usual, "p", json!({})).await.body["spec"]["containers"][0]["imagePullPolicy"],
        "IfNotPresent"
    );
    let always = with(&["AlwaysPullImages"], &[]).await;
    assert_eq!(pod(&always, "p", json!({})).await.body["spec"]["containers"][0]["imagePullPolicy"], "Always");

    let bare = with(&[], &["ServiceAccount", "Priority", "DefaultTolerationSeconds"]).await;
    let plain = pod(&bare, "p", json!({})).await.body;
    for absent in ["/spec/serviceAccountName", "/spec/volumes", "/spec/priority", "/spec/tolerations"] {
        assert_eq!(plain.pointer(absent), None, "{absent}");
    }

    let lenient = with(&[], &["NamespaceLifecycle"]).await;
    let nowhere = "/api/v1/namespaces/nowhere/configmaps";
    let map = || json!({"metadata": {"name": "m"}});
    assert_eq!(usual.post(nowhere, map()).await.code, 404);
    assert_eq!(lenient.post(nowhere, map()).await.code, 201);
    let provident = with(&["NamespaceAutoProvision"], &[]).await;
    assert_eq!(provident.post(nowhere, map()).await.code, 201);
    assert_eq!(provident.get("/api/v1/namespaces/nowhere").await.body["status"]["phase"], "Active");

    let closed = with(&["DenyServiceExternalIPs"], &[]).await;
    let service = |ips: Value| json!({"metadata": {"generateName": "s"}, "spec": {"ports": [{"port": 80}], "externalIPs": ips}});
    let services = "/api/v1/namespaces/default/services";
    assert_eq!(usual.post(services, service(json!(["192.0.2.1"]))).await.code, 201);
    assert_eq!(closed.post(services, service(json!(["192.0.2.1"]))).await.code, 403);
    assert_eq!(closed.post(services, service(json!([]))).await.code, 201);

    let deny = with(&["AlwaysDeny"], &[]).await;
    assert_eq!(deny.post("/api/v1/namespaces/default/configmaps", map()).await.code, 403);
}

#[tokio::test]
async fn owners_are_set_by_who_could_delete() {
    let server = with(&["OwnerReferencesPermissionEnforcement"], &[]).await;
    let rule =
        |resources: Value, verbs: Value| json!({"apiGroups": [""], "resources": resources, "verbs": verbs});
    let grant = async |name: &str, rules: Value| {
        let group = "/apis/rbac.authorization.k8s.io/v1";
        server
            .post(&format!("{group}/clusterroles"), json!({"metadata": {"name": name}, "rules": rules}))
            .await;
        let answer = server
            .post(
                &format!("{group}/clusterrolebindings"),
                json!({
                    "metadata": {"name": name},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                    "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name}],
                }),
            )
            .await;
        assert_eq!(answer.code, 201);
    };
    let write = rule(json!(["configmaps"]), json!(["get", "patch"]));
    let delete = rule(json!(["configmaps"]), json!(["delete"]));
    let hold = rule(json!(["secrets/finalizers"]), json!(["update"]));
    grant("writer", json!([write])).await;
    grant("deleter", json!([write, delete])).await;
    grant("holder", json!([write, delete, hold])).await;
    let maps = "/api/v1/namespaces/default/configmaps";
    server.post(maps, json!({"metadata": {"name": "m"}})).await;
    let owned = |block: bool| {
        json!({"metadata": {"ownerReferences": [{
            "apiVersion": "v1", "kind": "Secret", "name": "s", "uid": "u", "blockOwnerDeletion": block,
        }]}})
        .to_string()
    };
    for (user, block, expect) in
        [("writer", false, 403), ("deleter", true, 403), ("deleter", false, 200), ("holder", true, 200)]
    {
        let headers = [("impersonate-user", user), ("content-type", "application/merge-patch+json")];
        let answer = server.send("PATCH", &format!("{maps}/m"), &headers, &owned(block)).await;
        assert_eq!(answer.code, expect, "{user} {block}: {:?}", answer.body["message"]);
    }
}

#[tokio::test]
async fn signers_have_their_own_approvers() {
    let server = with(&[], &[]).await;
    let request = |group: &str| {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
        let pem = params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        json!({"metadata": {"generateName": "r"}, "spec": {
            "request": STANDARD.encode(pem), "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"],
        }})
    };
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let refused = server.post(requests, request("system:masters")).await;
    assert_eq!(refused.code, 403);
    assert!(refused.body["message"].as_str().unwrap().contains("is not allowed"), "{:?}", refused.body);
    let made = server.post(requests, request("dev")).await;
    assert_eq!((made.code, made.body["spec"]["username"].as_str()), (201, Some("admin")));
    let group = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"], "verbs": ["update"]}]);
    server
        .post(&format!("{group}/clusterroles"), json!({"metadata": {"name": "approver"}, "rules": rules}))
        .await;
    let bind = async |name: &str, role: &str| {
        let subjects = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ann"}]);
        let reference = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role});
        let body = json!({"metadata": {"name": name}, "roleRef": reference, "subjects": subjects});
        assert_eq!(server.post(&format!("{group}/clusterrolebindings"), body).await.code, 201);
    };
    bind("one", "approver").await;
    let mut approved = made.body.clone();
    approved["status"] =
        json!({"conditions": [{"type": "Approved", "status": "True", "reason": "Test", "message": "m"}]});
    let path = format!("{requests}/{}/approval", made.body["metadata"]["name"].as_str().unwrap());
    let headers = [("impersonate-user", "ann"), ("content-type", "application/json")];
    let refused = server.send("PUT", &path, &headers, &approved.to_string()).await;
    assert_eq!(refused.code, 403);
    let why =
        "user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\"";
    assert!(refused.body["message"].as_str().unwrap().ends_with(why), "{:?}", refused.body);
    bind("two", "system:certificates.k8s.io:kube-apiserver-client-approver").await;
    assert_eq!(server.send("PUT", &path, &headers, &approved.to_string()).await.code, 200);
    // Approving is not signing.
    let status = path.replace("/approval", "/status");
    let mut signed = server.get(path.trim_end_matches("/approval")).await.body;
    signed["status"]["certificate"] = "LS0t".into();
    assert_eq!(server.send("PUT", &status, &headers, &signed.to_string()).await.code, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_holds_against_a_hundred_at_once() {
    let server = std::sync::Arc::new(with(&[], &[]).await);
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let hard = json!({"count/configmaps": "17", "requests.cpu": "1", "pods": "9"});
    server.post(quotas, json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
    let status = json!({"status": {"hard": hard, "used": {"count/configmaps": "0", "requests.cpu": "0", "pods": "0"}}});
    assert_eq!(server.merge(&format!("{quotas}/q/status"), status).await.code, 200);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let server = server.clone();
        tasks.spawn(async move {
            let map = json!({"metadata": {"name": format!("m{n}")}});
            let map = server.post("/api/v1/namespaces/default/configmaps", map).await;
            let cpu = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "150m"}}});
            let pod = pod(&server, &format!("p{n}"), json!({"containers": [cpu]})).await;
            (map.code, pod.code)
        });
    }
    let (mut maps, mut pods) = (0, 0);
    while let Some(codes) = tasks.join_next().await {
        let (map, pod) = codes.unwrap();
        assert!([201, 403].contains(&map) && [201, 403].contains(&pod), "{map} {pod}");
        maps += usize::from(map == 201);
        pods += usize::from(pod == 201);
    }
    let used = server.get(&format!("{quotas}/q")).await.body["status"]["used"].clone();
    assert_eq!((maps, pods), (17, 6), "{used}");
    assert_eq!(used, json!({"count/configmaps": "17", "requests.cpu": "900m", "pods": "6"}));
}
