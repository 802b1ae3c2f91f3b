//! How containers start, end and are started again, and the time an ending pod has.

use std::time::Instant;

use wasmk_tests::{
    node::{Node, container, pod, together},
    program::Program,
};

use crate::{number, of};

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
