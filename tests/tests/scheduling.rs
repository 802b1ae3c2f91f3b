//! Which node a pod gets, on nodes that are only there by name.

use std::{
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use wasmk_tests::{
    place::Place,
    program::{Program, binary},
};

/// Three nodes of two processors each; nobody watches over their heartbeats, and pods never run.
static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start_with(&["--no-node", "--controllers=*,-node-lifecycle-controller"]);
    for name in ["n1", "n2", "n3"] {
        node(&program, name);
    }
    program
});

fn node(program: &Program, name: &str) {
    program.apply(&format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}, zone: z-{name}}}}}\n"
    ));
    let status = r#"{"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Here"}],
        "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "20"}, "capacity": {"cpu": "2", "memory": "4Gi", "pods": "20"}}}"#;
    program.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", status]);
    // Taken off by whoever sees the node ready, which nobody does here.
    program.kubectl_output(&["taint", "node", name, "node.kubernetes.io/not-ready-"], None);
}

/// A pod of a namespace; `spec` is more of its specification, in YAML's flow style.
fn pod(name: &str, spec: &str) -> String {
    let comma = if spec.is_empty() { "" } else { ", " };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}, set: one}}}}\n\
         spec: {{terminationGracePeriodSeconds: 0, containers: [{{name: c, image: none}}]{comma}{spec}}}\n---\n"
    )
}

/// The same with a request for processors.
fn asking(name: &str, cpu: &str, spec: &str) -> String {
    pod(name, spec).replace("image: none", &format!("image: none, resources: {{requests: {{cpu: {cpu}}}}}"))
}

fn on(place: &Place, pod: &str) -> String {
    place
        .until_that(&format!("kubectl get pod {pod} -o jsonpath={{.spec.nodeName}}"), |node| !node.is_empty())
}

/// The scheduler's word on a pod that it found no node for.
fn refusal(place: &Place, pod: &str) -> String {
    let script = format!(
        "kubectl get pod {pod} -o jsonpath='{{.status.conditions[?(@.type==\"PodScheduled\")].message}}'"
    );
    place.until_that(&script, |text| !text.is_empty())
}

#[test]
fn requests_decide_and_room_is_waited_for() {
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&[
        "--no-node",
        "--controllers=*,-node-lifecycle-controller",
    ])));
    node(program, "only");
    let place = Place::new(program, "room");
    place.apply(&(1..=4).map(|n| asking(&format!("p{n}"), "500m", "")).collect::<String>());
    for n in 1..=4 {
        assert_eq!(on(&place, &format!("p{n}")), "only");
    }
    place.apply(&asking("p5", "500m", ""));
    let said = refusal(&place, "p5");
    assert!(said.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{said}");
    let events = place
        .sh("kubectl get events --field-selector involvedObject.name=p5 -o jsonpath='{.items[*].reason}'");
    assert!(events.contains("FailedScheduling"), "{events}");
    assert!(place.sh("kubectl describe node only").contains("cpu                2 (100%)"));
    let scheduled = place
        .sh("kubectl get events --field-selector involvedObject.name=p1 -o jsonpath='{.items[*].message}'");
    assert!(scheduled.contains("Successfully assigned room/p1 to only"), "{scheduled}");
    // A new node takes the one that waited; those that are bound stay where they are.
    node(program, "second");
    assert_eq!(on(&place, "p5"), "second");
    assert_eq!(place.value("pod/p1", "{.spec.nodeName}"), "only");

    // What matters more takes the room of what matters less.
    place.sh("kubectl create priorityclass high --value=1000");
    place.apply(&asking("important", "1500m", "priorityClassName: high"));
    assert_eq!(on(&place, "important"), "second");
    place.apply(&asking("pressing", "1900m", "priorityClassName: high"));
    assert_eq!(on(&place, "pressing"), "only");
    place.until("kubectl get pods p1 p2 p3 p4 -o name --ignore-not-found", "");
}

