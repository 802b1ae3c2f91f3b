//! Pods of containers as a kubelet runs them: what containers share, how they live and end, how they are
//! watched, and what they are given. Skipped, with a word, where containers cannot be run.

use std::{process::Command, time::Instant};

use wasmk_tests::{
    node::{Node, container, fetch, pod, together},
    program::Program,
};

const STATUS: &str = "{.status.containerStatuses";

/// A field of the status of one of a pod's containers.
fn of(container: &str, field: &str) -> String {
    format!("{STATUS}[?(@.name=='{container}')]{field}}}")
}

fn number(p: &Program, object: &str, path: &str) -> u32 {
    p.value(object, path).parse().unwrap_or(0)
}

#[test]
fn containers_of_a_pod_share_and_pods_do_not() {
    let Some(node) = Node::start() else { return };
    together(
        &node.program,
        &[
            a_pod_is_one_unit,
            pods_are_apart,
            memory_is_counted_for_each_container,
            processors_are_shared_as_asked,
            a_sandbox_outlives_its_containers,
            a_pod_on_the_nodes_network,
            a_port_of_the_node_leads_to_one_pod,
        ],
    );
}

fn a_pod_is_one_unit(p: &Program) {
    let serve = "echo from a; mkdir -p /www; echo page >/www/p; httpd -f -p 8080 -h /www";
    p.apply(&pod("duo", "", &[container("a", serve, ""), container("b", "echo from b; sleep 600", "")]));
    p.until_row("duo", "2/2 Running 0");
    for name in ["a", "b"] {
        assert_eq!(p.kubectl(&["logs", "duo", "-c", name]), format!("from {name}\n"));
        assert_eq!(p.within(&format!("duo -c {name}"), "hostname"), "duo\n");
    }
    assert!(p.kubectl_refused(&["logs", "duo", "-c", "none"], None).contains("container none is not valid"));
    assert_eq!(p.within("duo -c b", "wget -q -O - http://127.0.0.1:8080/p"), "page\n");
    let second = p.within("duo -c b", "httpd -f -p 8080 2>&1 || echo refused");
    assert!(second.contains("in use") && second.ends_with("refused\n"), "{second}");
    p.within("duo -c a", "touch /dev/mqueue/queue; echo shared >/dev/shm/memory");
    assert_eq!(p.within("duo -c b", "ls /dev/mqueue; cat /dev/shm/memory"), "queue\nshared\n");
    assert_eq!(
        p.value("pod/duo", "{.status.hostIP}"),
        p.value("node/node-a", "{.status.addresses[0].address}")
    );
    let id = p.value("pod/duo", &of("a", ".containerID"));
    assert!(id.starts_with("containerd://") && id.len() > 70, "{id}");
    // Files outside volumes are the container's own and go with it.
    p.within("duo -c b", "echo mine >/tmp/file; kill 1 || true");
    p.within("duo -c a", "echo other >/tmp/file; cat /tmp/file");
    p.kubectl(&["delete", "pod", "duo", "--now"]);
    assert!(
        p.kubectl_refused(&["get", "pod", "duo"], None).contains("NotFound"),
        "nobody makes a bare pod again"
    );
}

