//! Guests behind the second wall: processes of their own, one for each namespace and each container with volumes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use wasmk_tests::{node::fetch, program::Program};

/// The worker processes of a program, with their users.
fn workers(agent: u32) -> BTreeMap<u32, u32> {
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let look = |id: u32| {
        let line = std::fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u32>().ok()
        };
        let ours = line.contains("wasm-worker") && field("PPid:") == Some(agent);
        ours.then(|| Some((id, field("Uid:")?))).flatten()
    };
    ids.filter_map(look).collect()
}

fn field(process: u32, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
    line.trim().to_owned()
}

fn served(name: &str, image: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 1, \
         automountServiceAccountToken: false, {spec}containers: [{{name: main, image: '{image}', \
         ports: [{{containerPort: 8000}}], resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}}}]}}\n---\n"
    )
}

fn apply_in(p: &Program, namespace: &str, manifest: &str) {
    let file = p.scratch().join(format!("{namespace}.yaml"));
    std::fs::write(&file, manifest).expect("a file");
    p.kubectl(&["apply", "-n", namespace, "-f", file.to_str().expect("a path")]);
}

fn in_namespace(p: &Program, namespace: &str, name: &str, path: &str) -> String {
    let path = format!("jsonpath={path}");
    let out = p.kubectl_output(&["get", "pod", name, "-n", namespace, "-o", &path], None);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn until_running(p: &Program, namespace: &str, name: &str) -> String {
    let ready = "{.status.containerStatuses[0].ready}";
    p.until(&format!("{name} is ready"), |p| in_namespace(p, namespace, name, ready), |v| v == "true");
    in_namespace(p, namespace, name, "{.status.podIP}")
}

#[test]
fn guests_run_in_processes_of_their_own() {
    let program = Program::start_with(&["--wasm-isolation", "process"]);
    let p = &program;
    let hello = p.push("hello");
    assert!(p.log().contains("with these walls"), "{}", p.log());
    for namespace in ["one", "two"] {
        p.kubectl(&["create", "namespace", namespace]);
        apply_in(p, namespace, &served("web", &hello, ""));
    }
    let [one, two] = ["one", "two"].map(|namespace| until_running(p, namespace, "web"));
    for ip in [&one, &two] {
        let answer = fetch(&format!("http://{ip}:8000/"));
        assert!(answer.contains("hello"), "{answer}");
    }
    let found = p.until("two workers", |p| workers(p.id()), |found| found.len() == 2);
    each_is_inside_its_walls(p, &found);
    a_lost_worker_is_noticed_in_its_namespace_alone(p, &found, &one, &two);
    guests_with_volumes_are_alone(p);
    limits_hold(p);
    none_outlives_its_agent(program);
}

fn each_is_inside_its_walls(p: &Program, found: &BTreeMap<u32, u32>) {
    let root = field(p.id(), "Uid:").starts_with("0\t");
    let users: BTreeSet<u32> = found.values().copied().collect();
    if root {
        assert!(users.len() == 2 && users.iter().all(|user| *user >= 1_879_048_192), "{found:?}");
    }
    for worker in found.keys() {
        assert_eq!(
            (field(*worker, "CapEff:").as_str(), field(*worker, "NoNewPrivs:").as_str()),
            ("0000000000000000", "1")
        );
        assert_eq!(field(*worker, "Seccomp:"), "2");
        let variables = std::fs::read(format!("/proc/{worker}/environ")).unwrap_or_default();
        assert!(variables.is_empty(), "{}", String::from_utf8_lossy(&variables));
        // Sockets, its own memory and what programs make for themselves: nothing of the agent's.
        for file in std::fs::read_dir(format!("/proc/{worker}/fd")).expect("its files").flatten() {
            let name = std::fs::read_link(file.path()).unwrap_or_default().display().to_string();
            let kinds = ["socket:", "pipe:", "anon_inode:", "/memfd:"];
            let own = name.is_empty()
                || name.ends_with("/pagemap")
                || kinds.iter().any(|kind| name.starts_with(kind));
            assert!(own, "{name}");
        }
    }
}

fn a_lost_worker_is_noticed_in_its_namespace_alone(
    p: &Program,
    found: &BTreeMap<u32, u32>,
    one: &str,
    two: &str,
) {
    let restarts = "{.status.containerStatuses[0].restartCount}";
    let victim = found.keys().next().expect("a worker");
    let killed = std::process::Command::new("kill").args(["-9", &victim.to_string()]).status();
    assert!(killed.expect("kill runs").success());
    let counts = |p: &Program| ["one", "two"].map(|namespace| in_namespace(p, namespace, "web", restarts));
    let counts = p.until("its pod restarts", counts, |counts| counts.iter().any(|count| count == "1"));
    assert!(counts.iter().any(|count| count == "0"), "{counts:?}");
    let lost = if counts[0] == "1" { "one" } else { "two" };
    let ended = "{.status.containerStatuses[0].lastState.terminated";
    assert_eq!(in_namespace(p, lost, "web", &format!("{ended}.reason}}")), "Error");
    let message = in_namespace(p, lost, "web", &format!("{ended}.message}}"));
    assert!(message.contains("signal 9"), "{message}");
    for (namespace, ip) in [("one", one), ("two", two)] {
        until_running(p, namespace, "web");
        p.until("it answers", |_| fetch(&format!("http://{ip}:8000/")), |answer| answer.contains("hello"));
    }
}

fn guests_with_volumes_are_alone(p: &Program) {
    let before = workers(p.id()).len();
    let tool = p.push("command");
    let secret = p.scratch().join("secret");
    std::fs::write(&secret, "not for guests").expect("a file");
    let pod = |name: &str, args: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, terminationGracePeriodSeconds: 1, \
             volumes: [{{name: v, emptyDir: {{}}}}], containers: [{{name: main, image: '{tool}', args: {args}, \
             volumeMounts: [{{name: v, mountPath: /v}}]}}]}}\n---\n"
        )
    };
    p.apply(&(pod("loops", "[loop]") + &pod("writes", "[write, /v/file, text]")));
    p.until_value("pod/writes", "{.status.phase}", "Succeeded");
    p.until_row("loops", "1/1 Running");
    p.until("a worker more", |p| workers(p.id()).len(), |count| *count == before + 1);
    p.kubectl(&["delete", "pod", "loops", "writes", "--timeout=30s"]);
    p.until("a worker less", |p| workers(p.id()).len(), |count| *count == before);
}

