//! Tables: a pod and its state in a line, the plan and the status out.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;
use wasmk_api::k8s_openapi::api::core::v1::PodStatus;

use super::*;
use crate::pod::{state::Verdict, status};

fn at(seconds: i64) -> Timestamp {
    Timestamp(wasmk_api::k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
}

/// `policy; init a, side b; main c, main d`
fn pod(policy: &str, containers: &str) -> Pod {
    let (mut init, mut main) = (vec![], vec![]);
    for item in containers.split(", ") {
        match item.split_once(' ') {
            Some(("init", name)) => init.push(json!({"name": name, "image": "i"})),
            Some(("side", name)) => init.push(json!({"name": name, "image": "i", "restartPolicy": "Always"})),
            _ => main.push(json!({"name": item, "image": "i"})),
        }
    }
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"restartPolicy": policy, "initContainers": init, "containers": main},
    }))
    .unwrap()
}

/// `a run, b end 1 @5 wait 10, c stop @9` at second 100.
fn state(text: &str) -> PodState {
    let mut out = PodState {
        seen: Some(at(0)),
        setup: Setup::Done,
        ip: Some(Ipv4Addr::LOCALHOST),
        ..PodState::default()
    };
    for item in text.split(", ").filter(|t| !t.is_empty()) {
        let words: Vec<&str> = item.split(' ').collect();
        let number = |i: usize| words[i].trim_start_matches('@').parse::<i64>().unwrap();
        let c = out.container(words[0]);
        c.phase = Phase::Running { since: at(0) };
        (c.started, c.ready) = (true, true);
        match words[1] {
            "run" => {}
            "begin" => c.started = false,
            "found" => c.orphan = true,
            "sick" => c.unhealthy = Some("Liveness probe failed".into()),
            "start" => c.phase = Phase::Starting,
            "stop" => c.phase = Phase::Stopping { since: at(0), deadline: at(number(2)), killed: false },
            "killed" => c.phase = Phase::Stopping { since: at(0), deadline: at(0), killed: true },
            "pull" => {
                c.phase = Phase::Blocked {
                    reason: "ErrImagePull".into(),
                    message: "no such image".into(),
                    since: at(number(2)),
                    until: at(number(2) + 10),
                };
            }
            "end" => {
                c.end(
                    number(2) as i32,
                    if number(2) == 0 { "Completed" } else { "Error" },
                    "",
                    at(number(3)),
                );
                c.delay = words.get(5).map_or(0, |w| w.parse().unwrap());
            }
            other => panic!("{other}"),
        }
    }
    out
}

fn show(plan: &Plan) -> String {
    let mut out: Vec<String> = plan
        .actions
        .iter()
        .map(|a| match a {
            Action::Setup => "setup".into(),
            Action::Start(c) => format!("start {c}"),
            Action::Adopt(c) => format!("adopt {c}"),
            Action::Stop { container, grace, .. } => format!("stop {container} {}", grace.as_secs()),
            Action::Kill(c) => format!("kill {c}"),
            Action::Fail { reason, .. } => format!("fail {reason}"),
            Action::Remove => "remove".into(),
        })
        .collect();
    if let Some(wake) = plan.wake {
        out.push(format!("wake {}", wake.0.as_second()));
    }
    out.join(", ")
}

fn check(policy: &str, containers: &str, known: &str, expect: &str) {
    let plan = plan(&pod(policy, containers), &state(known), at(100));
    assert_eq!(show(&plan), expect, "{policy} | {containers} | {known}");
}

#[test]
fn starts_in_order() {
    check("Always", "a", "", "start a");
    check("Always", "a, b", "a start", "start b");
    check("Always", "init i, init j, a", "", "start i");
    check("Always", "init i, init j, a", "i end 0 @5", "start j");
    check("Always", "init i, init j, a", "i end 0 @5, j start", "");
    check("Always", "init i, init j, a", "i end 0 @5, j end 0 @9", "start a");
    check("Always", "side s, a", "s start", "");
    check("Always", "side s, a", "s begin", "");
    check("Always", "side s, a", "s run", "start a");
    check("Always", "side s, a", "s end 1 @5, a run", "start s");
}

#[test]
fn what_was_found_running_is_adopted() {
    check("Always", "a, b", "a found, b run", "adopt a");
    check("Never", "side s, a", "s found, a found", "adopt s, adopt a");
}

#[test]
fn restarts_by_policy_and_backs_off() {
    check("Always", "a", "a end 0 @99", "start a");
    check("Always", "a", "a end 1 @95 wait 10", "wake 105");
    check("Always", "a", "a end 1 @90 wait 10", "start a");
    check("OnFailure", "a", "a end 0 @90", "");
    check("OnFailure", "a", "a end 1 @90", "start a");
    check("Never", "a", "a end 1 @90", "");
    check("Never", "a, b", "a end 1 @90, b run", "");
    check("OnFailure", "init i, a", "i end 1 @99 wait 20", "wake 119");
    check("Never", "init i, a", "i end 1 @99", "");
    check("Always", "a", "a pull @99", "wake 101");
    check("Always", "a", "a pull @95", "wake 105");
    check("Always", "a", "a pull @90", "start a");
    check("Always", "a", "a sick", "stop a 30");
}

