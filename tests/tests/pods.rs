//! Workloads of WebAssembly: behind Services, to their end, restarted, and on a second node.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::LazyLock,
};

use wasmk_tests::program::{Program, binary, guest};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program.push("command");
    program.push("command-module");
    program
});

/// A pod of the command guest.
fn command_pod(name: &str, args: &str, more: &str) -> String {
    let image = format!("{}/default/command:1", CLUSTER.address("registry"));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         restartPolicy: Never\n{more}  containers:\n  - name: main\n    image: {image}\n    args: {args}\n"
    )
}

fn fetch(url: &str) -> String {
    let out = Command::new("curl").args(["-sS", "--max-time", "10", url]).output().expect("curl runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn a_deployment_answers_behind_its_service() {
    CLUSTER.apply(&CLUSTER.example("deployment.yaml"));
    CLUSTER.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let address = CLUSTER.value("service/web", "{.spec.clusterIP}");
    assert!(address.starts_with("127.43."), "{address}");
    let mut names = BTreeSet::new();
    CLUSTER.until(
        "all three answer",
        |_| {
            let text = fetch(&format!("http://{address}:8000/"));
            names.extend(Some(text).filter(|text| text.contains("web-")));
            names.len()
        },
        |n| *n == 3,
    );
}

#[test]
fn a_job_runs_to_its_end() {
    CLUSTER.apply(&CLUSTER.example("job.yaml"));
    CLUSTER.kubectl(&["wait", "--for=condition=complete", "job/count", "--timeout=60s"]);
    assert_eq!(CLUSTER.value("job/count", "{.status.succeeded}"), "3");
    assert!(CLUSTER.kubectl(&["logs", "job/count"]).contains(r#"args ["print", "counted"]"#));
}

#[test]
fn exit_codes_are_told() {
    for (name, args, phase, code) in
        [("good", "[exit, '0']", "Succeeded", "0"), ("bad", "[exit, '3']", "Failed", "3")]
    {
        // Only a WASI 0.1 module can tell more than success and failure.
        let manifest = command_pod(name, args, "").replace("default/command:1", "default/command-module:1");
        CLUSTER.apply(&manifest);
        CLUSTER.until_value(&format!("pod/{name}"), "{.status.phase}", phase);
        let path = "{.status.containerStatuses[0].state.terminated.exitCode}";
        assert_eq!(CLUSTER.value(&format!("pod/{name}"), path), code);
    }
}

#[test]
fn a_failing_container_is_restarted_with_growing_waits() {
    let manifest = command_pod("failing", "[exit, '1']", "").replace("Never", "Always");
    CLUSTER.apply(&manifest);
    let waits = |p: &Program| p.value("pod/failing", "{.status.containerStatuses[0].state.waiting.reason}");
    CLUSTER.until("it backs off", waits, |reason| reason == "CrashLoopBackOff");
    let restarts = |p: &Program| p.value("pod/failing", "{.status.containerStatuses[0].restartCount}");
    CLUSTER.until("it was restarted", restarts, |n| n.parse().unwrap_or(0) >= 1);
    CLUSTER.kubectl(&["delete", "pod", "failing"]);
}

#[test]
fn environment_comes_from_everywhere() {
    CLUSTER.kubectl(&["create", "configmap", "settings", "--from-literal=COLOUR=blue"]);
    CLUSTER.kubectl(&["create", "secret", "generic", "keys", "--from-literal=key=hidden"]);
    let env = "    envFrom: [{configMapRef: {name: settings}}]\n    env:\n    \
        - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: key}}}\n    \
        - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n    \
        - {name: BOTH, value: $(ME)-$(KEY)}\n";
    CLUSTER.apply(&(command_pod("env", "[print]", "") + env));
    CLUSTER.until_value("pod/env", "{.status.phase}", "Succeeded");
    let log = CLUSTER.kubectl(&["logs", "env"]);
    for line in ["COLOUR=blue", "KEY=hidden", "ME=env", "BOTH=env-hidden", "KUBERNETES_SERVICE_PORT=443"] {
        assert!(log.lines().any(|l| l == line), "{line} in {log}");
    }
}

#[test]
fn a_deleted_pod_ends() {
    CLUSTER.apply(&command_pod("endless", "[sleep, '600000']", "  terminationGracePeriodSeconds: 1\n"));
    CLUSTER.until_value("pod/endless", "{.status.phase}", "Running");
    // Whoever looks on sees it start and be killed.
    let watch = Command::new("kubectl")
        .args(["--kubeconfig", &CLUSTER.kubeconfig(), "--request-timeout=60s", "get", "events", "-w"])
        .args(["--field-selector=involvedObject.name=endless", "-o", "jsonpath={.reason}{\"\\n\"}"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut watch = Watch(watch);
    CLUSTER.kubectl(&["delete", "pod", "endless", "--timeout=30s"]);
    assert!(CLUSTER.kubectl_refused(&["get", "pod", "endless"], None).contains("not found"));
    let reasons = BufReader::new(watch.0.stdout.take().expect("its output")).lines().map_while(Result::ok);
    let mut missing = BTreeSet::from(["Scheduled", "Started", "Killing"]);
    for reason in reasons {
        missing.remove(&*reason);
        if missing.is_empty() {
            break;
        }
    }
    assert_eq!(missing, BTreeSet::new());
}

#[test]
fn a_log_is_followed_until_the_pod_ends() {
    CLUSTER.apply(&command_pod("ticker", "[tick, '50']", "  terminationGracePeriodSeconds: 1\n"));
    let lines = |p: &Program| p.kubectl_output(&["logs", "ticker"], None).stdout.lines().count();
    let before = CLUSTER.until("the first lines", lines, |n| *n > 0);
    let mut follow = Command::new("kubectl")
        .args(["--kubeconfig", &CLUSTER.kubeconfig(), "logs", "-f", "ticker"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut lines = BufReader::new(follow.stdout.take().expect("its output")).lines();
    // More lines than there were at the start: the rest was written while it followed.
    for n in 1..=before + 20 {
        assert_eq!(lines.next().expect("one more line").unwrap(), format!("tick {n}"));
    }
    CLUSTER.kubectl(&["delete", "pod", "ticker", "--wait=false"]);
    assert!(lines.all(|line| line.is_ok_and(|line| line.starts_with("tick "))));
    assert!(follow.wait().unwrap().success(), "following ends well when the container has ended");
}

#[test]
fn volumes_hold_configuration() {
    CLUSTER.kubectl(&["create", "configmap", "files", "--from-literal=greeting=good morning"]);
    let mount = "    volumeMounts: [{name: files, mountPath: /etc/files}]\n";
    let volume = "  volumes: [{name: files, configMap: {name: files}}]\n";
    CLUSTER.apply(&(command_pod("reader", "[read, /etc/files/greeting]", volume) + mount));
    CLUSTER.until_value("pod/reader", "{.status.phase}", "Succeeded");
    assert_eq!(CLUSTER.kubectl(&["logs", "reader"]), "good morning");
}

/// A client that watches, ended when dropped.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A `wasmk agent`, ended when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_node_joins_and_shares_the_work() {
    let program = Program::start();
    program.push("hello");
    let token = program.wasmk(&["token", "create", "-q"]);
    let agent = Command::new(binary())
        .args(["agent", "--server", &format!("https://{}", program.address("api")), "--token", token.trim()])
        .args(["--node-name", "second", "--data-dir"])
        .arg(program.scratch().join("second"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the agent starts");
    let _agent = Agent(agent);
    program.until_value("node/second", "{.status.conditions[?(@.type=='Ready')].status}", "True");

    program.apply(&program.example("deployment.yaml"));
    program.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let nodes =
        program.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"]);
    let nodes: BTreeSet<_> = nodes.split(' ').collect();
    assert_eq!(nodes, BTreeSet::from(["node-a", "second"]));

    let address = program.value("service/web", "{.spec.clusterIP}");
    let args = ["get", "pods", "--field-selector=spec.nodeName=second", "-o", "name"];
    let pod = program.kubectl(&args);
    let pod = pod.lines().next().expect("a pod on the second node");
    program.kubectl(&["logs", pod]);
    // Behind the service are the pods of both nodes, by the network that came with them.
    let path = "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}";
    let pods = program.kubectl(&["get", "pods", "-l", "app=web", "-o", path]);
    for pod in pods.lines() {
        program.until(pod, |_| fetch(&format!("http://{address}:8000/")), |text| text.contains(pod));
    }
}

#[test]
fn a_program_of_a_volume_can_be_executed() {
    let tools = CLUSTER.scratch().join("tools");
    std::fs::create_dir_all(&tools).expect("a directory");
    std::fs::copy(guest("command"), tools.join("command.wasm")).expect("a guest to copy");
    let volume = format!("  volumes: [{{name: tools, hostPath: {{path: {}}}}}]\n", tools.display());
    let mount =
        "    env: [{name: ME, value: inside}]\n    volumeMounts: [{name: tools, mountPath: /tools}]\n";
    CLUSTER.apply(&(command_pod("toolbox", "[sleep, '600000']", &volume) + mount));
    CLUSTER.until_value("pod/toolbox", "{.status.phase}", "Running");
    let exec = |words: &[&str], stdin: Option<&str>| {
        CLUSTER.kubectl_output(&[&["exec", "-i", "toolbox", "--"], words].concat(), stdin)
    };
    let printed = exec(&["/tools/command.wasm", "print", "more"], None);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains(r#"args ["print", "more"]"#) && printed.contains("ME=inside"), "{printed}");
    let echoed = exec(&["/tools/command.wasm", "cat"], Some("through and back"));
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "through and back");
    assert_eq!(exec(&["/tools/command.wasm", "exit", "1"], None).status.code(), Some(1));
    // Without `--`, as kubectl had it.
    let printed = CLUSTER.wasmk(&["exec", "toolbox", "/tools/command.wasm", "print", "--plain"]);
    assert!(printed.contains(r#"args ["print", "--plain"]"#), "{printed}");
    // Services that come later are in the environment of pods that come later still.
    CLUSTER.kubectl(&["create", "service", "clusterip", "afterwards", "--tcp=80"]);
    let mut n = 0;
    let of_a_new_pod = |p: &Program| {
        n += 1;
        let name = format!("newcomer-{n}");
        p.apply(&command_pod(&name, "[print]", ""));
        p.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
        p.kubectl(&["logs", &name])
    };
    CLUSTER.until("a pod that knows it", of_a_new_pod, |log| log.contains("AFTERWARDS_SERVICE_PORT=80"));
    let printed = exec(&["/tools/command.wasm", "print"], None);
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    assert!(printed.contains("ME=inside") && !printed.contains("AFTERWARDS"), "{printed}");
    let refused = CLUSTER.kubectl_refused(&["exec", "toolbox", "--", "ls"], None);
    assert!(refused.contains("WebAssembly") && refused.contains("no shell"), "{refused}");
    CLUSTER.kubectl(&["delete", "pod", "toolbox", "--now"]);
}

#[test]
fn a_guest_leaves_a_termination_message() {
    CLUSTER.apply(&command_pod("farewell", "[write, /dev/termination-log, good bye]", ""));
    CLUSTER.until_value("pod/farewell", "{.status.phase}", "Succeeded");
    let path = "{.status.containerStatuses[0].state.terminated.message}";
    assert_eq!(CLUSTER.value("pod/farewell", path), "good bye");
}

#[test]
fn a_claim_without_a_class_is_a_volume_that_stays() {
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: kept}\nspec:\n  \
                 accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 1Mi}}\n";
    CLUSTER.apply(claim);
    let volume = "  volumes: [{name: v, persistentVolumeClaim: {claimName: kept}}]\n";
    let mount = "    volumeMounts: [{name: v, mountPath: /v}]\n";
    CLUSTER.apply(&(command_pod("claim-writer", "[write, /v/file, kept]", volume) + mount));
    CLUSTER.until_value("pod/claim-writer", "{.status.phase}", "Succeeded");
    assert_eq!(CLUSTER.value("pvc/kept", "{.spec.storageClassName}"), "local-path");
    CLUSTER.kubectl(&["delete", "pod", "claim-writer"]);
    CLUSTER.apply(&(command_pod("claim-reader", "[read, /v/file]", volume) + mount));
    CLUSTER.until_value("pod/claim-reader", "{.status.phase}", "Succeeded");
    assert_eq!(CLUSTER.kubectl(&["logs", "claim-reader"]), "kept");
}

#[test]
fn pods_of_a_directory_run_and_are_mirrored() {
    let manifests = tempfile::tempdir().expect("a directory");
    let program =
        Program::start_with(&["--pod-manifest-path", manifests.path().to_str().expect("a UTF-8 path")]);
    let image = program.push("command");
    let file = manifests.path().join("own.yaml");
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: own, namespace: kube-system}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers: [{{name: c, image: '{image}', args: [sleep, '600000']}}]\n"
    );
    std::fs::write(&file, manifest).expect("a manifest");
    let running = |p: &Program| {
        let path = "jsonpath={.status.phase}";
        let out = p.kubectl_output(&["get", "pod", "own-node-a", "-n", "kube-system", "-o", path], None);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    program.until("the mirror shows it", running, |phase| phase == "Running");
    program.kubectl(&["delete", "pod", "own-node-a", "-n", "kube-system", "--now"]);
    program.until("the mirror is back with its status", running, |phase| phase == "Running");
    let reasons = "jsonpath={.status.conditions[?(@.status=='True')].reason}";
    let reasons = program.kubectl(&["get", "pod", "own-node-a", "-n", "kube-system", "-o", reasons]);
    assert_eq!(reasons, "", "what is true needs no reason");
    std::fs::remove_file(file).expect("a manifest to remove");
    program.until("the mirror goes with the manifest", running, |phase| phase.is_empty());
}

#[test]
fn an_import_that_is_not_offered_is_named_at_once_or_when_it_is_pulled() {
    let push = |name: &str, text: &str| {
        let file = CLUSTER.scratch().join(format!("{name}.wasm"));
        std::fs::write(&file, wat::parse_str(text).expect("WebAssembly")).expect("a file");
        CLUSTER.wasmk(&["push", &file.display().to_string(), &format!("default/{name}:1")]);
        format!("{}/default/{name}:1", CLUSTER.address("registry"))
    };
    let pod = |name: &str, image: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: main, image: '{image}'}}]}}\n"
        )
    };
    // The registry's artifact lists what it imports.
    let image =
        push("hammer", r#"(component (import "acme:tools/hammer@1.0.0" (instance (export "hit" (func)))))"#);
    let refused = CLUSTER.kubectl_refused(&["apply", "-f", "-"], Some(&pod("hammer", &image)));
    let why = format!(
        "pods \"hammer\" is forbidden: container \"main\": image {image} imports acme:tools/hammer@1.0.0, which \
         WebAssembly is not offered on this cluster"
    );
    assert!(refused.contains(&why), "{refused}");
    // Who writes a template is warned, and what makes its pods says why there are none.
    let out = CLUSTER.kubectl_output(&["create", "deployment", "hammers", "--image", &image], None);
    let warned = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && warned.contains("Warning: container \"hammer\": image"), "{warned}");
    CLUSTER.until(
        "the reason is told",
        |p| p.value("deployment/hammers", "{.status.conditions[?(@.type==\"ReplicaFailure\")].message}"),
        |text| text.contains("imports acme:tools/hammer@1.0.0"),
    );
    CLUSTER.kubectl(&["delete", "deployment", "hammers"]);

    // Of a module it lists nothing: whoever pulls it finds out.
    let image = push("magic", r#"(module (import "env" "magic" (func)) (func (export "_start")))"#);
    CLUSTER.apply(&pod("magic", &image));
    let message = "{.status.containerStatuses[0].state.waiting.message}";
    CLUSTER.until(
        "the import is named",
        |p| p.value("pod/magic", message),
        |text| text.contains("imports env::magic, which this runtime does not offer"),
    );
    let reason = CLUSTER.value("pod/magic", "{.status.containerStatuses[0].state.waiting.reason}");
    assert!(matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff"), "{reason}");
    CLUSTER.kubectl(&["delete", "pod", "magic", "--now"]);
}
