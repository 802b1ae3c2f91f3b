//! What a node tells of itself: status, labels, log files, figures.

use wasmk_tests::{
    node::{Node, container, pod},
    program::Program,
};

use crate::of;

#[test]
fn the_node_tells_of_itself() {
    let links = tempfile::tempdir().expect("a directory");
    let links = links.path().join("containers").display().to_string();
    let Some(node) = Node::start_with(&["--container-log-dir", &links]) else { return };
    let p = &node.program;
    the_node_has_its_status(p);
    the_nodes_labels_choose(p);
    logs_are_files_on_the_node(p, &links);
    full_logs_are_moved_away(p);
    let ip = "{.status.podIP}";
    p.until_value("pod/logged", "{.status.phase}", "Running");
    assert!(p.value("pod/logged", ip).starts_with("10."));
    usage_is_told(p);
}

fn the_node_has_its_status(p: &Program) {
    let node = |path: &str| p.value("node/node-a", path);
    for resource in ["cpu", "memory", "pods", "ephemeral-storage"] {
        for list in ["capacity", "allocatable"] {
            assert_ne!(node(&format!("{{.status.{list}.{resource}}}")), "", "{list} {resource}");
        }
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    assert_eq!(node("{.status.nodeInfo.kernelVersion}"), kernel.trim());
    assert_ne!(node("{.status.nodeInfo.osImage}"), "");
    assert!(node("{.status.nodeInfo.containerRuntimeVersion}").starts_with("containerd://"));
    assert!(node("{.status.nodeInfo.kubeletVersion}").starts_with("v1.36."));
    let conditions = node("{range .status.conditions[*]}{.type}={.status} {end}");
    for expect in ["MemoryPressure=False", "DiskPressure=False", "PIDPressure=False", "Ready=True"] {
        assert!(conditions.contains(expect), "{conditions}");
    }
    let renewed = |p: &Program| {
        let path = "jsonpath={.spec.holderIdentity} {.spec.renewTime}";
        p.kubectl(&["get", "lease", "node-a", "-n", "kube-node-lease", "-o", path])
    };
    let before = renewed(p);
    assert!(before.starts_with("node-a "), "{before}");
    p.until("the lease is renewed", renewed, |now| *now != before);
}

fn the_nodes_labels_choose(p: &Program) {
    let labels = p.value("node/node-a", "{.metadata.labels}");
    for expect in
        [r#""kubernetes.io/hostname":"node-a""#, r#""kubernetes.io/os":"linux""#, r#""kubernetes.io/arch":""#]
    {
        assert!(labels.contains(expect), "{labels}");
    }
    p.apply(&pod("wants-ssd", "nodeSelector: {ssd: 'true'}, ", &[container("main", "sleep 600", "")]));
    p.apply(&pod(
        "wants-windows",
        "nodeSelector: {kubernetes.io/os: windows}, ",
        &[container("main", "sleep 600", "")],
    ));
    p.until_event("wants-ssd", "didn't match Pod's node affinity/selector");
    p.kubectl(&["label", "nodes", "node-a", "ssd=true"]);
    assert_eq!(p.kubectl(&["get", "nodes", "-l", "ssd=true", "-o", "name"]), "node/node-a\n");
    p.until_row("wants-ssd", "1/1 Running");
    assert_eq!(p.value("pod/wants-windows", "{.status.phase}"), "Pending");
    p.kubectl(&["delete", "pod", "wants-ssd", "wants-windows", "--now"]);
}

fn logs_are_files_on_the_node(p: &Program, links: &str) {
    p.apply(&pod("logged", "", &[container("main", "echo to out; echo to err >&2; sleep 600", "")]));
    p.until("both lines", |p| p.kubectl_output(&["logs", "logged"], None).stdout.len(), |n| *n == 14);
    let id = p.value("pod/logged", &of("main", ".containerID")).replace("containerd://", "");
    let file = format!("{links}/logged_default_main-{id}.log");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
    for (stream, words) in [("stdout", "to out"), ("stderr", "to err")] {
        let line = text.lines().find(|l| l.ends_with(words)).unwrap_or_else(|| panic!("{words} in {text}"));
        let (time, rest) = line.split_once(' ').expect("a time and more");
        assert_eq!(rest, format!("{stream} F {words}"));
        assert!(time.len() > 20 && time.contains('T'), "{time}");
    }
    // An agent mounts the directory, and the one with the files that it links to.
    let logs = format!("{}/node/logs", p.data_dir());
    let volumes = format!(
        "volumes: [{{name: links, hostPath: {{path: {links}}}}}, {{name: logs, hostPath: {{path: {logs}}}}}], "
    );
    let mounts = format!(
        ", volumeMounts: [{{name: links, mountPath: /var/log/containers, readOnly: true}}, {{name: logs, mountPath: {logs}, readOnly: true}}]"
    );
    p.apply(&pod("collector", &volumes, &[container("main", "sleep 600", &mounts)]));
    p.until_row("collector", "1/1 Running");
    assert_eq!(p.within("collector", "cat /var/log/containers/logged_default_main-*.log"), text);
    p.kubectl(&["delete", "pod", "collector", "--now"]);
}

/// What the runtime writes is moved away when it is full, and the runtime goes on in a new file.
fn full_logs_are_moved_away(p: &Program) {
    let line = "yes $(seq -s x 300) | head -n 10000; echo the end; sleep 600";
    p.apply(&pod("talkative", "", &[container("main", line, "")]));
    p.until_row("talkative", "1/1 Running");
    let uid = p.value("pod/talkative", "{.metadata.uid}");
    let dir = format!("{}/node/logs/default_talkative_{uid}/main", p.data_dir());
    let size = |name: &str| std::fs::metadata(format!("{dir}/{name}")).map_or(0, |m| m.len());
    p.until("a full file is moved away", |_| size("0.log.1"), |n| *n >= 10 << 20);
    p.within("talkative", "echo still here >/proc/1/fd/1");
    let last = |p: &Program| p.kubectl(&["logs", "talkative", "--tail=1"]);
    p.until("the new file is written", last, |text| text == "still here\n");
    assert!(size("0.log") < 1 << 20, "{}", size("0.log"));
    p.kubectl(&["delete", "pod", "talkative", "--now"]);
    assert!(!std::path::Path::new(&dir).exists(), "logs go with their pod");
}

fn usage_is_told(p: &Program) {
    let hello = p.push("hello");
    p.apply(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: guest}}\nspec: {{containers: [{{name: main, image: '{hello}', ports: [{{containerPort: 8000}}]}}]}}\n"));
    p.until_row("guest", "1/1 Running");
    let node = |path: &str| p.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-a/proxy/{path}")]);
    for pod in ["guest", "logged"] {
        let labels = format!("container=\"main\",namespace=\"default\",pod=\"{pod}\"");
        let there = |text: &String| text.contains(&labels);
        let resource = p.until("resource metrics", |_| node("metrics/resource"), there);
        assert!(
            resource.contains("container_memory_working_set_bytes{")
                && resource.contains("container_cpu_usage_seconds_total{")
        );
        let metrics = node("metrics");
        assert!(metrics.contains("kubelet_pod_start_duration_seconds_bucket"), "{metrics}");
        p.until(
            "cadvisor's metrics",
            |_| node("metrics/cadvisor"),
            |text| text.contains(&format!("pod=\"{pod}\"")),
        );
        p.until(
            "kubectl top",
            |p| p.kubectl_output(&["top", "pod", pod, "--no-headers"], None).stdout,
            |out| String::from_utf8_lossy(out).split_whitespace().count() == 3,
        );
    }
    assert!(
        p.kubectl(&["get", "pods", "-o", "wide", "--no-headers"]).lines().all(|row| row.contains("node-a"))
    );
}