#[test]
fn labels_names_and_affinity_choose() {
    let place = Place::new(&CLUSTER, "choose");
    place.apply(&pod("by-label", "nodeSelector: {kubernetes.io/hostname: n2}"));
    assert_eq!(on(&place, "by-label"), "n2");
    place.apply(&pod("by-name", "nodeName: n3"));
    assert_eq!(place.value("pod/by-name", "{.spec.nodeName}"), "n3");
    place.apply(&pod("nowhere", "nodeSelector: {ssd: 'true'}"));
    let said = refusal(&place, "nowhere");
    assert!(said.contains("didn't match Pod's node affinity/selector"), "{said}");
    place.sh("kubectl label node n1 ssd=true");
    assert_eq!(on(&place, "nowhere"), "n1");

    let node = |how: &str, term: &str| format!("affinity: {{nodeAffinity: {{{how}: {term}}}}}");
    let expression = |op: &str, value: &str| {
        format!("{{matchExpressions: [{{key: zone, operator: {op}, values: [{value}]}}]}}")
    };
    let required = format!("{{nodeSelectorTerms: [{}]}}", expression("NotIn", "z-n1, z-n2"));
    place.apply(&pod("required", &node("requiredDuringSchedulingIgnoredDuringExecution", &required)));
    assert_eq!(on(&place, "required"), "n3");
    let preferred = format!("[{{weight: 100, preference: {}}}]", expression("In", "z-n2"));
    place.apply(&pod("preferred", &node("preferredDuringSchedulingIgnoredDuringExecution", &preferred)));
    assert_eq!(on(&place, "preferred"), "n2");
    let near = "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: required}}}]}}";
    place.apply(&pod("near", near));
    assert_eq!(on(&place, "near"), "n3");
    // What names its node is nobody's to place.
    let scheduled = |name: &str| {
        let events = format!(
            "kubectl get events --field-selector involvedObject.name={name},reason=Scheduled -o name"
        );
        place.sh(&format!("{events} | wc -l"))
    };
    place.until_that("kubectl get events --field-selector involvedObject.name=near -o name", |t| {
        !t.is_empty()
    });
    assert_eq!((scheduled("near"), scheduled("by-name")), ("1".into(), "0".into()));
}

#[test]
fn those_that_keep_apart_do_and_the_surplus_waits() {
    let place = Place::new(&CLUSTER, "apart");
    let apart = "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                 [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {set: one}}}]}}";
    place.apply(&(0..3).map(|n| pod(&format!("consul-{n}"), apart)).collect::<String>());
    let mut nodes: Vec<_> = (0..3).map(|n| on(&place, &format!("consul-{n}"))).collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
    place.apply(&pod("consul-3", apart));
    assert!(refusal(&place, "consul-3").contains("didn't match pod anti-affinity rules"));
}

#[test]
fn replicas_are_spread() {
    let place = Place::new(&CLUSTER, "spread");
    place.sh("kubectl create deployment web --image none --replicas 6");
    place.until(
        "kubectl get pods -o json | jq -c '[.items[].spec.nodeName] | group_by(.) | map(length)'",
        "[2,2,2]",
    );
}

#[test]
fn another_scheduler_is_left_its_pods() {
    let place = Place::new(&CLUSTER, "other");
    place.apply(&(pod("theirs", "schedulerName: stork") + &pod("ours", "")));
    on(&place, "ours");
    assert_eq!(place.value("pod/theirs", "{.spec.nodeName}"), "");
    let binding = r#"{"apiVersion":"v1","kind":"Binding","metadata":{"name":"theirs"},"target":{"apiVersion":"v1","kind":"Node","name":"n1"}}"#;
    place.write("binding.json", binding);
    place.sh("kubectl create --raw /api/v1/namespaces/other/pods/theirs/binding -f binding.json");
    assert_eq!(on(&place, "theirs"), "n1");
}

#[test]
fn a_host_port_is_given_once_per_node() {
    let place = Place::new(&CLUSTER, "host-ports");
    let port = |name: &str| {
        pod(name, "nodeSelector: {kubernetes.io/hostname: n1}")
            .replace("image: none", "image: none, ports: [{containerPort: 80, hostPort: 8181}]")
    };
    place.apply(&port("first"));
    assert_eq!(on(&place, "first"), "n1");
    place.apply(&port("second"));
    assert!(refusal(&place, "second").contains("didn't have free ports for the requested pod ports"));
}

