//! Knative as its users know it: manifests, refusals, settings, traffic, domains, events.

use std::sync::LazyLock;

use wasmk_tests::program::{Program, guest};

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);
static IMAGE: LazyLock<String> = LazyLock::new(|| CLUSTER.push("hello-http"));

/// A Service as its documentation shows it, with more lines of its template's spec.
fn service(name: &str, metadata: &str, more: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  template:\n    \
         metadata:\n      annotations: {{{metadata}}}\n    spec:\n      containers:\n        - image: {}\n{more}",
        *IMAGE
    )
}

fn apply(name: &str, more: &str) -> String {
    let said = CLUSTER.apply(&service(name, "", more));
    CLUSTER.until_value(&format!("ksvc/{name}"), "{.status.conditions[?(@.type=='Ready')].status}", "True");
    said
}

fn refused(manifest: &str) -> String {
    CLUSTER.kubectl_refused(&["apply", "-f", "-"], Some(manifest))
}

fn pods(program: &Program, name: &str) -> usize {
    let selector = format!("serving.knative.dev/service={name}");
    program.kubectl(&["get", "pods", "-l", &selector, "-o", "name"]).lines().count()
}

#[test]
fn a_service_owns_a_configuration_and_a_route_and_is_called_by_its_host() {
    let env = "          env:\n            - name: TARGET\n              value: DwK\n";
    assert_eq!(apply("helloworld-go", env), "service.serving.knative.dev/helloworld-go created\n");
    assert_eq!(
        CLUSTER.value("ksvc/helloworld-go", "{.status.url}"),
        "http://helloworld-go.default.example.com"
    );
    for kind in ["configuration.serving.knative.dev", "route.serving.knative.dev"] {
        let owner = CLUSTER.value(&format!("{kind}/helloworld-go"), "{.metadata.ownerReferences[0].kind}");
        assert_eq!(owner, "Service", "{kind}");
    }
    let env = "{.spec.template.spec.containers[0].env[0].value}";
    assert_eq!(CLUSTER.value("configuration.serving.knative.dev/helloworld-go", env), "DwK");
    let traffic = "{.spec.traffic[0].percent} {.status.traffic[0].revisionName}";
    assert_eq!(CLUSTER.value("route.serving.knative.dev/helloworld-go", traffic), "100 helloworld-go-00001");
    assert_eq!(CLUSTER.call("helloworld-go.default.example.com", "/"), (200, "hello DwK\n".into()));
    assert_eq!(CLUSTER.call("nobody.default.example.com", "/").0, 404);
    // What Knative fills in, and who made it.
    let value = |path: &str| CLUSTER.value("ksvc/helloworld-go", path);
    let spec = "{.spec.template.spec";
    assert_eq!(value(&format!("{spec}.timeoutSeconds}} {spec}.containerConcurrency}}")), "300 0");
    assert_eq!(value(&format!("{spec}.containers[0].name}}")), "user-container");
    assert_eq!(value("{.spec.traffic[0].percent}"), "100");
    assert_eq!(value("{.metadata.annotations.serving\\.knative\\.dev/creator}"), "kubernetes-admin");
    let state = "{.metadata.labels.serving\\.knative\\.dev/routingState}";
    CLUSTER.until_value("revision/helloworld-go-00001", state, "active");
}

#[test]
fn a_pod_is_named_after_its_revision_and_serves_the_default_port() {
    CLUSTER.apply(&service("shaped", "autoscaling.knative.dev/min-scale: \"1\"", ""));
    let list = |path: &str| {
        let path = format!("jsonpath={{.items[*]{path}}}");
        CLUSTER.kubectl(&["get", "pods", "-l", "serving.knative.dev/service=shaped", "-o", &path])
    };
    CLUSTER.until(
        "its pod is ready",
        |_| list(".status.containerStatuses[*].ready"),
        |ready| ready == "true",
    );
    let name = list(".metadata.name");
    let parts: Vec<&str> = name.strip_prefix("shaped-00001-deployment-").unwrap().split('-').collect();
    assert!(matches!(&parts[..], [_, suffix] if suffix.len() == 5), "{name}");
    assert_eq!(list(".spec.containers[*].name"), "user-container", "no sidecar");
    assert_eq!(list(".spec.containers[0].ports[*].containerPort"), "8080");
    assert_eq!(list(".spec.containers[0].env[?(@.name=='PORT')].value"), "8080");
    let url = format!("http://{}:8080/", list(".status.podIP"));
    let said = std::process::Command::new("curl").args(["-s", "-m", "10", &url]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "hello world\n");
}

