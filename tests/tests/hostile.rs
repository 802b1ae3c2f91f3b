//! Guests that mean harm, beside one that means well: it goes on answering, the node stays ready, and each of
//! them ends, or is held, with a reason that its user understands.

use std::{process::Command, time::Duration};

use wasmk_tests::{node::fetch, program::Program};

fn command(name: &str, image: &str, args: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, terminationGracePeriodSeconds: 1{spec}, \
         containers: [{{name: main, image: '{image}', args: {args}, resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}, \
         volumeMounts: [{{name: v, mountPath: /v}}]}}]}}\n---\n"
    )
}

fn served(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{terminationGracePeriodSeconds: 1, \
         containers: [{{name: main, image: '{image}', ports: [{{containerPort: 8000}}], resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}}}]}}\n---\n"
    )
}

const ENDED: &str = "{.status.containerStatuses[0].state.terminated";

/// The neighbour answers and the node is well.
fn all_is_well(p: &Program, after: &str) {
    let ip = p.value("pod/neighbour", "{.status.podIP}");
    let answer = fetch(&format!("http://{ip}:8000/"));
    assert!(answer.contains("hello"), "after {after}: {answer}");
    assert_eq!(p.value("node/node-a", "{.status.conditions[?(@.type=='Ready')].status}"), "True");
    assert_eq!(p.value("pod/neighbour", "{.status.containerStatuses[0].restartCount}"), "0", "after {after}");
}

#[test]
fn hostile_guests_harm_nobody() {
    let program = Program::start();
    let p = &program;
    p.apply(&served("neighbour", &p.push("hello")));
    p.until_row("neighbour", "1/1 Running");
    guests_that_end_say_why(p);
    files_outside_are_out_of_reach(p);
    guests_that_go_on_are_held(p);
    requests_have_their_bounds(p);
}

fn guests_that_end_say_why(p: &Program) {
    let (hostile, tool) = (p.push("hostile"), p.push("command"));
    let volume = ", volumes: [{name: v, emptyDir: {}}]";
    let cases = [
        ("memory", &tool, "[memory]", "OOMKilled", ""),
        ("recursion", &hostile, "[recurse]", "Error", "recurse"),
        ("panic", &tool, "[panic]", "Error", ""),
        ("call", &tool, "[trap]", "Error", "undefined element"),
        ("random", &hostile, "[random, '32000000']", "Error", "random"),
        ("sockets", &hostile, "[sockets]", "Error", "resource table has no free keys"),
        ("clock", &hostile, "[clock, '100000']", "Completed", ""),
    ];
    for (name, image, args, ..) in &cases {
        p.apply(&command(name, image, args, volume));
    }
    for (name, _, _, reason, message) in &cases {
        let object = format!("pod/{name}");
        p.until(
            &format!("{name} ends"),
            |p| p.value(&object, "{.status.phase}"),
            |v| v == "Succeeded" || v == "Failed",
        );
        assert_eq!(p.value(&object, &format!("{ENDED}.reason}}")), *reason, "{name}");
        let told = p.value(&object, &format!("{ENDED}.message}}")) + &p.kubectl(&["logs", name]);
        assert!(told.contains(message), "{name}: {told}");
        all_is_well(p, name);
    }
    assert_eq!(p.value("pod/memory", &format!("{ENDED}.exitCode}}")), "137");
}

fn files_outside_are_out_of_reach(p: &Program) {
    let tool = p.push("command");
    let dir = p.scratch().join("volume");
    std::fs::create_dir_all(dir.join("in")).expect("a directory");
    std::fs::write(p.scratch().join("secret"), "not for guests").expect("a file");
    for (link, to) in [("up", "../secret"), ("top", "/"), ("in/far", "../../secret")] {
        std::os::unix::fs::symlink(to, dir.join(link)).expect("a link");
    }
    let volume = format!(", volumes: [{{name: v, hostPath: {{path: {}}}}}]", dir.display());
    let paths = [
        "/v/up",
        "/v/../secret",
        "/v/in/../../secret",
        "/v/in/far",
        "/v/top/etc/passwd",
        "/etc/passwd",
        "/proc/self/environ",
    ];
    for (n, path) in paths.iter().enumerate() {
        p.apply(&command(&format!("escape-{n}"), &tool, &format!("[read, {path}]"), &volume));
    }
    for (n, path) in paths.iter().enumerate() {
        let name = format!("escape-{n}");
        p.until_value(&format!("pod/{name}"), "{.status.phase}", "Failed");
        let log = p.kubectl(&["logs", &name]);
        assert!(
            log.starts_with("error: ") && !log.contains("not for guests") && !log.contains("root:"),
            "{path}: {log}"
        );
    }
    // Nor can anything be written there.
    p.apply(&command("escape-write", &tool, "[write, /v/up, overwritten]", &volume));
    p.until_value("pod/escape-write", "{.status.phase}", "Failed");
    assert_eq!(std::fs::read_to_string(p.scratch().join("secret")).expect("the file"), "not for guests");
    all_is_well(p, "attempts to escape");
}