#[test]
fn taints_keep_pods_away() {
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&[
        "--no-node",
        "--controllers=*,-node-lifecycle-controller",
    ])));
    for name in ["master", "worker"] {
        node(program, name);
    }
    let place = Place::new(program, "taints");
    place.sh("kubectl taint nodes master node-role.kubernetes.io/master=:NoSchedule");
    let spec = place.sh("kubectl get node master -o json | jq -c .spec.taints");
    assert!(spec.contains(r#"{"effect":"NoSchedule","key":"node-role.kubernetes.io/master"}"#), "{spec}");
    assert!(
        place
            .sh("kubectl describe node master")
            .contains("Taints:             node-role.kubernetes.io/master:NoSchedule")
    );

    place.apply(&(0..3).map(|n| pod(&format!("plain-{n}"), "")).collect::<String>());
    for n in 0..3 {
        assert_eq!(on(&place, &format!("plain-{n}")), "worker");
    }
    let here = "nodeSelector: {kubernetes.io/hostname: master}";
    place.apply(&pod("refused", here));
    let said = refusal(&place, "refused");
    assert!(said.contains("1 node(s) had untolerated taint"), "{said}");
    let matching = "tolerations: [{key: node-role.kubernetes.io/master, effect: NoSchedule}]";
    place.apply(&pod("tolerating", &format!("{here}, {matching}")));
    assert_eq!(on(&place, "tolerating"), "master");
    place.apply(&pod("careless", &format!("{here}, tolerations: [{{operator: Exists}}]")));
    assert_eq!(on(&place, "careless"), "master");
    let there = "nodeSelector: {kubernetes.io/hostname: worker}";
    place.apply(&pod("stoic", &format!("{there}, tolerations: [{{operator: Exists}}]")));
    assert_eq!(on(&place, "stoic"), "worker");

    // A daemon set's pods go to each node but the tainted one.
    let set = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: every}\nspec:\n  selector: {matchLabels: {ds: every}}\n  \
               template:\n    metadata: {labels: {ds: every}}\n    spec: {containers: [{name: c, image: none}]}\n";
    place.apply(set);
    place.until("kubectl get pods -l ds=every -o jsonpath='{.items[*].spec.nodeName}'", "worker");
    place.sh("kubectl patch ds every -p 'spec: {template: {spec: {tolerations: [{operator: Exists}]}}}'");
    place.until_value("ds/every", "{.status.desiredNumberScheduled}", "2");
    // A node that joins gets its pod; one that leaves takes it along.
    node(program, "third");
    place.until_value("ds/every", "{.status.desiredNumberScheduled}", "3");
    place.sh("kubectl delete node third");
    place.until_value("ds/every", "{.status.desiredNumberScheduled}", "2");

    // Those that run stay when a node is only closed, and go when they have to.
    place.sh("kubectl taint nodes worker going=yes:NoSchedule");
    place.apply(&pod("late", there));
    let said = refusal(&place, "late");
    assert!(said.contains("2 node(s) had untolerated taint"), "{said}");
    assert_eq!(place.value("pod/plain-0", "{.spec.nodeName}{.metadata.deletionTimestamp}"), "worker");
    place.sh("kubectl taint nodes worker going=yes:NoExecute");
    place.until("kubectl get pods plain-0 plain-1 plain-2 -o name --ignore-not-found", "");
    assert_eq!(place.value("pod/stoic", "{.spec.nodeName}{.metadata.deletionTimestamp}"), "worker");
    assert_eq!(place.value("pod/careless", "{.spec.nodeName}"), "master");
}

