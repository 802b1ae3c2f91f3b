//! Machines that join as nodes: reached only by what they dial themselves, going on without their cluster, and
//! of different kinds beside each other.

use std::{collections::BTreeSet, process::Command};

use wasmk_tests::{
    agent::{Agent, NO_CONTAINERS},
    containerd::Containerd,
    node::{Node, container, fetch, pod},
    program::{Program, guest},
};

/// Halts a process, or lets it go on.
fn signal(name: &str, process: u32) {
    let done = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status();
    assert!(done.is_ok_and(|s| s.success()), "kill -{name} {process}");
}

const READY: &str = "{.status.conditions[?(@.type=='Ready')].status}";

#[test]
fn an_agent_goes_on_without_its_cluster_and_reports_again() {
    let program = Program::start();
    let p = &program;
    let hello = p.push("hello");
    let agent = Agent::join(p, "edge", &NO_CONTAINERS);
    p.until_value("node/edge", READY, "True");
    p.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: remote}}\nspec: {{nodeName: edge, terminationGracePeriodSeconds: 1, \
         containers: [{{name: main, image: '{hello}', ports: [{{containerPort: 8000}}]}}]}}\n"
    ));
    p.until_row("remote", "1/1 Running 0");
    let url = format!("http://{}:8000/", p.value("pod/remote", "{.status.podIP}"));
    assert!(fetch(&url).contains("hello"));
    let started = "{.status.startTime}";
    let before = p.value("pod/remote", started);
    let closed = closed_pod(p, &hello);

    // The cluster is away. The pod answers, also after the machine's agent was ended and came back by itself.
    signal("STOP", p.id());
    assert!(fetch(&url).contains("hello"));
    drop(agent);
    let agent = Agent::return_to(p, "edge", &NO_CONTAINERS);
    p.until("it answers again", |_| fetch(&url), |text| text.contains("hello"));
    assert!(is_closed(&closed), "the last known policies count");
    signal("CONT", p.id());
    p.until_value("node/edge", READY, "True");
    p.until_row("remote", "1/1 Running 0");
    assert_eq!(p.value("pod/remote", started), before, "it is the same pod");
    p.until(
        "its log is there",
        |p| p.kubectl_output(&["logs", "remote"], None).status.success(),
        |good| *good,
    );

    // A node that says nothing is not ready, and its bare pods are nobody else's.
    signal("STOP", agent.id());
    p.until_value("node/edge", READY, "Unknown");
    p.until_event("edge", "NodeNotReady");
    let taints = p.value("node/edge", "{.spec.taints[*].key}");
    assert!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
    let pods = p.kubectl(&["get", "pods", "-A", "-o", "name"]);
    assert_eq!(pods, "pod/closed\npod/remote\n");
    assert_eq!(p.value("pod/remote", "{.spec.nodeName}"), "edge");

    // It goes on as if nothing had been.
    signal("CONT", agent.id());
    p.until_value("node/edge", READY, "True");
    p.until_value("node/edge", "{.spec.taints}", "");
    p.until_row("remote", "1/1 Running 0");
    assert_eq!(p.value("pod/remote", started), before, "it is the same pod");
}

/// A pod on the machine whose policy lets nobody in, once the machine has that on record.
fn closed_pod(p: &Program, image: &str) -> String {
    p.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: closed, labels: {{app: closed}}}}\nspec: {{nodeName: edge, terminationGracePeriodSeconds: 1, \
         containers: [{{name: main, image: '{image}', ports: [{{containerPort: 8000}}]}}]}}\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: closed}}\n\
         spec: {{podSelector: {{matchLabels: {{app: closed}}}}, ingress: []}}\n"
    ));
    p.until_row("closed", "1/1 Running 0");
    let kept = p.scratch().join("edge/node/policies.json");
    let read = |_: &Program| std::fs::read_to_string(&kept).unwrap_or_default();
    p.until("the policies are kept", read, |text| text.contains("\"name\":\"closed\""));
    let url = format!("http://{}:8000/", p.value("pod/closed", "{.status.podIP}"));
    p.until("nobody gets in", |_| is_closed(&url), |closed| *closed);
    url
}

/// Whether nothing answers, and nothing refuses.
fn is_closed(url: &str) -> bool {
    const NO_ANSWER: i32 = 28;
    let asked = Command::new("curl").args(["-s", "-o", "/dev/null", "--max-time", "2", url]).status();
    asked.is_ok_and(|status| status.code() == Some(NO_ANSWER))
}

