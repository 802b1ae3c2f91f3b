//! Images of containers: where they are pulled from, when, by which names, what of them is applied, which
//! OCI runtime starts them, and when they go again. Skipped, with a word, where containers cannot be run.

use std::process::Command;

use wasmk_tests::{
    node::{Node, container, fetch, pod},
    program::Program,
    required::skip,
};

/// A pod that prints one line of an image.
fn run(name: &str, image: &str, policy: &str) -> String {
    let more = if policy.is_empty() { String::new() } else { format!(", imagePullPolicy: {policy}") };
    let line = container("main", "cat /changed 2>/dev/null || echo box", &more);
    pod(name, "restartPolicy: Never, ", &[line]).replace("localhost/box:1", image)
}

const REASON: &str = "{.status.containerStatuses[0].state.waiting.reason}";

fn ended(p: &Program, name: &str) -> String {
    p.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
    p.kubectl(&["logs", name])
}

#[test]
fn images_come_from_registries_and_go_when_unused() {
    // Everything unused goes as soon as it is seen, except where the story says otherwise.
    let gc = ["--image-gc-high-threshold", "0", "--minimum-image-ttl", "3600"];
    let Some(node) = Node::start_with(&gc) else { return };
    a_registry_lists_what_was_pushed(&node);
    both_formats_are_pulled_and_applied(&node);
    names_are_tags_and_digests(&node);
    names_tell_the_registry(&node);
    policies_decide_when_to_pull(&node);
    another_oci_runtime_can_be_chosen(&node);
    images_are_volumes(&node);
    a_registry_is_a_workload(&node);
    unused_images_go(node);
}

/// The cluster's registry, as image names have it.
fn registry(p: &Program) -> String {
    p.address("registry").to_string()
}

fn a_registry_lists_what_was_pushed(node: &Node) {
    let registry = registry(&node.program);
    let catalog = || fetch(&format!("http://{registry}/v2/_catalog")).replace([' ', '\n'], "");
    assert_eq!(catalog(), r#"{"repositories":[]}"#);
    node.containerd.push("localhost/box:1", &format!("{registry}/busybox:1"));
    assert_eq!(catalog(), r#"{"repositories":["busybox"]}"#);
    let tags = fetch(&format!("http://{registry}/v2/busybox/tags/list")).replace([' ', '\n'], "");
    assert!(tags.contains(r#""tags":["1"]"#), "{tags}");
}

/// Plain HTTP is spoken to a registry on this machine.
fn both_formats_are_pulled_and_applied(node: &Node) {
    let (p, registry) = (&node.program, registry(&node.program));
    for format in ["entry", "docker"] {
        let image = format!("{registry}/made/{format}:1");
        node.containerd.push(&format!("localhost/{format}:1"), &image);
        node.containerd.remove(&format!("localhost/{format}:1"));
        let name = format!("as-{format}");
        p.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: [{{name: main, image: '{image}'}}]}}\n"
        ));
        assert_eq!(ended(p, &name), "made so\n/work\n1000\nupper\nno /removed\n", "{format}");
        let id = p.value(&format!("pod/{name}"), "{.status.containerStatuses[0].imageID}");
        assert!(id.starts_with(&format!("{registry}/made/{format}@sha256:")), "{id}");
        p.until_event(&name, "Successfully pulled image");
    }
}

fn names_are_tags_and_digests(node: &Node) {
    let (p, registry) = (&node.program, registry(&node.program));
    let image = format!("{registry}/made/entry");
    node.containerd.push(&format!("{image}:1"), &format!("{image}:sha-84d581d"));
    let id = p.value("pod/as-entry", "{.status.containerStatuses[0].imageID}");
    let digest = id.split_once('@').expect("a digest").1;
    p.apply(
        &(run("by-tag", &format!("{image}:sha-84d581d"), "")
            + &run("by-digest", &format!("{image}@{digest}"), "")),
    );
    for name in ["by-tag", "by-digest"] {
        assert_eq!(ended(p, name), "upper\n");
        assert_eq!(p.value(&format!("pod/{name}"), "{.status.containerStatuses[0].imageID}"), id);
    }
    let wrong = format!("{image}@sha256:{}", "0".repeat(64));
    p.apply(&(run("by-wrong-digest", &wrong, "") + &run("by-no-tag", &format!("{image}:none"), "")));
    for name in ["by-wrong-digest", "by-no-tag"] {
        p.until_event(name, "Failed to pull image");
    }
    p.kubectl(&["delete", "pod", "by-tag", "by-digest", "by-wrong-digest", "by-no-tag", "--now"]);
}