#[test]
fn what_breaks_a_rule_is_refused_in_knatives_words() {
    let webhook = "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: ";
    for (manifest, expected) in [
        (
            service("bad", "", "      containerConcurrency: 1001\n"),
            "expected 0 <= 1001 <= 1000: spec.template.spec.containerConcurrency",
        ),
        (
            service("bad", "autoscaling.knative.dev/min-scale: \"-1\"", ""),
            "expected 0 <= -1 <= 2147483647: spec.template.metadata.annotations.autoscaling.knative.dev/min-scale",
        ),
        (
            service("bad", "", "      nodeSelector:\n        a: b\n"),
            "must not set the field(s): spec.template.spec.nodeSelector",
        ),
        (
            format!("{}  traffic:\n    - latestRevision: true\n      percent: 90\n", service("bad", "", "")),
            "Traffic targets sum to 90, want 100: spec.traffic",
        ),
    ] {
        let said = refused(&manifest);
        assert!(said.contains(&format!("{webhook}{expected}")), "{said}");
    }
    let unknown = refused(&service("bad", "", "      containerConcurency: 1\n"));
    assert!(unknown.contains("unknown field \"spec.template.spec.containerConcurency\""), "{unknown}");
}

#[test]
fn a_revision_does_not_change() {
    apply("fixed", "");
    let patch = r#"{"spec":{"timeoutSeconds":1}}"#;
    let args = ["patch", "revision", "fixed-00001", "--type", "merge", "-p", patch];
    let said = CLUSTER.kubectl_refused(&args, None);
    assert!(said.contains("Immutable fields changed (-old +new): spec"), "{said}");
}

#[test]
fn ten_requests_at_once_at_zero_are_all_answered() {
    apply("burst", "");
    CLUSTER.until("no pod before", |p| pods(p, "burst"), |n| *n == 0);
    let call = || CLUSTER.call("burst.default.example.com", "/").0;
    let codes: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..10).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|c| c.join().expect("a call")).collect()
    });
    assert_eq!(codes, [200; 10]);
}

#[test]
fn simultaneous_requests_bring_several_pods_that_go_again() {
    let file = guest("misbehave-http");
    let file = file.to_str().unwrap();
    let flags = ["--target", "1", "--window", "6s", "--timeout", "5"];
    CLUSTER.wasmk(&[&["fn", "deploy", file, "--name", "busy"][..], &flags[..]].concat());
    std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..3).map(|_| scope.spawn(|| CLUSTER.call("busy.default.example.com", "/loop"))).collect();
        CLUSTER.until("several pods", |p| pods(p, "busy"), |n| *n >= 3);
        calls.into_iter().for_each(|c| drop(c.join()));
    });
    CLUSTER.until("no pod any more", |p| pods(p, "busy"), |n| *n == 0);
}