#[test]
fn a_soft_taint_is_avoided_while_there_is_a_choice() {
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&[
        "--no-node",
        "--controllers=*,-node-lifecycle-controller",
    ])));
    for name in ["soft", "free"] {
        node(program, name);
    }
    let place = Place::new(program, "soft");
    place.sh("kubectl taint nodes soft busy=yes:PreferNoSchedule");
    place.apply(&asking("first", "1500m", ""));
    assert_eq!(on(&place, "first"), "free");
    place.apply(&asking("second", "1500m", ""));
    assert_eq!(on(&place, "second"), "soft");

    // A closed node takes nothing until it is opened.
    place.sh("kubectl cordon free && kubectl cordon soft");
    place.apply(&pod("third", ""));
    assert!(refusal(&place, "third").contains("node(s) were unschedulable"));
    assert!(place.sh("kubectl get node free").contains("Ready,SchedulingDisabled"));
    place.sh("kubectl uncordon soft");
    assert_eq!(on(&place, "third"), "soft");
}

#[test]
fn qualities_of_service_are_told_apart() {
    let place = Place::new(&CLUSTER, "qualities");
    let with = |name: &str, resources: &str| {
        pod(name, "").replace("image: none", &format!("image: none, resources: {resources}"))
    };
    place.apply(
        &(with("guaranteed", "{limits: {cpu: 100m, memory: 1Mi}}")
            + &with("burstable", "{requests: {cpu: 100m, memory: 128Mi}, limits: {memory: 200Mi}}")
            + &pod("best-effort", "")),
    );
    for (name, class) in
        [("guaranteed", "Guaranteed"), ("burstable", "Burstable"), ("best-effort", "BestEffort")]
    {
        assert_eq!(place.value(&format!("pod/{name}"), "{.status.qosClass}"), class);
        let shown = place.sh(&format!("kubectl describe pod {name}"));
        assert!(
            shown.contains(&format!("QoS Class:                   {class}"))
                && shown.contains("Priority:         0"),
            "{shown}"
        );
    }
    assert_eq!(place.value("pod/burstable", "{.spec.containers[0].resources.requests.memory}"), "128Mi");
    let node = on(&place, "burstable");
    let row = place.sh(&format!("kubectl describe node {node} | grep burstable | xargs"));
    assert!(row.starts_with("qualities burstable 100m (5%) 0 (0%) 128Mi (3%) 200Mi (4%)"), "{row}");
}

#[test]
fn nodes_are_closed_emptied_and_tainted_by_wasmk() {
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&[
        "--no-node",
        "--controllers=*,-node-lifecycle-controller",
    ])));
    for name in ["old", "new"] {
        node(program, name);
    }
    let place = Place::new(program, "drained");
    assert_eq!(place.sh("wasmk cordon new"), "node/new cordoned");
    place.apply("apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: web}\nspec: {replicas: 2, selector: {matchLabels: {app: web}}, \
                 template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: none}]}}}\n");
    place.until("kubectl get pods -o jsonpath='{.items[*].spec.nodeName}'", "old old");
    assert_eq!(place.sh("wasmk uncordon new"), "node/new uncordoned");
    place.apply(&pod("bare", "nodeName: old"));
    let said = place.fails("wasmk drain old");
    assert!(
        said.contains(
            "cannot delete Pods that declare no controller (use --force to override): drained/bare"
        ),
        "{said}"
    );
    let said = place.sh("wasmk drain old --force");
    assert!(said.contains("evicting pod drained/bare") && said.ends_with("node/old drained"), "{said}");
    place.until("kubectl get pods -o jsonpath='{.items[*].spec.nodeName}'", "new new");
    assert_eq!(place.sh("wasmk taint nodes new a=b:NoSchedule"), "node/new tainted");
    assert_eq!(
        place.value("node/new", "{.spec.taints}"),
        r#"[{"effect":"NoSchedule","key":"a","value":"b"}]"#
    );
    assert_eq!(place.sh("wasmk taint nodes new a-"), "node/new untainted");
}

#[test]
fn a_daemon_set_may_name_its_node() {
    let place = Place::new(&CLUSTER, "named-node");
    place.apply("apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: one}\nspec:\n  selector: {matchLabels: {ds: one}}\n  \
                 template:\n    metadata: {labels: {ds: one}}\n    spec: {nodeName: n2, containers: [{name: c, image: none}]}\n");
    place.until_value("ds/one", "{.status.desiredNumberScheduled}", "1");
    place.until("kubectl get pods -l ds=one -o jsonpath='{.items[*].spec.nodeName}'", "n2");
}

