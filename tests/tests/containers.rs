//! OCI containers beside WebAssembly, through a real containerd. Skipped, with a word, where containers
//! cannot be run.

use std::{collections::BTreeMap, process::Command};

use wasmk_tests::{containerd::Containerd, program::Program};

/// A cluster whose node has a container runtime. One test holds all its stories, so that the runtime is
/// ended with it.
struct Node {
    program: Program,
    containerd: Containerd,
}

impl Node {
    fn start() -> Option<Self> {
        let containerd = Containerd::start()?;
        // No image is looked for to be removed, however full the disk is.
        let flags =
            ["--container-runtime-endpoint", &containerd.endpoint(), "--image-gc-high-threshold", "100"];
        let program = Program::start_with(&flags);
        program.until_value("node/node-a", "{.metadata.labels.wasmk\\.dev/runtime-container}", "true");
        Some(Self { program, containerd })
    }
}

/// A pod of one busybox; `container` and `spec` are more lines of YAML flow.
fn pod(name: &str, command: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 2{spec}, containers: \
         [{{name: main, image: 'localhost/box:1', command: [sh, -c, {command:?}]{container}}}]}}\n"
    )
}

const STATE: &str = "{.status.containerStatuses[0].state";

fn fetch(url: &str) -> String {
    let out = Command::new("curl").args(["-sS", "--max-time", "10", url]).output().expect("curl runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn containers_run_beside_wasm() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    the_node_says_what_it_runs(p);
    a_new_pod_takes_few_calls(p);
    a_container_is_served_its_environment(p);
    ends_are_told(p);
}

#[test]
fn containers_are_looked_into() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    a_container_is_served_its_environment(p);
    a_command_can_be_run_inside(p);
    old_and_new_clients_look_inside(p);
    hooks_run_and_leave_messages(p);
    security_is_as_asked(p);
    probes_run_commands(p);
    wasm_and_containers_share_a_pod(p);
    a_claim_outlives_its_pod(p);
    let Node { program, containerd } = node;
    let program = containers_outlive_runtime_and_agent(program, &containerd);
    drop(program);
}

fn the_node_says_what_it_runs(p: &Program) {
    assert!(
        p.value("node/node-a", "{.status.nodeInfo.containerRuntimeVersion}").starts_with("containerd://")
    );
    let handlers = p.value("node/node-a", "{.status.runtimeHandlers[*].name}");
    for name in ["wasmtime", "runc"] {
        assert!(handlers.split(' ').any(|h| h == name), "{handlers}");
    }
}

/// How often the runtime was asked for what pods need, by operation. How it is, and what runs, is asked again and again.
fn calls(p: &Program) -> BTreeMap<String, u64> {
    const PERIODIC: [&str; 6] =
        ["version", "status", "list_containers", "list_container_stats", "list_images", "image_fs_info"];
    let metrics = p.kubectl(&["get", "--raw", "/api/v1/nodes/node-a/proxy/metrics"]);
    let rows = metrics.lines().filter_map(|line| {
        let of = line.strip_prefix("kubelet_runtime_operations_total{operation_type=\"")?;
        let (operation, count) = of.split_once("\"} ")?;
        Some((operation.to_owned(), count.parse().ok()?))
    });
    rows.filter(|(operation, _)| !PERIODIC.contains(&operation.as_str())).collect()
}

/// Each call is milliseconds of a pod's start.
fn a_new_pod_takes_few_calls(p: &Program) {
    let before = calls(p);
    p.apply(&pod("few", "sleep 600", "", ""));
    p.until_value("pod/few", "{.status.phase}", "Running");
    let mut more = calls(p);
    more.retain(|operation, count| {
        *count -= before.get(operation).copied().unwrap_or(0);
        *count > 0
    });
    let needed =
        ["create_container", "image_status", "podsandbox_status", "run_podsandbox", "start_container"];
    assert_eq!(more, needed.map(|operation| (operation.to_owned(), 1)).into());
    p.kubectl(&["delete", "pod", "few", "--wait=false"]);
}