fn guests_that_go_on_are_held(p: &Program) {
    let tool = p.push("command");
    let volume = ", volumes: [{name: v, emptyDir: {}}]";
    p.apply(&(command("spinning", &tool, "[loop]", volume) + &command("flooding", &tool, "[flood]", volume)));
    for name in ["spinning", "flooding"] {
        p.until_row(name, "1/1 Running");
    }
    let uid = p.value("pod/flooding", "{.metadata.uid}");
    let logs = format!("{}/node/logs/default_flooding_{uid}/main", p.data_dir());
    let sizes = || -> Vec<u64> {
        let files = std::fs::read_dir(&logs).into_iter().flatten().flatten();
        files.filter_map(|f| Some(std::fs::metadata(f.path()).ok()?.len())).collect()
    };
    // Two full files were moved away, and the oldest of more is gone.
    p.until("its log is rotated", |_| sizes(), |sizes| sizes.iter().filter(|s| **s >= 10 << 20).count() >= 2);
    assert!(sizes().iter().sum::<u64>() < 45 << 20, "{:?}", sizes());
    all_is_well(p, "a loop and a flood");
    p.kubectl(&["delete", "pod", "spinning", "flooding", "--timeout=30s"]);
    assert!(!std::path::Path::new(&logs).exists());
}

/// Status code of a request.
fn ask(args: &[&str], url: &str) -> String {
    let out = Command::new("curl")
        .args(["-s", "--max-time", "8", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(args)
        .arg(url)
        .output()
        .expect("curl runs");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn requests_have_their_bounds(p: &Program) {
    p.apply(&served("bad", &p.push("misbehave-http")));
    p.until_row("bad", "1/1 Running");
    let ip = p.value("pod/bad", "{.status.podIP}");
    let url = |path: &str| format!("http://{ip}:8000{path}");
    let large = format!("X-Large: {}", "x".repeat(100_000));
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().flat_map(|h| ["-H", h]).collect();
    for args in [&["-H", &large, "-H", &large.replace("Large", "Other")][..], &many] {
        let code = ask(args, &url("/"));
        assert!(["400", "404", "413", "431"].contains(&code.as_str()), "{code}");
    }
    let length = ["-X", "POST", "-H", "Expect:", "-H", "Content-Length: 2000000000", "-d", ""];
    assert_eq!(ask(&length, &url("/")), "413");
    for (path, expect) in [("/panic", "500"), ("/memory", "500"), ("/exit", "500")] {
        let code = ask(&[], &url(path));
        assert!(code.starts_with('5'), "{path}: {code}, not {expect}");
        all_is_well(p, path);
    }
    // It calls itself for every call; who asked leaves, and with him all of it.
    let began = std::time::Instant::now();
    let spawning = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&[], &url("/spawn")));
        while !asked.is_finished() {
            all_is_well(p, "calls to itself");
            std::thread::sleep(Duration::from_millis(100));
        }
        asked.join().expect("curl ends")
    });
    assert!(began.elapsed() < Duration::from_secs(60), "{spawning}");
    let slots = |p: &Program| {
        let text = p.kubectl(&["get", "--raw", "/api/v1/nodes/node-a/proxy/metrics"]);
        let row = text.lines().find_map(|l| l.strip_prefix("wasmk_runtime_slots_in_use "));
        row.and_then(|n| n.trim().parse::<u32>().ok())
    };
    p.until("everything is given back", slots, |n| *n == Some(0));
    p.kubectl(&["delete", "pod", "bad", "--timeout=30s"]);
    all_is_well(p, "everything");
}
