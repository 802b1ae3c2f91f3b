//! Pods on a node, from the API's point of view.

mod support;

use http::Method;
use serde_json::json;
use support::{Cluster, path};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn ask(ip: &str, port: u16) -> std::io::Result<String> {
    let mut stream = tokio::net::TcpStream::connect((ip, port)).await?;
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.rsplit("\r\n\r\n").next().unwrap_or("").to_string())
}

#[tokio::test]
async fn the_node_registers_itself() {
    let cluster = Cluster::new(201).await;
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let lease = cluster.api.until("lease", |api| api.get(lease)).await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
    let ready = |n: &serde_json::Value| {
        let list = n["status"]["conditions"].as_array()?;
        list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(())
    };
    let node = cluster
        .api
        .until("ready node", |api| api.get("/api/v1/nodes/n1").filter(|n| ready(n).is_some()))
        .await;
    assert_eq!(node["metadata"]["labels"]["wasmk.dev/runtime-wasm"], "true");
    assert_eq!(node["status"]["allocatable"]["pods"], "254", "as many as there are addresses");
    assert_eq!(node["status"]["nodeInfo"]["containerRuntimeVersion"], "pretend://1");
    assert_eq!(node["status"]["runtimeHandlers"][1]["name"], "wasmtime");
}

#[tokio::test]
async fn a_command_runs_to_its_end_and_its_log_is_there() {
    let cluster = Cluster::new(202).await;
    let env = json!([{"name": "SAY", "value": "to $(POD)"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    let container = json!({"name": "c", "image": "exit/0:1", "env": [env[1], env[0]]});
    cluster.pod("job", json!({"restartPolicy": "Never", "containers": [container]}));
    let pod = cluster.until("job", "Succeeded Completed").await;
    let status = &pod["status"];
    assert_eq!(status["containerStatuses"][0]["imageID"], "exit/0:1@sha256:0");
    assert_eq!(status["podIP"], "127.42.202.1");
    assert_eq!(cluster.get("/containerLogs/default/job/c").await, (200, "to job\n".into()));
    let reasons = |api: &support::api::Api| {
        let mut list: Vec<String> =
            api.all("/events/").iter().map(|e| e["reason"].as_str().unwrap().to_string()).collect();
        list.sort();
        (list == ["Created", "Pulled", "Started"]).then_some(())
    };
    cluster.api.until("events", reasons).await;
}

#[tokio::test]
async fn a_failing_command_is_restarted_and_backs_off() {
    let cluster = Cluster::new(203).await;
    cluster.pod("bad", json!({"containers": [{"name": "c", "image": "exit/3:1"}]}));
    let pod = cluster.until("bad", "Running CrashLoopBackOff 1").await;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")));
    assert_eq!(cluster.get("/containerLogs/default/bad/c?previous=true").await, (200, "hello\n".into()));
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let cluster = Cluster::new(204).await;
    let from = json!([{"configMapRef": {"name": "none"}}]);
    for (name, container, expect, message) in [
        ("image", json!({"name": "c", "image": "nothing:1"}), "Pending ErrImagePull", "no such image"),
        (
            "config",
            json!({"name": "c", "image": "loop:1", "envFrom": from}),
            "Pending CreateContainerConfigError",
            "configmap \"none\" not found",
        ),
    ] {
        cluster.pod(name, json!({"containers": [container]}));
        let pod = cluster.until(name, expect).await;
        assert_eq!(pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"], message);
    }
    let (status, text) = cluster.get("/containerLogs/default/image/c").await;
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &told["reason"]), (400, &json!("BadRequest")));
    let message = told["message"].as_str().unwrap();
    assert!(message.starts_with("container \"c\" in pod \"image\" is waiting to start: "), "{message}");
}

#[tokio::test]
async fn init_containers_go_first() {
    let cluster = Cluster::new(205).await;
    let main = json!([{"name": "c", "image": "loop:1"}]);
    let init = |image: &str| json!([{"name": "i", "image": image}]);
    let spec =
        |image: &str| json!({"restartPolicy": "Never", "initContainers": init(image), "containers": main});
    cluster.pod("good", spec("exit/0:1"));
    cluster.pod("bad", spec("exit/1:1"));
    cluster.until("good", "Running running").await;
    cluster.until("bad", "Failed PodInitializing").await;
}

#[tokio::test]
async fn an_http_pod_answers_until_it_is_deleted() {
    let cluster = Cluster::new(206).await;
    let container = json!({"name": "c", "image": "http:1", "ports": [{"containerPort": 8081}],
        "readinessProbe": {"httpGet": {"port": 8081}, "periodSeconds": 1}});
    cluster.pod("web", json!({"containers": [container]}));
    let ready = |p: &serde_json::Value| p["status"]["containerStatuses"][0]["ready"] == true;
    let pod = cluster.api.until("ready pod", |api| api.get(&path("web")).filter(ready)).await;
    let ip = pod["status"]["podIP"].as_str().unwrap().to_string();
    assert_eq!(ask(&ip, 8081).await.unwrap(), "hello /x");
    cluster.api.delete_gracefully(&path("web"), 30);
    cluster.api.until("deletion", |api| api.get(&path("web")).is_none().then_some(())).await;
    assert!(ask(&ip, 8081).await.is_err());
    cluster.pod("next", json!({"containers": [{"name": "c", "image": "loop:1"}]}));
    let next = cluster.until("next", "Running running").await;
    assert_eq!(next["status"]["podIP"], ip.as_str(), "the address is free again");
}

#[tokio::test]
async fn a_restarted_agent_goes_on_with_its_pods() {
    let mut cluster = Cluster::new(207).await;
    cluster.pod("web", json!({"containers": [{"name": "c", "image": "http:1"}]}));
    cluster.pod("run", json!({"containers": [{"name": "c", "image": "loop:1"}]}));
    cluster.pod("once", json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "loop:1"}]}));
    let web = cluster.until("web", "Running running").await;
    cluster.until("run", "Running running").await;
    cluster.until("once", "Running running").await;
    cluster.stop().await;
    cluster.start().await;
    let pod = cluster.until("run", "Running running 1").await;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["message"], "the node agent was restarted");
    cluster.until("once", "Failed Error").await;
    let again = cluster.until("web", "Running running").await;
    assert_eq!(again["status"]["podIP"], web["status"]["podIP"]);
    let ip = again["status"]["podIP"].as_str().unwrap().to_string();
    let answered = async {
        while ask(&ip, 8080).await.ok().as_deref() != Some("hello /x") {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), answered).await.unwrap();
}