fn a_container_is_served_its_environment(p: &Program) {
    p.kubectl(&["create", "configmap", "conf", "--from-literal=greeting=good morning"]);
    let more = ", env: [{name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], ports: [{containerPort: 8080}], \
                volumeMounts: [{name: conf, mountPath: /www/conf}, {name: conf, mountPath: /one, subPath: greeting}]";
    let spec = ", runtimeClassName: runc, volumes: [{name: conf, configMap: {name: conf}}]";
    let command = "echo I am $ME; cat /one; echo; hostname; httpd -f -p 8080 -h /www";
    p.apply(&pod("web", command, more, spec));
    p.until_value("pod/web", "{.status.phase}", "Running");
    assert!(p.value("pod/web", "{.status.containerStatuses[0].containerID}").starts_with("containerd://"));
    let ip = p.value("pod/web", "{.status.podIP}");
    assert!(ip.starts_with("10."), "{ip}");
    p.until("it answers", |_| fetch(&format!("http://{ip}:8080/conf/greeting")), |a| a == "good morning");
    p.until("its log", |p| p.kubectl(&["logs", "web"]), |log| log == "I am web\ngood morning\nweb\n");
    assert_eq!(p.kubectl(&["logs", "web", "--tail=1"]), "web\n");
    // What the network's plugin was asked for: an interface with that address, and a way out.
    let network = p.kubectl(&["exec", "web", "--", "sh", "-c", "ip -4 address show eth0; ip route"]);
    assert!(network.contains(&format!("inet {ip}/24")) && network.contains("default via 10."), "{network}");
}

fn ends_are_told(p: &Program) {
    let never = ", restartPolicy: Never";
    p.apply(&pod("three", "echo out; exit 3", "", never));
    p.until_value("pod/three", &format!("{STATE}.terminated.exitCode}}"), "3");
    p.until_value("pod/three", "{.status.phase}", "Failed");
    let limit = ", resources: {limits: {memory: 16Mi}}";
    p.apply(&pod("greedy", "x=a; while :; do x=$x$x; done", limit, never));
    p.until_value("pod/greedy", &format!("{STATE}.terminated.reason}}"), "OOMKilled");
    p.apply(&pod("crash", "exit 1", "", ""));
    p.until_value("pod/crash", &format!("{STATE}.waiting.reason}}"), "CrashLoopBackOff");
    p.kubectl(&["delete", "pod", "crash"]);
    let missing = pod("missing", "true", ", imagePullPolicy: Never", never).replace("box:1", "none:1");
    p.apply(&missing);
    p.until_value("pod/missing", &format!("{STATE}.waiting.reason}}"), "ErrImageNeverPull");
    p.kubectl(&["delete", "pod", "missing"]);
}

fn a_command_can_be_run_inside(p: &Program) {
    assert_eq!(p.kubectl(&["exec", "web", "--", "sh", "-c", "echo $ME"]), "web\n");
    let failed = p.kubectl_output(&["exec", "web", "--", "sh", "-c", "echo no >&2; exit 4"], None);
    assert_eq!(failed.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&failed.stderr).starts_with("no\n"));
    // The end of the input reaches the command: without it `cat` would never end.
    let echoed = p.kubectl_output(&["exec", "-i", "web", "--", "cat"], Some("through and back"));
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "through and back");
    std::fs::write(p.scratch().join("file"), "copied").expect("a file");
    p.kubectl(&["exec", "web", "--", "mkdir", "/tmp/in"]);
    let archive =
        Command::new("tar").args(["cf", "-", "-C"]).arg(p.scratch()).arg("file").output().expect("tar");
    assert!(archive.status.success());
    p.kubectl(&["cp", "file", "web:/tmp/in/file"]);
    assert_eq!(p.kubectl(&["exec", "web", "--", "cat", "/tmp/in/file"]), "copied");
    p.kubectl(&["cp", "web:/tmp/in/file", "back"]);
    assert_eq!(std::fs::read_to_string(p.scratch().join("back")).expect("the file"), "copied");
    wasmk_copies_and_attaches_too(p);
}

fn wasmk_copies_and_attaches_too(p: &Program) {
    let here = |name: &str| p.scratch().join(name);
    std::fs::create_dir_all(here("tree/sub")).expect("a directory");
    std::fs::write(here("tree/sub/leaf"), "deep").expect("a file");
    p.wasmk(&["cp", here("tree").to_str().expect("text"), "web:/tmp/tree"]);
    assert_eq!(p.wasmk(&["exec", "web", "--", "cat", "/tmp/tree/sub/leaf"]), "deep");
    // Into a directory that is there, under its own name.
    p.wasmk(&["cp", here("file").to_str().expect("text"), "default/web:/tmp/tree"]);
    p.wasmk(&["cp", "web:/tmp/tree", here("again").to_str().expect("text")]);
    assert_eq!(std::fs::read_to_string(here("again/sub/leaf")).expect("the file"), "deep");
    assert_eq!(std::fs::read_to_string(here("again/file")).expect("the file"), "copied");
    let said = p.refused(&["cp", "web:/none", here("none").to_str().expect("text")]);
    assert!(said.contains("can't open '/none'") || said.contains("No such file"), "{said}");
    assert!(!here("none").exists());
    p.apply(&pod(
        "brief",
        "for i in 1 2 3 4 5 6; do sleep 1; echo at $i; done",
        "",
        ", restartPolicy: Never",
    ));
    p.until_value("pod/brief", "{.status.phase}", "Running");
    let attached = p.wasmk(&["attach", "brief"]);
    assert!(attached.ends_with("at 6\n"), "{attached}");
}