#[test]
fn settings_count_as_soon_as_they_change() {
    let map = ["patch", "configmap", "config-domain", "-n", "knative-serving", "--type", "merge", "-p"];
    let domain = r#"{"data":{"example.org":"selector:\n  app: nonprofit\n"}}"#;
    CLUSTER.kubectl(&[&map[..], &[domain]].concat());
    CLUSTER.apply(
        &service("charity", "", "")
            .replace("  name: charity\n", "  name: charity\n  labels: {app: nonprofit}\n"),
    );
    CLUSTER.until_value("ksvc/charity", "{.status.url}", "http://charity.default.example.org");
    CLUSTER.until("its host", |p| p.call("charity.default.example.org", "/").0, |code| *code == 200);

    let wrong = ["patch", "configmap", "config-autoscaler", "-n", "knative-serving", "--type", "merge", "-p"];
    let said =
        CLUSTER.kubectl_refused(&[&wrong[..], &[r#"{"data":{"stable-window":"soon"}}"#]].concat(), None);
    assert!(said.contains("stable-window: invalid value \"soon\""), "{said}");
}

#[test]
fn a_cluster_local_service_has_no_host_outside() {
    let manifest = service("inner", "", "").replace(
        "  name: inner\n",
        "  name: inner\n  labels: {networking.knative.dev/visibility: cluster-local}\n",
    );
    CLUSTER.apply(&manifest);
    CLUSTER.until_value("ksvc/inner", "{.status.url}", "http://inner.default.svc.cluster.local");
    CLUSTER.until(
        "the inner host",
        |p| p.call("inner.default.svc.cluster.local", "/").0,
        |code| *code == 200,
    );
    assert_eq!(CLUSTER.call("inner.default.example.com", "/").0, 404);
}

#[test]
fn a_domain_of_ones_own_leads_to_a_service() {
    apply("mapped", "");
    CLUSTER.apply(
        "apiVersion: serving.knative.dev/v1beta1\nkind: DomainMapping\nmetadata:\n  name: shop.example.net\n\
         spec:\n  ref:\n    apiVersion: serving.knative.dev/v1\n    kind: Service\n    name: mapped\n",
    );
    CLUSTER.until_value(
        "domainmapping/shop.example.net",
        "{.status.conditions[?(@.type=='Ready')].status}",
        "True",
    );
    CLUSTER.until("its host", |p| p.call("shop.example.net", "/").1, |body| body == "hello world\n");
    CLUSTER.kubectl(&["delete", "domainmapping", "shop.example.net"]);
    CLUSTER.until("its host is gone", |p| p.call("shop.example.net", "/").0, |code| *code == 404);
}

#[test]
fn traffic_is_moved_and_moved_back() {
    let file = guest("hello-http");
    let deploy = |flags: &[&str]| {
        let file = file.to_str().unwrap();
        CLUSTER.wasmk(&[&["fn", "deploy", file, "--name", "moving"][..], flags].concat())
    };
    deploy(&["-e", "TARGET=one"]);
    let url = deploy(&["-e", "TARGET=two", "--tag", "next", "--set-traffic", "0"]);
    assert_eq!(url.trim(), "http://next-moving.default.example.com");
    let host = "moving.default.example.com";
    let body = |p: &Program| p.call(host, "/").1;
    CLUSTER.until("the first answers", body, |b| b == "hello one\n");
    CLUSTER.until("the tag's host", |p| p.call(&format!("next-{host}"), "/").1, |b| b == "hello two\n");
    CLUSTER.wasmk(&["fn", "traffic", "moving", "--set", "moving-00002=100"]);
    CLUSTER.until("the second answers", body, |b| b == "hello two\n");
    assert_eq!(CLUSTER.wasmk(&["fn", "rollback", "moving"]), "moving is answered by moving-00001\n");
    CLUSTER.until("the first answers again", body, |b| b == "hello one\n");
    let text = CLUSTER.wasmk(&["fn", "describe", "moving"]);
    assert!(text.contains("moving-00002") && text.contains("next"), "{text}");
    let manifest = CLUSTER.wasmk(&["fn", "export", "moving"]);
    assert!(manifest.contains("kind: Service") && !manifest.contains("resourceVersion"), "{manifest}");
    let cold = CLUSTER.wasmk(&["fn", "cold", "moving", "--calls", "3"]);
    for phase in ["prepare", "route", "first-byte"] {
        assert!(cold.contains(phase), "{cold}");
    }
}

#[test]
fn events_reach_functions_and_lost_ones_the_dead_letter() {
    apply("listener", "");
    let bad = guest("misbehave-http");
    CLUSTER.wasmk(&["fn", "deploy", bad.to_str().unwrap(), "--name", "thrower"]);
    CLUSTER.apply(
        "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata:\n  name: default\n---\n\
         apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata:\n  name: made\nspec:\n  broker: default\n  \
         filter: {attributes: {type: made}}\n  subscriber:\n    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: listener}\n    uri: /made\n---\n\
         apiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata:\n  name: lost\nspec:\n  broker: default\n  \
         filter: {attributes: {type: lost}}\n  subscriber:\n    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: thrower}\n    uri: /panic\n  \
         delivery:\n    retry: 1\n    backoffDelay: PT0.1S\n    deadLetterSink:\n      ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: listener}\n      uri: /dead\n",
    );
    for object in ["broker/default", "trigger/made", "trigger/lost"] {
        CLUSTER.until_value(object, "{.status.conditions[?(@.type=='Ready')].status}", "True");
    }
    assert_eq!(send("made"), "202");
    assert_eq!(send("lost"), "202");
    assert_eq!(send(""), "400");
    let log = |p: &Program| p.wasmk(&["fn", "logs", "listener"]);
    CLUSTER.until("the event", log, |text| text.contains("POST /made"));
    CLUSTER.until("the dead letter", log, |text| text.contains("POST /dead"));
    // Changes of objects are events, too, as far as the service account may see them.
    CLUSTER.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: watcher\n---\n\
         apiVersion: sources.knative.dev/v1\nkind: ApiServerSource\nmetadata:\n  name: maps\nspec:\n  serviceAccountName: watcher\n  \
         resources: [{apiVersion: v1, kind: ConfigMap}]\n  sink:\n    ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: listener}\n    uri: /maps\n",
    );
    CLUSTER.kubectl(&[
        "create",
        "rolebinding",
        "watcher",
        "--clusterrole=view",
        "--serviceaccount=default:watcher",
    ]);
    let mut number = 0;
    let change = |p: &Program| {
        number += 1;
        p.kubectl(&["create", "configmap", &format!("change-{number}")]);
        log(p)
    };
    CLUSTER.until("the change", change, |text| text.contains("POST /maps"));
}

/// Sends an event of a type to the broker `default`; the answer's status.
fn send(kind: &str) -> String {
    let url = format!("http://{}/default/default", CLUSTER.address("gateway"));
    let headers = [
        "Host: broker-ingress.knative-eventing.svc.cluster.local",
        "ce-id: 1",
        "ce-source: /test",
        "ce-specversion: 1.0",
    ];
    let kind = format!("ce-type: {kind}");
    let headers = headers.iter().copied().chain([kind.as_str()]).flat_map(|h| ["-H", h]);
    let out = std::process::Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-X", "POST", "-d", "hi"])
        .args(headers)
        .arg(&url)
        .output()
        .expect("curl runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}