/// Each registry is another one here, so that it shows which one was asked.
fn names_tell_the_registry(node: &Node) {
    let (p, registry) = (&node.program, registry(&node.program));
    for (name, image, host, repository) in [
        ("of-hub", "redis:7", "docker.io", "library/redis:7"),
        ("of-user", "someone/tool:1", "docker.io", "someone/tool:1"),
        ("of-gcr", "gcr.io/project/app:1", "gcr.io", "project/app:1"),
        ("of-k8s", "k8s.gcr.io/echoserver:1", "k8s.gcr.io", "echoserver:1"),
    ] {
        node.containerd.mirror(host, &format!("http://{registry}"));
        node.containerd.push(&format!("{registry}/made/entry:1"), &format!("{registry}/{repository}"));
        p.apply(&run(name, image, ""));
        assert_eq!(ended(p, name), "upper\n", "{image}");
        assert!(node.containerd.images().contains(&format!("{host}/{repository}")));
        p.kubectl(&["delete", "pod", name]);
    }
}

fn policies_decide_when_to_pull(node: &Node) {
    let (p, registry) = (&node.program, registry(&node.program));
    let image = format!("{registry}/moving");
    let move_to = |to: &str, tag: &str| node.containerd.push(to, &format!("{image}:{tag}"));
    move_to("localhost/box:1", "1");
    move_to("localhost/box:1", "latest");
    p.apply(&(run("first", &format!("{image}:1"), "") + &run("newest", &image, "")));
    assert_eq!((ended(p, "first"), ended(p, "newest")), ("box\n".into(), "box\n".into()));
    let policy = "{.spec.containers[0].imagePullPolicy}";
    assert_eq!(
        (p.value("pod/first", policy), p.value("pod/newest", policy)),
        ("IfNotPresent".into(), "Always".into())
    );
    // The tags come to stand for another image; who has the old one keeps it unless told otherwise.
    move_to(&format!("{registry}/made/entry:1"), "1");
    move_to(&format!("{registry}/made/entry:1"), "latest");
    p.apply(
        &(run("second", &format!("{image}:1"), "")
            + &run("newer", &image, "")
            + &run("stays", &format!("{image}:1"), "Never")
            + &run("absent", &format!("{image}:2"), "Never")),
    );
    for (name, expect) in [("second", "box\n"), ("newer", "upper\n"), ("stays", "box\n")] {
        assert_eq!(ended(p, name), expect, "{name}");
    }
    p.until_value("pod/absent", REASON, "ErrImageNeverPull");
    p.apply(&run("third", &format!("{image}:1"), "Always"));
    assert_eq!(ended(p, "third"), "upper\n");
    p.kubectl(&["delete", "pod", "first", "second", "newest", "newer", "stays", "absent", "third", "--now"]);
}

fn another_oci_runtime_can_be_chosen(node: &Node) {
    let p = &node.program;
    let handlers = p.value("node/node-a", "{.status.runtimeHandlers[*].name}");
    assert!(handlers.split(' ').any(|h| h == "noting"), "{handlers}");
    p.apply("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: other}\nhandler: noting\n");
    let one = |name: &str, class: &str| {
        pod(
            name,
            &format!("restartPolicy: Never, runtimeClassName: {class}, "),
            &[container("main", "echo ran", "")],
        )
    };
    p.apply(&one("by-runc", "runc"));
    assert_eq!(ended(p, "by-runc"), "ran\n");
    let id = |name: &str| {
        p.value(&format!("pod/{name}"), "{.status.containerStatuses[0].containerID}")
            .replace("containerd://", "")
    };
    assert!(!node.containerd.noted().contains(&id("by-runc")));
    p.apply(&one("by-other", "other"));
    assert_eq!(ended(p, "by-other"), "ran\n");
    assert!(node.containerd.noted().contains(&id("by-other")), "the class's runtime started it");
    p.apply(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {name: nowhere}\nhandler: none-such\n",
    );
    let refused = p.kubectl_output(&["apply", "-f", "-"], Some(&one("by-none", "nowhere")));
    if refused.status.success() {
        p.until(
            "it is not started",
            |p| p.events("by-none"),
            |text| text.contains("FailedCreatePodSandBox") || text.contains("FailedScheduling"),
        );
    }
    p.kubectl(&["delete", "pod", "by-runc", "by-other", "by-none", "--now", "--ignore-not-found"]);
}