/// Clients speak SPDY, or WebSockets.
fn old_and_new_clients_look_inside(p: &Program) {
    let tick = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";
    p.apply(&pod("ticking", tick, "", ""));
    p.until_value("pod/ticking", "{.status.phase}", "Running");
    for websockets in ["true", "false"] {
        let shell = |line: &str| {
            let out = Command::new("sh")
                .args(["-c", line])
                .env("KUBECONFIG", p.kubeconfig())
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
                .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
                .current_dir(p.scratch())
                .output()
                .expect("a shell runs");
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        assert_eq!(
            shell("kubectl exec web -- sh -c 'echo $ME'; kubectl exec web -- false || echo $?"),
            "web\n1\n"
        );
        assert_eq!(shell("echo through | kubectl exec -i web -- cat"), "through\n");
        let terminal = shell(
            "script -qec \"kubectl exec -it web -- sh -c 'tty; exit 5'\" /dev/null </dev/null; echo $?",
        );
        assert!(terminal.contains("/dev/pts/0") && terminal.trim_end().ends_with('5'), "{terminal}");
        // The window changes while the command runs.
        let resized = shell(
            "script -qec \"stty rows 33 cols 77; (sleep 1; stty -F /dev/tty rows 40 cols 90) & \
             kubectl exec -it web -- sh -c 'for i in 1 2 3 4 5 6 7 8; do stty size; sleep 0.5; done'\" /dev/null </dev/null",
        );
        assert!(resized.contains("40 90"), "websockets {websockets}: {resized}");
        let attached = shell("timeout 3 kubectl attach ticking");
        assert!(attached.lines().count() > 3 && attached.starts_with("tick "), "{attached}");
        let port = shell(
            "kubectl port-forward pod/web :8080 >forward-$$ & pid=$!; \
             for i in $(seq 100); do port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) .*/\\1/p' forward-$$); [ -n \"$port\" ] && break; sleep 0.1; done; \
             for i in 1 2 3; do curl -sS --max-time 10 http://127.0.0.1:$port/conf/greeting; done; kill $pid; rm forward-$$",
        );
        assert_eq!(port, "good morning".repeat(3), "websockets: {websockets}");
    }
    p.kubectl(&["delete", "pod", "ticking"]);
}

fn hooks_run_and_leave_messages(p: &Program) {
    let more = ", terminationMessagePath: /dev/last, lifecycle: {postStart: {exec: {command: [sh, -c, 'echo up > /data/up']}}, \
                preStop: {exec: {command: [sh, -c, 'echo stopping > /dev/last; touch /data/stopped']}}}, \
                volumeMounts: [{name: data, mountPath: /data}]";
    let dir = p.scratch().join("hooks");
    let spec = format!(
        ", volumes: [{{name: data, hostPath: {{path: {}, type: DirectoryOrCreate}}}}]",
        dir.display()
    );
    p.apply(&pod("hooks", "trap 'exit 0' TERM; while :; do sleep 0.1; done", more, &spec));
    p.until_value("pod/hooks", "{.status.phase}", "Running");
    assert_eq!(std::fs::read_to_string(dir.join("up")).expect("what postStart wrote"), "up\n");
    p.kubectl(&["delete", "pod", "hooks"]);
    assert!(dir.join("stopped").exists());
    let message = ", terminationMessagePolicy: FallbackToLogsOnError";
    p.apply(&pod("last-words", "echo farewell; exit 1", message, ", restartPolicy: Never"));
    p.until_value("pod/last-words", &format!("{STATE}.terminated.message}}"), "farewell\n");
}

fn security_is_as_asked(p: &Program) {
    let never =
        ", restartPolicy: Never, volumes: [{name: v, emptyDir: {}}], securityContext: {fsGroup: 2000}";
    let more = ", volumeMounts: [{name: v, mountPath: /v}], securityContext: {runAsUser: 1000, readOnlyRootFilesystem: true}";
    p.apply(&pod(
        "user",
        "id -u; touch /x 2>/dev/null || echo read-only; touch /v/x && stat -c %g /v/x",
        more,
        never,
    ));
    p.until_value("pod/user", "{.status.phase}", "Succeeded");
    assert_eq!(p.kubectl(&["logs", "user"]), "1000\nread-only\n2000\n");
    p.apply(&pod("root", "true", ", securityContext: {runAsNonRoot: true}", never));
    p.until_value("pod/root", &format!("{STATE}.waiting.reason}}"), "CreateContainerConfigError");
}

fn probes_run_commands(p: &Program) {
    let more = ", livenessProbe: {exec: {command: [cat, /tmp/healthy]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1}";
    p.apply(&pod("liveness", "touch /tmp/healthy; sleep 3; rm /tmp/healthy; sleep 600", more, ""));
    let restarts = |p: &Program| p.value("pod/liveness", "{.status.containerStatuses[0].restartCount}");
    p.until("it is restarted", restarts, |n| n.parse().unwrap_or(0) >= 1);
    p.kubectl(&["delete", "pod", "liveness"]);
}

fn wasm_and_containers_share_a_pod(p: &Program) {
    let hello = p.push("hello");
    let command = p.push("command");
    p.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: mixed}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         volumes: [{{name: v, emptyDir: {{}}}}]\n  initContainers:\n  - {{name: first, image: '{command}', args: [write, /v/note, from wasm], \
         volumeMounts: [{{name: v, mountPath: /v}}]}}\n  containers:\n  - {{name: app, image: '{hello}', ports: [{{containerPort: 8000}}]}}\n  \
         - {{name: box, image: 'localhost/box:1', command: [sleep, '600'], volumeMounts: [{{name: v, mountPath: /v}}]}}\n"
    ));
    p.until_value("pod/mixed", "{.status.phase}", "Running");
    assert_eq!(p.kubectl(&["exec", "mixed", "-c", "box", "--", "cat", "/v/note"]), "from wasm");
    let inside = ["exec", "mixed", "-c", "box", "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/"];
    let ip = p.value("pod/mixed", "{.status.podIP}");
    let outside = p.until(
        "Wasm answers at the pod's address",
        |_| fetch(&format!("http://{ip}:8000/")),
        |a| !a.is_empty(),
    );
    assert_eq!(p.kubectl(&inside), outside);
    // A Service's address is served inside the containers, too.
    p.apply(&p.example("deployment.yaml"));
    p.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let service = format!("http://{}:8000/", p.value("service/web", "{.spec.clusterIP}"));
    let through = ["exec", "mixed", "-c", "box", "--", "wget", "-q", "-O", "-", &service];
    let ask = |p: &Program| p.kubectl_output(&through, None).stdout;
    p.until("the service answers a container", ask, |answer| {
        String::from_utf8_lossy(answer).contains("web-")
    });
    p.kubectl(&["delete", "pod", "mixed"]);
}