#[tokio::test]
async fn a_pod_adopts_the_function_that_answered_before_it() {
    use http_body_util::{BodyExt, Empty};

    let cluster = Cluster::new(208).await;
    let functions = cluster.node().functions();
    let spec = wasmk_node::FunctionSpec::new("default", "hello-1", "http:1", &[("SAY", "hi")]);
    let function = functions.prepare(spec).await.unwrap();
    let body = Empty::new().map_err(|never: std::convert::Infallible| match never {}).boxed_unsync();
    let request = http::Request::get("http://hello/early").body(body).unwrap();
    let answer = function
        .call(request, std::time::Duration::ZERO)
        .await
        .into_body()
        .collect()
        .await
        .unwrap()
        .to_bytes();
    assert_eq!(answer, "hi /early");
    assert_eq!(cluster.get("/functionLogs/default/hello-1").await, (200, "asked for /early\n".into()));
    let spec = json!({"nodeName": "n1", "containers": [{"name": "user-container", "image": "http:1"}]});
    let labels = json!({"serving.knative.dev/revision": "hello-1"});
    cluster.api.put(&path("fn"), json!({"metadata": {"labels": labels}, "spec": spec}));
    let pod = cluster.until("fn", "Running running").await;
    assert_eq!(ask(pod["status"]["podIP"].as_str().unwrap(), 8080).await.unwrap(), "hi /x");
    let (_, log) = cluster.get("/containerLogs/default/fn/user-container").await;
    assert_eq!(log, "asked for /early\nasked for /x\n");
}