fn limits_hold(p: &Program) {
    let tool = p.push("command");
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: hungry}}\nspec: {{restartPolicy: Never, automountServiceAccountToken: false, \
         containers: [{{name: main, image: '{tool}', args: [memory], resources: {{limits: {{memory: 64Mi}}}}}}]}}\n"
    );
    p.apply(&pod);
    p.until_value("pod/hungry", "{.status.phase}", "Failed");
    assert_eq!(p.value("pod/hungry", "{.status.containerStatuses[0].state.terminated.reason}"), "OOMKilled");
}

fn none_outlives_its_agent(mut program: Program) {
    let found = workers(program.id());
    assert!(!found.is_empty());
    program = program.kill();
    let left = |_: &Program| found.keys().filter(|id| Path::new(&format!("/proc/{id}")).exists()).count();
    program.until("its workers end", left, |left| *left == 0);
}

#[test]
fn a_pod_asks_for_the_wall_by_its_class() {
    let program = Program::start_with(&["--wasm-isolation", "none"]);
    let p = &program;
    let hello = p.push("hello");
    p.apply(
        &(served("plain", &hello, "") + &served("apart", &hello, "runtimeClassName: wasmtime-isolated, ")),
    );
    let [plain, apart] = ["plain", "apart"].map(|name| until_running(p, "default", name));
    assert!(fetch(&format!("http://{plain}:8000/")).contains("hello"));
    assert!(fetch(&format!("http://{apart}:8000/")).contains("hello"));
    assert_eq!(workers(p.id()).len(), 1);
    p.kubectl(&["delete", "pod", "apart", "--timeout=30s"]);
    assert!(fetch(&format!("http://{plain}:8000/")).contains("hello"));
}