fn pods_are_apart(p: &Program) {
    let sleeps =
        |name: &str, seconds: &str| pod(name, "", &[container("main", &format!("sleep {seconds}"), "")]);
    p.apply(&(sleeps("one", "54321") + &sleeps("two", "12345")));
    p.until_row("one", "1/1 Running");
    p.until_row("two", "1/1 Running");
    assert_ne!(p.value("pod/one", "{.status.podIP}"), p.value("pod/two", "{.status.podIP}"));
    assert_eq!((p.within("one", "hostname"), p.within("two", "hostname")), ("one\n".into(), "two\n".into()));
    // They answer each other's pings, and the node's requests, which come from the node's own address.
    let other = p.value("pod/two", "{.status.podIP}");
    let answer = p.within("one", &format!("ping -c 2 -W 5 {other}"));
    assert!(answer.contains("2 packets received"), "{answer}");
    let serve = "mkdir -p /www; echo here >/www/p; httpd -f -vv -p 8080 -h /www";
    p.apply(&pod("visited", "", &[container("main", serve, "")]));
    p.until_row("visited", "1/1 Running");
    let url = format!("http://{}:8080/p", p.value("pod/visited", "{.status.podIP}"));
    p.until("its page", |_| fetch(&url), |text| text == "here\n");
    let log = p.kubectl(&["logs", "visited"]);
    let own = Command::new("ip").args(["-o", "-4", "address"]).output().expect("ip runs");
    let own = String::from_utf8_lossy(&own.stdout).into_owned();
    let mut own = own.split_whitespace().filter_map(|word| word.split_once('/')).map(|(ip, _)| ip);
    let is_visitor = |ip: &str| log.split(|c: char| !c.is_ascii_digit() && c != '.').any(|word| word == ip);
    assert!(own.any(is_visitor), "from whom: {log}");
    // The image's layers are one for both; what each writes is not.
    let root = |name: &str| p.within(name, "grep ' / overlay' /proc/mounts");
    let part =
        |text: &str, key: &str| text.split(',').find_map(|word| word.strip_prefix(key)).map(String::from);
    if p.within("one", "cat /proc/mounts").lines().any(|line| line.contains(" / overlay ")) {
        let (one, two) = (root("one"), root("two"));
        assert_eq!(part(&one, "lowerdir="), part(&two, "lowerdir="));
        assert!(
            part(&one, "upperdir=").is_some() && part(&one, "upperdir=") != part(&two, "upperdir="),
            "{one}"
        );
    }
    let seen = p.within("one", "ps");
    assert!(seen.contains("54321") && !seen.contains("12345"), "{seen}");
    p.kubectl(&["delete", "pod", "one", "two", "visited", "--now"]);
}

fn memory_is_counted_for_each_container(p: &Program) {
    let limit = ", resources: {limits: {memory: 24Mi}}";
    let greedy = container("greedy", "sleep 1; x=a; while :; do x=$x$x; done", limit);
    // More than is asked for may be used, up to the limit.
    let above = ", resources: {requests: {memory: 8Mi}, limits: {memory: 128Mi}}";
    let calm =
        container("calm", "dd if=/dev/zero of=/dev/shm/x bs=1M count=40 2>/dev/null; sleep 600", above);
    p.apply(&pod("memory", "", &[greedy, calm]));
    p.until_value("pod/memory", &of("greedy", ".lastState.terminated.reason"), "OOMKilled");
    p.until("it is restarted", |p| number(p, "pod/memory", &of("greedy", ".restartCount")), |n| *n >= 1);
    assert_eq!(p.value("pod/memory", &of("calm", ".restartCount")), "0");
    assert_eq!(p.within("memory -c calm", "stat -c %s /dev/shm/x"), format!("{}\n", 40 << 20));
    assert_eq!(p.value("pod/memory", "{.status.qosClass}"), "Burstable");
    p.kubectl(&["delete", "pod", "memory", "--now"]);
}

fn processors_are_shared_as_asked(p: &Program) {
    let spin = "while :; do :; done";
    p.apply(&pod(
        "spin",
        "",
        &[
            container("limited", spin, ", resources: {requests: {cpu: 100m}, limits: {cpu: 200m}}"),
            container("double", "sleep 600", ", resources: {requests: {cpu: 200m}}"),
        ],
    ));
    p.until_row("spin", "2/2 Running");
    // Ticks of a hundredth of a second that its first process had, and the seconds that went by.
    let look = "t() { cut -d' ' -f14 /proc/1/stat; cut -d' ' -f1 /proc/uptime; }; a=$(t); sleep 4; b=$(t); echo $a $b";
    let text = p.within("spin -c limited", look);
    let seen: Vec<f64> = text.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    let share = (seen[2] - seen[0]) / 100.0 / (seen[3] - seen[1]);
    assert!(share > 0.0 && share < 0.25, "{share} of a core: {text}");
    let weight = "cat /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/cpu.weight";
    let weigh =
        |name: &str| p.within(&format!("spin -c {name}"), weight).trim().parse::<u32>().expect("a weight");
    assert!(weigh("double").abs_diff(2 * weigh("limited")) <= 4, "twice the request is twice the weight");
    p.kubectl(&["delete", "pod", "spin", "--now"]);
    // What is asked for is set aside: more than the node has is not given.
    let vast = container("main", "true", ", resources: {requests: {cpu: '4000'}}");
    p.apply(&pod("vast", "", &[vast]));
    p.until_event("vast", "Insufficient cpu");
    assert_eq!(p.value("pod/vast", "{.status.phase}"), "Pending");
    p.kubectl(&["delete", "pod", "vast"]);
}