fn a_claim_outlives_its_pod(p: &Program) {
    assert_eq!(p.value("storageclass/local-path", "{.provisioner}"), "wasmk.dev/local-path");
    p.apply(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: kept}\nspec: {accessModes: [ReadWriteOnce], \
         resources: {requests: {storage: 1Mi}}}\n",
    );
    let spec = ", restartPolicy: Never, volumes: [{name: v, persistentVolumeClaim: {claimName: kept}}]";
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    p.apply(&pod("writer", "echo kept > /v/file", mount, spec));
    p.until_value("pod/writer", "{.status.phase}", "Succeeded");
    p.kubectl(&["delete", "pod", "writer"]);
    p.apply(&pod("reader", "cat /v/file", mount, spec));
    p.until_value("pod/reader", "{.status.phase}", "Succeeded");
    assert_eq!(p.kubectl(&["logs", "reader"]), "kept\n");
}

/// Neither a runtime that goes away and comes back nor an agent that is killed ends a container.
fn containers_outlive_runtime_and_agent(program: Program, containerd: &Containerd) -> Program {
    let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done";
    program.apply(&pod("lasting", count, "", ""));
    program.until_value("pod/lasting", "{.status.phase}", "Running");
    let id = "{.status.containerStatuses[0].containerID}";
    let before = program.value("pod/lasting", id);
    containerd.restart();
    program.until("it prints on", |p| p.kubectl(&["logs", "lasting", "--tail=1"]), |l| !l.trim().is_empty());
    let program = program.kill_with(&["--container-runtime-endpoint", &containerd.endpoint()]);
    program.until(
        "commands run in it again",
        |p| p.kubectl_output(&["exec", "lasting", "--", "echo", "alive"], None).stdout,
        |said| said == b"alive\n",
    );
    assert_eq!(program.value("pod/lasting", id), before);
    assert_eq!(program.value("pod/lasting", "{.status.containerStatuses[0].restartCount}"), "0");
    program.kubectl(&["delete", "pod", "lasting"]);
    program
}
