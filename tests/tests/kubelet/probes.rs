//! How probes decide about restarts, traffic and rollouts.

use wasmk_tests::{
    node::{Node, container, pod, together},
    program::Program,
};

use crate::{number, of};

#[test]
fn containers_are_watched_by_probes() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    together(p, &[commands_tell_of_life, requests_tell_of_life, readiness_decides_about_traffic]);
    together(p, &[probes_keep_their_times, rollouts_wait_for_readiness]);
}

fn commands_tell_of_life(p: &Program) {
    let probe = ", livenessProbe: {exec: {command: [cat, /tmp/healthy]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 2}";
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
             initialDelaySeconds: 4, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2}}"
        )
    };
    let header = ", httpHeaders: [{name: X-Custom, value: Awesome}]";
    let line = "cp /v/answer /tmp/answer; chmod +x /tmp/answer; nc -ll -p 8080 -e /tmp/answer";
    let volume = "volumes: [{name: v, configMap: {name: answer}}], ";
    let tcp = |port: u16| {
        format!(
            ", livenessProbe: {{tcpSocket: {{port: {port}}}, initialDelaySeconds: 4, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2}}"
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
    let probe = ", readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1, timeoutSeconds: 30, failureThreshold: 1, successThreshold: 2}";
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
        ", livenessProbe: {{exec: {{command: [sh, -c, {note:?}]}}, initialDelaySeconds: 3, periodSeconds: 2, timeoutSeconds: 30}}"
    );
    let slow = ", livenessProbe: {exec: {command: [sleep, '5']}, periodSeconds: 1, failureThreshold: 2}";
    // Unready only after the third failure in a row: a probe that fails twice of three times stays ready. An answer that
    // a busy machine delays is no failure here.
    let wavering = "n=$(cat /tmp/n 2>/dev/null || echo 0); n=$((n+1)); echo $n >/tmp/n; [ $((n % 3)) = 1 ]";
    let tolerant = format!(
        ", readinessProbe: {{exec: {{command: [sh, -c, {wavering:?}]}}, periodSeconds: 1, timeoutSeconds: 30}}, livenessProbe: {{exec: {{command: ['true']}}}}"
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
    let times = p.until("seven probes", times, |times| times.len() >= 8);
    assert!(times[1] - times[0] >= 2.5, "not before its delay: {times:?}");
    // Each may begin late, on a busy machine by a period.
    assert!(times[7] - times[1] >= 10.0, "not more often than its period: {times:?}");
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