fn a_sandbox_outlives_its_containers(p: &Program) {
    let line =
        "echo begun; cat /tmp/file 2>/dev/null || true; trap 'exit 1' TERM; while :; do sleep 0.1; done";
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    p.apply(&pod("steady", "volumes: [{name: v, emptyDir: {}}], ", &[container("main", line, mount)]));
    p.until_row("steady", "1/1 Running 0");
    let identity = "readlink /proc/self/ns/net";
    let (ip, namespace) = (p.value("pod/steady", "{.status.podIP}"), p.within("steady", identity));
    p.within("steady", "echo kept | tee /tmp/file >/v/file");
    // The command may be ended together with its container.
    p.kubectl_output(&["exec", "steady", "--", "kill", "-TERM", "1"], None);
    p.until_row("steady", "1/1 Running 1");
    assert_eq!(p.value("pod/steady", "{.status.podIP}"), ip);
    assert_eq!(p.within("steady", identity), namespace);
    assert_eq!(p.within("steady", "cat /v/file"), "kept\n");
    assert_eq!(p.kubectl(&["logs", "steady"]), "begun\n", "files outside volumes are not kept");
    assert_eq!(p.kubectl(&["logs", "steady", "--previous"]), "begun\n");
    p.kubectl(&["delete", "pod", "steady", "--now"]);
}

fn a_pod_on_the_nodes_network(p: &Program) {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let line = format!("mkdir -p /www; echo here >/www/p; httpd -f -p {free} -h /www");
    p.apply(&pod("host", "hostNetwork: true, ", &[container("main", &line, "")]));
    p.until_row("host", "1/1 Running");
    let ip = p.value("pod/host", "{.status.podIP}");
    assert_eq!(ip, p.value("node/node-a", "{.status.addresses[0].address}"));
    p.until("the node's port", |_| fetch(&format!("http://{ip}:{free}/p")), |text| text == "here\n");
    p.kubectl(&["delete", "pod", "host", "--now"]);
}

fn a_port_of_the_node_leads_to_one_pod(p: &Program) {
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let ports = format!(", ports: [{{containerPort: 8080, hostPort: {free}}}]");
    let line = "mkdir -p /www; echo inside >/www/p; httpd -f -p 8080 -h /www";
    p.apply(&pod("mapped", "", &[container("main", line, &ports)]));
    p.until_row("mapped", "1/1 Running");
    let node = p.value("node/node-a", "{.status.addresses[0].address}");
    let url = format!("http://{node}:{free}/p");
    p.until("the node's port", |_| fetch(&url), |text| text == "inside\n");
    let guest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: mapped-guest}}\nspec: {{terminationGracePeriodSeconds: 1, containers: \
         [{{name: main, image: '{}', ports: [{{containerPort: 8000, hostPort: {free}}}]}}]}}\n",
        p.push("hello")
    );
    p.apply(&guest);
    p.until_event("mapped-guest", "didn't have free ports");
    p.kubectl(&["delete", "pod", "mapped", "--now"]);
    p.until_row("mapped-guest", "1/1 Running");
    p.until("the guest has it now", |_| fetch(&url), |text| text.contains("hello"));
    p.kubectl(&["delete", "pod", "mapped-guest", "--now"]);
}