#[test]
fn a_finished_pod_ends_its_sidecars() {
    check("Never", "side s, a", "s run, a run", "");
    check("Never", "side s, a", "s run, a end 0 @90", "stop s 30");
    check("Never", "side s, side t, a", "s run, t run, a end 0 @90", "stop t 30");
}

#[test]
fn deletion_stops_kills_then_removes() {
    let check = |known: &str, expect: &str| {
        let mut pod = pod("Always", "side s, a, b");
        pod.metadata.deletion_grace_period_seconds = Some(20);
        pod.metadata.deletion_timestamp =
            Some(wasmk_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(110).0));
        assert_eq!(show(&plan(&pod, &state(known), at(100))), expect, "{known}");
    };
    check("a run, b run, s run", "stop a 20, stop b 20");
    check("a stop @120, b end 0 @90, s run", "wake 110");
    check("a stop @100, s run", "kill a");
    check("a killed, s run", "");
    check("a end 137 @99, s run", "stop s 20");
    check("a end 137 @99, b start, s end 0 @99", "remove");
    check("", "remove");
}

#[test]
fn deadline_and_verdict() {
    let mut p = pod("Always", "a");
    p.spec.as_mut().unwrap().active_deadline_seconds = Some(60);
    assert_eq!(show(&plan(&p, &state("a run"), at(30))), "wake 60");
    let mut s = state("a run");
    assert_eq!(show(&plan(&p, &s, at(60))), "fail DeadlineExceeded");
    s.verdict = Some(Verdict { reason: "DeadlineExceeded".into(), message: String::new() });
    assert_eq!(show(&plan(&p, &s, at(60))), "stop a 30");
    s.settled = true;
    assert_eq!(show(&plan(&p, &s, at(60))), "");
}

/// Phase, then each container's state, then the conditions that are true.
fn check_status(policy: &str, containers: &str, known: &str, expect: &str) {
    let pod = pod(policy, containers);
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let status = status::build(&pod, &state(known), host, &PodStatus::default(), at(100));
    let mut out = vec![status.phase.clone().unwrap()];
    for c in status.init_container_statuses.iter().chain(&status.container_statuses).flatten() {
        let s = c.state.clone().unwrap();
        let reason = s.waiting.and_then(|w| w.reason).or(s.terminated.and_then(|t| t.reason));
        out.push(format!("{} {}", c.name, reason.unwrap_or("Running".into())));
    }
    let truths =
        status.conditions.iter().flatten().filter(|c| c.status == "True" && c.type_ != "PodScheduled");
    let names: Vec<&str> = truths.map(|c| c.type_.as_str()).collect();
    assert_eq!(
        format!("{} | {}", out.join(", "), names.join(" ")),
        expect,
        "{policy} | {containers} | {known}"
    );
}

#[test]
fn status_tells_the_truth() {
    let ok = "PodReadyToStartContainers Initialized Ready ContainersReady";
    let up = "PodReadyToStartContainers Initialized";
    check_status("Always", "a", "", &format!("Pending, a ContainerCreating | {up}"));
    check_status("Always", "a", "a run", &format!("Running, a Running | {ok}"));
    check_status(
        "Always",
        "a, b",
        "a run, b start",
        &format!("Pending, a Running, b ContainerCreating | {up}"),
    );
    check_status("Always", "a", "a end 1 @99 wait 10", &format!("Running, a CrashLoopBackOff | {up}"));
    check_status("Always", "a", "a end 1 @99", &format!("Running, a Error | {up}"));
    check_status("Never", "a", "a end 0 @99", "Succeeded, a Completed | Initialized");
    check_status("Never", "a, b", "a end 1 @99, b end 0 @99", "Failed, a Error, b Completed | Initialized");
    check_status("Always", "a", "a pull @99", &format!("Pending, a ErrImagePull | {up}"));
    check_status("Always", "a", "a pull @95", &format!("Pending, a ImagePullBackOff | {up}"));
    check_status(
        "Always",
        "init i, a",
        "i run",
        "Pending, i Running, a PodInitializing | PodReadyToStartContainers",
    );
    check_status("Never", "init i, a", "i end 1 @9", "Failed, i Error, a PodInitializing | ");
}

#[test]
fn transition_times_stay_while_nothing_changes() {
    let (pod, state) = (pod("Always", "a"), state("a run"));
    let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let first = status::build(&pod, &state, host, &PodStatus::default(), at(100));
    assert_eq!(status::build(&pod, &state, host, &first, at(200)), first);
}

#[test]
fn quality_of_service() {
    for (resources, class) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
        (json!({"limits": {"cpu": "0"}}), "BestEffort"),
    ] {
        let spec: PodSpec =
            serde_json::from_value(json!({"containers": [{"name": "a", "resources": resources}]})).unwrap();
        assert_eq!(status::qos_class(&spec), class, "{resources}");
    }
}