/// A `wasmk agent`, ended when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn agent(program: &Program, name: &str, flags: &[&str]) -> Agent {
    let token = program.wasmk(&["token", "create", "-q"]);
    let agent = Command::new(binary())
        .args(["agent", "--server", &format!("https://{}", program.address("api")), "--token", token.trim()])
        .args(["--node-name", name, "--data-dir"])
        .arg(program.scratch().join(name))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent starts");
    program.until_value(&format!("node/{name}"), "{.status.conditions[?(@.type=='Ready')].status}", "True");
    Agent(agent)
}

#[test]
fn the_control_planes_node_is_left_to_it() {
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&["--control-plane"])));
    program.push("hello");
    let place = Place::new(program, "masters");
    let taints = place.sh("kubectl get node node-a -o json | jq -c .spec.taints");
    assert!(
        taints.contains(r#"{"effect":"NoSchedule","key":"node-role.kubernetes.io/control-plane"}"#),
        "{taints}"
    );
    place.until_that("kubectl get node node-a --no-headers", |row| row.contains("control-plane"));
    // While there is no other node, ordinary pods wait.
    place.sh("kubectl create deployment web --image $REGISTRY/default/hello:1 --replicas 3");
    let pod = place.until_that("kubectl get pods -l app=web -o name | head -1", |name| !name.is_empty());
    let said = refusal(&place, pod.trim_start_matches("pod/"));
    assert!(said.contains("1 node(s) had untolerated taint(s)"), "{said}");

    let _agent = agent(program, "worker", &["--register-with-taints", "dedicated=web:PreferNoSchedule"]);
    let taints = place.sh("kubectl get node worker -o json | jq -c .spec.taints");
    assert!(taints.contains(r#"{"effect":"PreferNoSchedule","key":"dedicated","value":"web"}"#), "{taints}");
    let set = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: every}\nspec:\n  selector: {matchLabels: {ds: every}}\n  \
               template:\n    metadata: {labels: {ds: every}}\n    spec: {containers: [{name: c, image: $REGISTRY/default/hello:1}]}\n";
    place.apply(set);
    place.sh(
        "kubectl rollout status deploy/web --timeout=120s && kubectl rollout status ds/every --timeout=120s",
    );
    place.until(
        "kubectl get pods -o json | jq -r '[.items[].spec.nodeName] | unique | join(\" \")'",
        "worker",
    );
    place.until_value("ds/every", "{.status.desiredNumberScheduled}", "1");
}

#[test]
fn pods_choose_among_profiles() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("scheduler.yaml");
    let config = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nprofiles:\n- {}\n\
                  - schedulerName: packing\n  pluginConfig:\n  - name: NodeResourcesFit\n    args: {scoringStrategy: {type: MostAllocated}}\n  \
                  plugins: {score: {disabled: [{name: NodeResourcesBalancedAllocation}]}}\n";
    std::fs::write(&file, config).expect("a file");
    let file = file.display().to_string();
    let flags = ["--no-node", "--controllers=*,-node-lifecycle-controller", "--scheduler-config", &file];
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&flags)));
    for name in ["n1", "n2"] {
        node(program, name);
    }
    let place = Place::new(program, "profiles");
    place.apply(&asking("first", "500m", "nodeSelector: {kubernetes.io/hostname: n1}"));
    assert_eq!(on(&place, "first"), "n1");
    place.apply(&asking("spread", "500m", ""));
    assert_eq!(on(&place, "spread"), "n2");
    place.sh("kubectl delete pod spread --now");
    place.apply(&asking("packed", "500m", "schedulerName: packing"));
    assert_eq!(on(&place, "packed"), "n1");
    place.apply(&asking("theirs", "500m", "schedulerName: nobody"));
    place.apply(&asking("last", "500m", "schedulerName: packing"));
    assert_eq!(on(&place, "last"), "n1");
    assert_eq!(place.value("pod/theirs", "{.spec.nodeName}"), "");
}