fn images_are_volumes(node: &Node) {
    let p = &node.program;
    let image = format!("{}/made/entry:1", registry(p));
    let mounts = ", volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /one, subPath: changed}]";
    let line = "cat /v/changed /one; ls /v/removed 2>&1 | wc -l; touch /v/x 2>&1 | grep -o Read-only";
    let spec = format!("restartPolicy: Never, volumes: [{{name: v, image: {{reference: '{image}'}}}}], ");
    p.apply(&pod("with-files", &spec, &[container("main", line, mounts)]));
    assert_eq!(ended(p, "with-files"), "upper\nupper\n1\nRead-only\n");
}

/// It is pushed to where each node has it, and pods run what was pushed.
fn a_registry_is_a_workload(node: &Node) {
    let p = &node.program;
    if !node.containerd.images().contains("localhost/registry:1") {
        return skip("docker-registry", "docker-registry is not installed");
    }
    p.apply(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: registry}\nspec: {selector: {matchLabels: {app: registry}}, \
         template: {metadata: {labels: {app: registry}}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: registry, \
         image: 'localhost/registry:1', ports: [{containerPort: 5000}], readinessProbe: {httpGet: {path: /v2/, port: 5000}, \
         periodSeconds: 1}}]}}}\n",
    );
    p.kubectl(&["expose", "deployment", "registry", "--port=5000", "--type=NodePort"]);
    p.kubectl(&["rollout", "status", "deployment/registry", "--timeout=60s"]);
    let own = format!("127.0.0.1:{}", p.value("service/registry", "{.spec.ports[0].nodePort}"));
    let catalog = |_: &Program| fetch(&format!("http://{own}/v2/_catalog"));
    p.until("the registry answers", catalog, |text| text.contains(r#""repositories":[]"#));
    let image = format!("{own}/busybox");
    node.containerd.push("localhost/box:1", &format!("{image}:latest"));
    assert!(catalog(p).contains(r#""repositories":["busybox"]"#));
    p.apply(&run("from-own", &format!("{image}:latest"), "Always"));
    assert_eq!(ended(p, "from-own"), "box\n");
    let id = p.value("pod/from-own", "{.status.containerStatuses[0].imageID}");
    assert!(id.starts_with(&format!("{image}@sha256:")), "{id}");
    // A client of its own kind copies from one registry to the other.
    let there = format!("docker://{own}/made/entry:1");
    let copy = ["copy", "--src-tls-verify=false", "--dest-tls-verify=false"];
    let from = format!("docker://{}/made/entry:1", registry(p));
    let copied = Command::new("skopeo").args(copy).args([&from, &there]).output().expect("skopeo runs");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    p.apply(&run("copied", &format!("{own}/made/entry:1"), ""));
    assert_eq!(ended(p, "copied"), "upper\n");
    p.kubectl(&["delete", "pod", "from-own", "copied", "--now"]);
    p.kubectl(&["delete", "service,deployment", "registry"]);
}

fn unused_images_go(node: Node) {
    let Node { program, containerd } = node;
    let registry = registry(&program);
    let image = format!("{registry}/made/entry:1");
    let hello = program.push("hello");
    program.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: guest}}\nspec: {{containers: [{{name: main, image: '{hello}', ports: [{{containerPort: 8000}}]}}]}}\n"
    ));
    program.until_row("guest", "1/1 Running");
    let trees = format!("{}/node/runtime/images/trees/sha256", program.data_dir());
    let trees = |_: &Program| std::fs::read_dir(&trees).map_or(0, Iterator::count);
    assert_eq!(trees(&program), 1, "the one that is a volume");
    program.kubectl(&["delete", "pod", "as-docker", "guest", "--now"]);
    // It is in use by a pod that has ended but is still there.
    assert!(containerd.images().contains(&image));
    let flags = [
        "--container-runtime-endpoint",
        &containerd.endpoint(),
        "--image-gc-high-threshold",
        "0",
        "--minimum-image-ttl",
        "0",
    ];
    let program = program.kill_with(&flags);
    program.until("unused ones go", |_| containerd.images(), |images| !images.contains("made/docker"));
    let kept = containerd.images();
    assert!(
        kept.contains("made/entry")
            && kept.contains("localhost/box:1")
            && kept.contains("localhost/sandbox:1"),
        "{kept}"
    );
    let store = format!("{}/node/runtime/images/refs", program.data_dir());
    let guests = |_: &Program| std::fs::read_dir(&store).map_or(0, Iterator::count);
    program.until("those of guests, too", guests, |n| *n == 0);
    assert_eq!(trees(&program), 1, "its pod has ended but is still there");
    program.kubectl(&["delete", "pod", "with-files"]);
    program.until("files of images, too", trees, |n| *n == 0);
    drop(program);
}