/// The server has no node, so that all that answers is the agent's.
#[test]
fn services_go_on_without_the_control_plane() {
    let program = Program::start_with(&["--no-node"]);
    let p = &program;
    let hello = p.push("hello");
    let _agent = Agent::join(p, "edge", &NO_CONTAINERS);
    p.until_value("node/edge", READY, "True");
    p.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec: {{replicas: 2, selector: {{matchLabels: {{app: web}}}}, \
         template: {{metadata: {{labels: {{app: web}}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{{name: main, image: '{hello}', \
         ports: [{{containerPort: 8000}}], env: [{{name: TARGET, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]}}]}}}}}}\n"
    ));
    p.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    p.kubectl(&["expose", "deployment/web", "--port=80", "--target-port=8000"]);
    let url = format!("http://{}/", p.value("service/web", "{.spec.clusterIP}"));
    let answers = |_: &Program| (0..16).map(|_| fetch(&url)).collect::<BTreeSet<_>>();
    let both =
        p.until("both pods", answers, |all| all.len() == 2 && all.iter().all(|a| a.contains("hello web-")));
    signal("STOP", p.id());
    let without = answers(p);
    signal("CONT", p.id());
    assert_eq!(without, both, "they go on while the control plane is away");
    p.kubectl(&["scale", "deployment/web", "--replicas=1"]);
    p.until("what is told afterwards counts", answers, |all| all.len() == 1);
}

#[test]
fn nodes_of_all_kinds_are_one_cluster() {
    let Some(node) = Node::start() else { return };
    let Some(other) = Containerd::start() else { return };
    let p = &node.program;
    let _second = Agent::join(p, "second", &["--container-runtime-endpoint", &other.endpoint()]);
    let _third = Agent::join(p, "third", &NO_CONTAINERS);
    for name in ["second", "third"] {
        p.until_value(&format!("node/{name}"), READY, "True");
    }
    p.until_value("node/second", "{.metadata.labels.wasmk\\.dev/runtime-container}", "true");
    every_node_pulls_by_itself(&node, &other);
    both_kinds_stand_behind_one_service(p);
    nodes_are_reached_through_the_api(p);
    access_modes_decide_who_shares(p);
}

fn nodes_of(p: &Program, selector: &str) -> BTreeSet<String> {
    let path = "jsonpath={range .items[*]}{.spec.nodeName}{\"\\n\"}{end}";
    p.kubectl(&["get", "pods", "-l", selector, "-o", path]).lines().map(String::from).collect()
}

fn every_node_pulls_by_itself(node: &Node, other: &Containerd) {
    let p = &node.program;
    let image = format!("{}/everywhere:1", p.address("registry"));
    node.containerd.push("localhost/entry:1", &image);
    p.apply(&format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: everywhere}}\nspec: {{selector: {{matchLabels: {{app: everywhere}}}}, template: \
         {{metadata: {{labels: {{app: everywhere}}}}, spec: {{nodeSelector: {{wasmk.dev/runtime-container: 'true'}}, terminationGracePeriodSeconds: 0, \
         containers: [{{name: main, image: '{image}', args: [sleep 600]}}]}}}}}}\n"
    ));
    p.until_value("daemonset/everywhere", "{.status.numberReady}", "2");
    assert_eq!(nodes_of(p, "app=everywhere"), BTreeSet::from(["node-a".into(), "second".into()]));
    for containerd in [&node.containerd, other] {
        assert!(containerd.images().contains(&image));
    }
    p.kubectl(&["delete", "daemonset", "everywhere"]);
}

fn both_kinds_stand_behind_one_service(p: &Program) {
    let hello = p.push("hello");
    let deployment = |name: &str, class: &str, container: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec: {{replicas: 4, selector: {{matchLabels: {{app: both, kind: {name}}}}}, \
             template: {{metadata: {{labels: {{app: both, kind: {name}}}}}, spec: {{runtimeClassName: {class}, terminationGracePeriodSeconds: 0, \
             containers: [{container}]}}}}}}\n---\n"
        )
    };
    let serve = "mkdir -p /www; echo from a container >/www/index.html; httpd -f -p 8000 -h /www";
    let guest = format!("{{name: main, image: '{hello}', ports: [{{containerPort: 8000}}]}}");
    p.apply(
        &(deployment("boxes", "runc", &container("main", serve, ""))
            + &deployment("guests", "wasmtime", &guest)
            + "apiVersion: v1\nkind: Service\nmetadata: {name: both}\nspec: {selector: {app: both}, ports: [{port: 8000}]}\n"),
    );
    for name in ["boxes", "guests"] {
        p.kubectl(&["rollout", "status", &format!("deployment/{name}"), "--timeout=60s"]);
    }
    let with_runtime = BTreeSet::from(["node-a".to_string(), "second".to_string()]);
    assert!(nodes_of(p, "kind=boxes").is_subset(&with_runtime), "only where a container runtime is");
    assert!(nodes_of(p, "kind=guests").contains("third"));
    let url = format!("http://{}:8000/", p.value("service/both", "{.spec.clusterIP}"));
    for words in ["from a container", "hello"] {
        p.until(&format!("{words} behind the service"), |_| fetch(&url), |text| text.contains(words));
    }
}