#[tokio::test]
async fn exec_is_refused_in_words() {
    let cluster = Cluster::new(209).await;
    cluster.pod("p", json!({"containers": [{"name": "c", "image": "loop:1"}]}));
    cluster.until("p", "Running running").await;
    let (status, text) = cluster.get("/exec/default/p/c?command=ls").await;
    let body: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, body["kind"].as_str()), (400, Some("Status")));
    assert!(body["message"].as_str().unwrap().contains("container c of pod p is WebAssembly"));
    let (_, pods) = cluster.get("/pods").await;
    assert!(pods.contains("\"name\":\"p\""));
}

#[tokio::test]
async fn a_pod_that_fills_its_volume_is_evicted() {
    let cluster = Cluster::new(210).await;
    let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Ki"}}]);
    cluster.pod("full", json!({"volumes": volumes, "containers": [{"name": "c", "image": "loop:1"}]}));
    let pod = cluster.until("full", "Running running").await;
    let volume =
        cluster.dir.path().join("pods").join(pod["metadata"]["uid"].as_str().unwrap()).join("volumes/v");
    std::fs::write(volume.join("file"), [0; 2000]).unwrap();
    let pod = cluster.until("full", "Failed Error").await;
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(pod["status"]["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"1Ki\".");
}

#[tokio::test]
async fn hooks_run_at_both_ends() {
    use tokio::io::AsyncBufReadExt;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked_in, mut asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut line = String::new();
            tokio::io::BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            asked_in.send(line.split(' ').nth(1).unwrap().to_string()).unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    let cluster = Cluster::new(212).await;
    let get = |path: &str| json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": path}});
    let lifecycle = json!({"postStart": get("/begin"), "preStop": get("/end")});
    cluster.pod("p", json!({"containers": [{"name": "c", "image": "loop:1", "lifecycle": lifecycle}]}));
    cluster.until("p", "Running running").await;
    assert_eq!(asked.recv().await.unwrap(), "/begin");
    cluster.api.delete_gracefully(&path("p"), 30);
    cluster.api.until("deletion", |api| api.get(&path("p")).is_none().then_some(())).await;
    assert_eq!(asked.recv().await.unwrap(), "/end");
}

/// As the API gives each pod, with the volume of its account.
fn usual(image: &str) -> serde_json::Value {
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]);
    let mounts = json!([{"name": "api", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]);
    json!({
        "containers": [{"name": "c", "image": image, "volumeMounts": mounts}],
        "volumes": [{"name": "api", "projected": {"sources": sources, "defaultMode": 420}}],
    })
}

#[tokio::test]
async fn a_pod_that_starts_costs_the_api_one_status_and_one_token() {
    const PODS: usize = 24;
    let cluster = Cluster::new(219).await;
    let map = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt";
    cluster.api.put(map, json!({"data": {"ca.crt": "trust me"}}));
    for n in 0..PODS {
        cluster.pod(&format!("p{n}"), usual("http:1"));
    }
    for n in 0..PODS {
        cluster.until(&format!("p{n}"), "Running running").await;
    }
    let api = &cluster.api;
    let events = || api.asked(&Method::POST, "/events");
    api.until("events", |_| (events() == 3 * PODS).then_some(())).await;
    for n in 0..PODS {
        let phases = api.written(&format!("p{n}")).into_iter().map(|p| p["status"]["phase"].clone());
        let phases: Vec<_> = phases.filter_map(|phase| phase.as_str().map(String::from)).collect();
        // That it is about to run is only told of one that takes long to.
        assert!(phases == ["Running"] || phases == ["Pending", "Running"], "{phases:?}");
    }
    assert_eq!(api.asked(&Method::POST, "/token"), PODS, "tokens");
    assert_eq!(api.asked(&Method::PATCH, "/events/"), 0);
    assert_eq!(api.asked(&Method::GET, "/pods/"), 0);
    assert!(api.asked(&Method::GET, map) <= PODS, "the map of all");
}