#[test]
fn containers_live_and_end_by_the_rules() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    together(p, &[ends_follow_the_restart_policy, init_containers_go_first, an_ending_pod_has_its_time]);
    together(
        p,
        &[
            an_ending_pod_gets_no_requests,
            images_that_are_missing_are_tried_again,
            arguments_take_their_places,
        ],
    );
    services_do_not_take_a_containers_ports(p);
}

fn ends_follow_the_restart_policy(p: &Program) {
    let one = |name: &str, policy: &str, line: &str| pod(name, policy, &[container("main", line, "")]);
    p.apply(
        &(one("always", "", "exit 0")
            + &one("on-failure-good", "restartPolicy: OnFailure, ", "exit 0")
            + &one("on-failure-bad", "restartPolicy: OnFailure, ", "exit 2")
            + &one("never", "restartPolicy: Never, ", "exit 3")),
    );
    assert_eq!(p.value("pod/always", "{.spec.restartPolicy}"), "Always");
    for name in ["always", "on-failure-bad"] {
        let object = format!("pod/{name}");
        p.until("it is restarted", |p| number(p, &object, &of("main", ".restartCount")), |n| *n >= 2);
        p.until_row(name, "0/1 CrashLoopBackOff");
    }
    p.until_row("on-failure-good", "0/1 Completed 0");
    p.until_row("never", "0/1 Error 0");
    assert_eq!(p.value("pod/never", "{.status.phase}"), "Failed");
    assert_eq!(p.value("pod/never", &of("main", ".state.terminated.exitCode")), "3");
    p.kubectl(&["delete", "pod", "always", "on-failure-good", "on-failure-bad", "never", "--now"]);
}

fn init_containers_go_first(p: &Program) {
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    let init = |first: &str| {
        let one = container("one", first, mount);
        let two = container("two", "sleep 1; echo two >>/v/order", mount);
        format!(
            "restartPolicy: Never, volumes: [{{name: v, emptyDir: {{}}}}], initContainers: [{one}, {two}], "
        )
    };
    let main = [container("main", "echo main >>/v/order; cat /v/order", mount)];
    let held = "while [ ! -e /v/go ]; do sleep 0.1; done; echo one >>/v/order";
    p.apply(&pod("ordered", &init(held), &main));
    p.apply(&pod("stuck", &init("exit 7"), &main));
    p.until_row("ordered", "0/1 Init:0/2");
    let go = |p: &Program| {
        p.kubectl_output(&["exec", "ordered", "-c", "one", "--", "touch", "/v/go"], None).status
    };
    p.until("the first is let go", go, |status| status.success());
    p.until_row("ordered", "0/1 Completed");
    assert_eq!(p.kubectl(&["logs", "ordered"]), "one\ntwo\nmain\n");
    p.until_row("stuck", "0/1 Init:Error");
    assert_eq!(p.value("pod/stuck", &of("main", ".state.waiting.reason")), "PodInitializing");
    p.kubectl(&["delete", "pod", "ordered", "stuck", "--now"]);
}

fn an_ending_pod_has_its_time(p: &Program) {
    let dir = p.scratch().join("ending");
    let volume =
        format!("volumes: [{{name: v, hostPath: {{path: {}, type: DirectoryOrCreate}}}}], ", dir.display());
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    let hook = ", lifecycle: {preStop: {exec: {command: [sh, -c, 'sleep 1; echo hook >>/v/order']}}}";
    let line = "trap 'echo term >>/v/order; exit 0' TERM; touch /v/ready; while :; do sleep 0.1; done";
    p.apply(
        &pod("polite", &volume, &[container("main", line, &format!("{mount}{hook}"))])
            .replace("PeriodSeconds: 2", "PeriodSeconds: 20"),
    );
    let deaf = "trap '' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    p.apply(&pod("deaf", "", &[container("main", deaf, "")]).replace("PeriodSeconds: 2", "PeriodSeconds: 4"));
    p.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: usual}\nspec: {nodeName: nowhere, containers: [{name: main, image: 'localhost/box:1'}]}\n");
    assert_eq!(p.value("pod/usual", "{.spec.terminationGracePeriodSeconds}"), "30");
    p.until("it listens", |_| dir.join("ready").exists(), |there| *there);
    p.until(
        "it is deaf",
        |p| p.kubectl_output(&["exec", "deaf", "--", "ls", "/tmp/ready"], None).status.success(),
        |good| *good,
    );
    p.kubectl(&["delete", "pod", "polite"]);
    assert_eq!(std::fs::read_to_string(dir.join("order")).expect("its words"), "hook\nterm\n");
    let began = Instant::now();
    p.kubectl(&["delete", "pod", "deaf"]);
    let took = began.elapsed().as_secs_f32();
    // The time of deletion is in whole seconds.
    assert!(took >= 3.0, "it has its whole time, not {took} s");
    p.kubectl(&["delete", "pod", "usual", "--force", "--grace-period=0"]);
}