/// Nothing dials these nodes; they dialled themselves.
fn nodes_are_reached_through_the_api(p: &Program) {
    let tools = p.scratch().join("tools");
    std::fs::create_dir_all(&tools).expect("a directory");
    std::fs::copy(guest("command"), tools.join("command.wasm")).expect("a guest to copy");
    p.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: far}}\nspec: {{nodeName: third, terminationGracePeriodSeconds: 1, \
         volumes: [{{name: v, hostPath: {{path: {}}}}}], containers: [{{name: main, image: '{}', ports: [{{containerPort: 8000}}], \
         volumeMounts: [{{name: v, mountPath: /tools}}]}}]}}\n",
        tools.display(),
        p.push("hello")
    ));
    p.apply(&pod("far-box", "nodeName: second, ", &[container("main", "echo from far; sleep 600", "")]));
    p.until_row("far", "1/1 Running");
    p.until_row("far-box", "1/1 Running");
    p.until_log("far-box", "from far\n");
    assert_eq!(p.within("far-box", "hostname"), "far-box\n");
    let printed = p.kubectl(&["exec", "far", "--", "/tools/command.wasm", "print", "here"]);
    assert!(printed.contains(r#"args ["print", "here"]"#), "{printed}");
    let line = "kubectl port-forward pod/far :8000 >forward & pid=$!; \
                for i in $(seq 100); do port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) .*/\\1/p' forward); [ -n \"$port\" ] && break; sleep 0.1; done; \
                curl -sS --max-time 10 http://127.0.0.1:$port/; kill $pid";
    let out = Command::new("sh")
        .args(["-c", line])
        .env("KUBECONFIG", p.kubeconfig())
        .current_dir(p.scratch())
        .output()
        .expect("a shell runs");
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("hello"), "{said}{}", String::from_utf8_lossy(&out.stderr));
    p.kubectl(&["delete", "pod", "far", "far-box", "--now"]);
}

fn access_modes_decide_who_shares(p: &Program) {
    let claim = |name: &str, mode: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [{mode}]{more}, \
             resources: {{requests: {{storage: 1Mi}}}}}}\n---\n"
        )
    };
    let dir = p.scratch().join("common");
    std::fs::create_dir_all(&dir).expect("a directory");
    let of_all = format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: common}}\nspec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteMany, ReadOnlyMany], \
         storageClassName: common, hostPath: {{path: {}}}}}\n---\n",
        dir.display()
    );
    p.apply(
        &(of_all
            + &claim("single", "ReadWriteOnce", "")
            + &claim("common", "ReadWriteMany", ", storageClassName: common")),
    );
    let on = |name: &str, node: &str, claim: &str, line: &str| {
        let spec = format!(
            "nodeSelector: {{kubernetes.io/hostname: {node}}}, volumes: [{{name: v, persistentVolumeClaim: {{claimName: {claim}}}}}], "
        );
        pod(name, &spec, &[container("main", line, ", volumeMounts: [{name: v, mountPath: /v}]")])
    };
    let keep = "echo kept >>/v/file; sleep 600";
    p.apply(
        &(on("owner", "node-a", "single", keep)
            + &on("one", "node-a", "common", keep)
            + &on("two", "second", "common", keep)),
    );
    for name in ["owner", "one", "two"] {
        p.until_row(name, "1/1 Running");
    }
    p.until("both have written", |p| p.within("two", "cat /v/file"), |text| text == "kept\nkept\n");
    p.apply(&on("stranger", "second", "single", keep));
    p.until_event("stranger", "FailedScheduling");
    assert_eq!(p.value("pod/stranger", "{.status.phase}"), "Pending", "the volume is another node's");
    p.kubectl(&["delete", "pod", "owner", "one", "two", "stranger", "--now"]);
}

#[test]
fn a_node_short_of_memory_evicts_by_priority_and_is_tainted() {
    // So much is never left: the node is short of it from the beginning.
    let program = Program::start_with(&["--eviction-hard", "memory.available<100%"]);
    let p = &program;
    let image = p.push("command");
    p.until_value("node/node-a", "{.status.conditions[?(@.type=='MemoryPressure')].status}", "True");
    p.until(
        "the taint",
        |p| p.value("node/node-a", "{.spec.taints[*].key}"),
        |keys| keys.contains("node.kubernetes.io/memory-pressure"),
    );
    p.apply("apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: vital}\nvalue: 1000\n");
    let pod = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: node-a, {more}terminationGracePeriodSeconds: 1, \
             containers: [{{name: main, image: '{image}', args: [sleep, '600000']}}]}}\n---\n"
        )
    };
    p.apply(&(pod("plain", "") + &pod("vital", "priorityClassName: vital, ")));
    let reason = |name: &str| p.value(&format!("pod/{name}"), "{.status.reason}");
    // In this order: what is seen of the second is later than what is seen of the first.
    let reasons = |_: &Program| (reason("vital"), reason("plain"));
    let first = p.until("one is evicted", reasons, |(vital, plain)| vital == "Evicted" || plain == "Evicted");
    assert_eq!(first.1, "Evicted", "the more important one went first");
    assert_eq!(p.value("pod/plain", "{.status.phase}"), "Failed");
    assert!(p.value("pod/plain", "{.status.message}").contains("low on resource: memory"));
    p.until_event("plain", "Evicted");
    // The more important one goes only when nothing else is left to go.
    p.until("then the other", |_| reason("vital"), |reason| reason == "Evicted");
}
