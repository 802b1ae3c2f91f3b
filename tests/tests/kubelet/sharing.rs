//! What containers of a pod share, what pods do not, and how a node's memory and processors are divided.

use std::process::Command;

use wasmk_tests::{
    node::{Node, container, fetch, pod, together},
    program::Program,
};

use crate::{number, of};

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
        p.until_log(&format!("duo -c {name}"), &format!("from {name}\n"));
        assert_eq!(p.within(&format!("duo -c {name}"), "hostname"), "duo\n");
    }
    assert!(p.kubectl_refused(&["logs", "duo", "-c", "none"], None).contains("container none is not valid"));
    let page = |p: &Program| {
        p.kubectl_output(&["exec", "duo", "-c", "b", "--", "wget", "-qO-", "http://127.0.0.1:8080/p"], None)
    };
    p.until("the page of the other", page, |out| out.stdout == b"page\n");
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
    let own = Command::new("ip").args(["-o", "-4", "address"]).output().expect("ip runs");
    let own = String::from_utf8_lossy(&own.stdout).into_owned();
    let own: Vec<&str> =
        own.split_whitespace().filter_map(|word| word.split_once('/')).map(|(ip, _)| ip).collect();
    let is_visitor = |log: &String| {
        let mut words = log.split(|c: char| !c.is_ascii_digit() && c != '.');
        words.any(|word| own.contains(&word))
    };
    p.until("from whom", |p| p.kubectl(&["logs", "visited"]), is_visitor);
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
    let written = |p: &Program| p.within("memory -c calm", "stat -c %s /dev/shm/x");
    p.until("all is written", written, |text| *text == format!("{}\n", 40 << 20));
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
    // Ticks of a hundredth of a second that its first process had, and the seconds that went by, which are read
    // around them: it takes its time to read, too.
    let look = "ticks() { cut -d' ' -f14 /proc/1/stat; }; now() { cut -d' ' -f1 /proc/uptime; }; \
                from=$(now); a=$(ticks); sleep 4; b=$(ticks); to=$(now); echo $a $from $b $to";
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
        "trap 'exit 1' TERM; echo begun; cat /tmp/file 2>/dev/null || true; while :; do sleep 0.1; done";
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    p.apply(&pod("steady", "volumes: [{name: v, emptyDir: {}}], ", &[container("main", line, mount)]));
    p.until_row("steady", "1/1 Running 0");
    p.until_log("steady", "begun\n");
    let identity = "readlink /proc/self/ns/net";
    let (ip, namespace) = (p.value("pod/steady", "{.status.podIP}"), p.within("steady", identity));
    p.within("steady", "echo kept | tee /tmp/file >/v/file");
    // The command may be ended together with its container.
    p.kubectl_output(&["exec", "steady", "--", "kill", "-TERM", "1"], None);
    p.until_row("steady", "1/1 Running 1");
    assert_eq!(p.value("pod/steady", "{.status.podIP}"), ip);
    assert_eq!(p.within("steady", identity), namespace);
    assert_eq!(p.within("steady", "cat /v/file"), "kept\n");
    // Files outside volumes are not kept.
    p.until_log("steady", "begun\n");
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