fn an_ending_pod_gets_no_requests(p: &Program) {
    let line = "trap 'sleep 8; exit 0' TERM; httpd -p 8080 -h /www; while :; do sleep 0.1; done";
    let ports = ", ports: [{name: http, containerPort: 8080}]";
    p.apply(
        &pod("leaving", "", &[container("main", line, ports)])
            .replace("PeriodSeconds: 2", "PeriodSeconds: 20"),
    );
    p.apply("apiVersion: v1\nkind: Service\nmetadata: {name: leaving}\nspec: {selector: {app: leaving}, ports: [{port: 80, targetPort: http}]}\n");
    let ready = |p: &Program| p.value("endpoints/leaving", "{.subsets[*].addresses[*].ip}");
    p.until("it is an endpoint", ready, |ips| !ips.is_empty());
    assert_eq!(
        p.value("endpoints/leaving", "{.subsets[0].ports[0].port}"),
        "8080",
        "a port is found by its name"
    );
    p.kubectl(&["delete", "pod", "leaving", "--wait=false"]);
    p.until("it is none any longer", ready, |ips| ips.is_empty());
    p.until_row("leaving", "1/1 Terminating");
    p.kubectl(&["delete", "service", "leaving"]);
}

fn images_that_are_missing_are_tried_again(p: &Program) {
    let image = format!("{}/library/later:1", p.address("registry"));
    let text = pod("later", "", &[container("main", "sleep 600", "")]).replace("localhost/box:1", &image);
    p.apply(&text);
    p.until_value("pod/later", &of("main", ".state.waiting.reason"), "ErrImagePull");
    p.until_row("later", "0/1 ImagePullBackOff");
    p.until_event("later", "Failed to pull image");
    p.wasmk(&["push", wasmk_tests::program::guest("command").to_str().expect("a path"), "library/later:1"]);
    // What was missing turns out to be a program that takes no shell's words, but it is started.
    p.until(
        "it is pulled and started",
        |p| p.events("later"),
        |text| text.contains("Pulled") || text.contains("Started"),
    );
    p.kubectl(&["delete", "pod", "later", "--now"]);
}

fn arguments_take_their_places(p: &Program) {
    let with = |name: &str, words: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: \
             [{{name: main, image: 'localhost/entry:1'{words}}}]}}\n---\n"
        )
    };
    p.apply(
        &(with("as-made", "")
            + &with("own-args", ", args: ['echo of the pod $0; id -u', name]")
            + &with("own-command", ", command: [echo, only, this], workingDir: /tmp")
            + &with("own-place", ", args: ['pwd; echo $ADDED $FROM_IMAGE'], workingDir: /tmp, env: [{name: ADDED, value: more}]")),
    );
    for (name, expect) in [
        ("as-made", "made so\n/work\n1000\nupper\nno /removed\n"),
        ("own-args", "of the pod name\n1000\n"),
        ("own-command", "only this\n"),
        ("own-place", "/tmp\nmore made so\n"),
    ] {
        p.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
        assert_eq!(p.kubectl(&["logs", name]), expect, "{name}");
    }
    p.kubectl(&["delete", "pod", "as-made", "own-args", "own-command", "own-place"]);
}

/// A container listens on the very port of a Service, its own or another's, and uses the Services, too.
fn services_do_not_take_a_containers_ports(p: &Program) {
    let service = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n---\n"
        )
    };
    let serve = |text: &str| format!("mkdir -p /www; echo {text} >/www/p; sleep 1; httpd -f -p 80 -h /www");
    p.apply(&(service("left") + &service("right")));
    for name in ["left", "right"] {
        p.apply(&pod(name, "", &[container("main", &serve(name), "")]));
    }
    for name in ["left", "right"] {
        p.until_row(name, "1/1 Running 0");
    }
    for (from, to) in [("left", "right"), ("right", "left"), ("left", "left")] {
        for host in [
            to.to_string(),
            format!("{to}.default.svc.cluster.local"),
            p.value(&format!("service/{to}"), "{.spec.clusterIP}"),
        ] {
            let ask = |p: &Program| {
                let url = format!("http://{host}/p");
                let out = p.kubectl_output(
                    &["exec", from, "--", "timeout", "5", "wget", "-q", "-O", "-", &url],
                    None,
                );
                String::from_utf8_lossy(&out.stdout).into_owned()
            };
            p.until(&format!("{from} asks {host}"), ask, |text| text.trim() == to);
        }
    }
    assert_eq!(p.within("left", "wget -q -O - http://127.0.0.1/p"), "left\n");
    let server =
        p.kubectl(&["get", "service", "kube-dns", "-n", "kube-system", "-o", "jsonpath={.spec.clusterIP}"]);
    let names = p.within("left", "cat /etc/resolv.conf");
    for line in [
        format!("nameserver {server}"),
        "search default.svc.cluster.local svc.cluster.local cluster.local".into(),
    ] {
        assert!(names.lines().any(|l| l.starts_with(&line)), "{line} in {names}");
    }
    p.kubectl(&["delete", "pod", "left", "right", "--now"]);
}

#[test]
fn containers_are_watched_by_probes() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    together(p, &[commands_tell_of_life, requests_tell_of_life, readiness_decides_about_traffic]);
    together(p, &[probes_keep_their_times, rollouts_wait_for_readiness]);
}

fn commands_tell_of_life(p: &Program) {
    let probe =
        ", livenessProbe: {exec: {command: [cat, /tmp/healthy]}, periodSeconds: 1, failureThreshold: 2}";
    let mortal = container("mortal", "touch /tmp/healthy; sleep 3; rm /tmp/healthy; sleep 600", probe);
    p.apply(&pod("alive", "", &[mortal, container("other", "sleep 600", "")]));
    p.until("it is restarted", |p| number(p, "pod/alive", &of("mortal", ".restartCount")), |n| *n >= 1);
    assert_eq!(p.value("pod/alive", &of("other", ".restartCount")), "0");
    let told = p.kubectl(&["describe", "pod", "alive"]);
    assert!(told.contains("Unhealthy") && told.contains("Liveness probe failed"), "{told}");
    assert!(told.contains("Container mortal failed liveness probe, will be restarted"), "{told}");
    p.kubectl(&["delete", "pod", "alive", "--now"]);
}

fn requests_tell_of_life(p: &Program) {
    let answer = "#!/bin/sh\nwhile read -r line; do case $line in [Xx]-[Cc]ustom:*Awesome?) seen=1 ;; ?) break ;; esac; done\n\
                  [ -n \"$seen\" ] && [ ! -e /tmp/sick ] && printf 'HTTP/1.0 399 Odd\\r\\n\\r\\n' || printf 'HTTP/1.0 400 Bad\\r\\n\\r\\n'\n";
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: answer}}\ndata: {{answer: {}}}\n---\n",
        serde_json::to_string(answer).expect("a string")
    );
    let probe = |path: &str, headers: &str| {
        format!(
            ", volumeMounts: [{{name: v, mountPath: /v}}], livenessProbe: {{httpGet: {{path: {path}, port: 8080{headers}}}, \
             initialDelaySeconds: 2, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2}}"
        )
    };
    let header = ", httpHeaders: [{name: X-Custom, value: Awesome}]";
    let line = "cp /v/answer /tmp/answer; chmod +x /tmp/answer; nc -ll -p 8080 -e /tmp/answer";
    let volume = "volumes: [{name: v, configMap: {name: answer}}], ";
    let tcp = |port: u16| {
        format!(
            ", livenessProbe: {{tcpSocket: {{port: {port}}}, initialDelaySeconds: 2, periodSeconds: 1, failureThreshold: 2}}"
        )
    };
    p.apply(&(map + &pod("asked", volume, &[container("main", line, &probe("/x", header))])));
    p.apply(&pod("bare", volume, &[container("main", line, &probe("/x", ""))]));
    p.apply(&pod("open", "", &[container("main", "httpd -f -p 8080", &tcp(8080))]));
    p.apply(&pod("closed", "", &[container("main", "httpd -f -p 8080", &tcp(8081))]));
    let restarts = |name: &str| number(p, &format!("pod/{name}"), &of("main", ".restartCount"));
    for name in ["bare", "closed"] {
        p.until(&format!("{name} is restarted"), |_| restarts(name), |n| *n >= 1);
        p.until_event(name, "Liveness probe failed");
    }
    for name in ["asked", "open"] {
        let told = p.events(name);
        assert_eq!((restarts(name), told.contains("Unhealthy")), (0, false), "{name}: {told}");
    }
    p.within("asked", "touch /tmp/sick");
    p.until("asked is restarted", |_| restarts("asked"), |n| *n >= 1);
    p.kubectl(&["delete", "pod", "asked", "bare", "open", "closed", "--now"]);
}

fn readiness_decides_about_traffic(p: &Program) {
    let probe = ", readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1, successThreshold: 2}";
    p.apply(&pod("moody", "", &[container("main", "httpd -f -p 8080 -h /www", probe)]));
    p.apply(&pod("plain", "", &[container("main", "sleep 600", "")]));
    p.apply("apiVersion: v1\nkind: Service\nmetadata: {name: moody}\nspec: {selector: {app: moody}, ports: [{port: 8080}]}\n");
    let ready = |p: &Program| p.value("endpoints/moody", "{.subsets[*].addresses[*].ip}");
    p.until_row("moody", "0/1 Running 0");
    p.until_row("plain", "1/1 Running 0");
    p.until_event("moody", "Readiness probe failed");
    assert_eq!(ready(p), "");
    for _ in 0..2 {
        p.within("moody", "touch /tmp/ready");
        p.until_row("moody", "1/1 Running 0");
        p.until("it is an endpoint", ready, |ips| !ips.is_empty());
        let reasons = "{.status.conditions[?(@.status=='True')].reason}{.status.conditions[?(@.status=='True')].message}";
        assert_eq!(p.value("pod/moody", reasons), "", "what is true needs no reason");
        p.within("moody", "rm /tmp/ready");
        p.until_row("moody", "0/1 Running 0");
        p.until("it is none any longer", ready, |ips| ips.is_empty());
        assert_eq!(
            p.value("pod/moody", "{.status.conditions[?(@.type=='Ready')].reason}"),
            "ContainersNotReady"
        );
    }
    p.kubectl(&["delete", "pod", "moody", "plain", "--now"]);
    p.kubectl(&["delete", "service", "moody"]);
}

fn probes_keep_their_times(p: &Program) {
    let note = "cut -d' ' -f1 /proc/uptime >>/tmp/times";
    let probe = format!(
        ", livenessProbe: {{exec: {{command: [sh, -c, {note:?}]}}, initialDelaySeconds: 3, periodSeconds: 2}}"
    );
    let slow = ", livenessProbe: {exec: {command: [sleep, '5']}, periodSeconds: 1, failureThreshold: 2}";
    // Unready only after the third failure in a row: a probe that fails twice of three times stays ready.
    let wavering = "n=$(cat /tmp/n 2>/dev/null || echo 0); n=$((n+1)); echo $n >/tmp/n; [ $((n % 3)) = 1 ]";
    let tolerant = format!(
        ", readinessProbe: {{exec: {{command: [sh, -c, {wavering:?}]}}, periodSeconds: 1}}, livenessProbe: {{exec: {{command: ['true']}}}}"
    );
    p.apply(&pod("timed", "", &[container("main", &format!("{note}; sleep 600"), &probe)]));
    p.apply(&pod("slow", "", &[container("main", "sleep 600", slow)]));
    p.apply(&pod("wavering", "", &[container("main", "sleep 600", &tolerant)]));
    assert_eq!(
        p.value("pod/slow", "{.spec.containers[0].livenessProbe.timeoutSeconds} {.spec.containers[0].livenessProbe.successThreshold}"),
        "1 1"
    );
    let defaults = "{.spec.containers[0].readinessProbe.failureThreshold}";
    assert_eq!(p.value("pod/wavering", defaults), "3");
    assert_eq!(p.value("pod/wavering", "{.spec.containers[0].livenessProbe.periodSeconds}"), "10");
    p.until_event("slow", "Liveness probe failed: no answer within 1 s");
    p.until("slow is restarted", |p| number(p, "pod/slow", &of("main", ".restartCount")), |n| *n >= 1);
    let times = |p: &Program| -> Vec<f64> {
        let out = p.kubectl_output(&["exec", "timed", "--", "cat", "/tmp/times"], None);
        String::from_utf8_lossy(&out.stdout).lines().filter_map(|t| t.parse().ok()).collect()
    };
    let times = p.until("four probes", times, |times| times.len() >= 5);
    assert!(times[1] - times[0] >= 2.5, "not before its delay: {times:?}");
    assert!(times[4] - times[1] >= 5.0, "not more often than its period: {times:?}");
    let count = |p: &Program| p.within("wavering", "cat /tmp/n").trim().parse::<u32>().unwrap_or(0);
    p.until_row("wavering", "1/1 Running 0");
    let since = "{.status.conditions[?(@.type=='Ready')].status} {.status.conditions[?(@.type=='Ready')].lastTransitionTime}";
    let (from, ready) = (count(p), p.value("pod/wavering", since));
    p.until("six more probes", |p| count(p), |n| *n >= from + 6);
    // It has been ready all the time.
    assert!(ready.starts_with("True "), "{ready}");
    assert_eq!(p.value("pod/wavering", since), ready);
    p.kubectl(&["delete", "pod", "timed", "slow", "wavering", "--now"]);
}

fn rollouts_wait_for_readiness(p: &Program) {
    let deployment = |probe: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: careful}}\nspec: {{replicas: 3, selector: {{matchLabels: {{app: careful}}}}, \
             strategy: {{rollingUpdate: {{maxUnavailable: 1, maxSurge: 1}}}}, template: {{metadata: {{labels: {{app: careful}}}}, spec: \
             {{terminationGracePeriodSeconds: 0, containers: [{}]}}}}}}\n",
            container(
                "main",
                "sleep 600",
                &format!(", readinessProbe: {{exec: {{command: [{probe}]}}, periodSeconds: 1}}")
            )
        )
    };
    p.apply(&deployment("'true'"));
    p.kubectl(&["rollout", "status", "deployment/careful", "--timeout=60s"]);
    p.apply(&deployment("'false'"));
    p.until_value("deployment/careful", "{.status.updatedReplicas}", "2");
    let running = |p: &Program| {
        let path = "jsonpath={range .items[*]}{.status.phase}{\"\\n\"}{end}";
        p.kubectl(&["get", "pods", "-l", "app=careful", "-o", path]).matches("Running").count()
    };
    // Two old ones that are ready, and two new ones that run and never will be.
    p.until("the new ones run", running, |n| *n == 4);
    assert_eq!(p.value("deployment/careful", "{.status.readyReplicas}"), "2");
    let late = p.kubectl_output(&["rollout", "status", "deployment/careful", "--timeout=3s"], None);
    assert!(!late.status.success());
    assert_eq!(p.value("deployment/careful", "{.status.readyReplicas} {.status.updatedReplicas}"), "2 2");
    p.kubectl(&["delete", "deployment", "careful"]);
}

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
