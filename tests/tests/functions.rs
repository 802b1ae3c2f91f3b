//! Functions as their users meet them: deployed from a file, answered from zero, gone when idle.

use std::sync::LazyLock;

use wasmk_tests::program::{Program, guest};

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);

fn deploy(program: &Program, name: &str, file: &str, flags: &[&str]) -> String {
    let file = guest(file);
    let mut args = vec!["fn", "deploy", file.to_str().expect("a UTF-8 path"), "--name", name];
    args.extend(flags);
    let said = program.wasmk(&args);
    let host = format!("{name}.default.example.com");
    assert!(said.contains(&format!("http://{host}")), "{said}");
    host
}

/// The function's pods that are not ending.
fn pods(program: &Program, name: &str) -> usize {
    let selector = format!("serving.knative.dev/service={name}");
    program.kubectl(&["get", "pods", "-l", &selector, "-o", "name"]).lines().count()
}

#[test]
fn is_answered_from_zero_and_goes_back_to_zero() {
    let host = deploy(&CLUSTER, "sleeper", "hello-http", &["--window", "6s", "-e", "TARGET=you"]);
    CLUSTER.until("no pod before", |p| pods(p, "sleeper"), |n| *n == 0);
    assert_eq!(CLUSTER.call(&host, "/"), (200, "hello you\n".into()));
    CLUSTER.until("a pod while active", |p| pods(p, "sleeper"), |n| *n == 1);
    CLUSTER.until("no pod after the window", |p| pods(p, "sleeper"), |n| *n == 0);
    assert_eq!(CLUSTER.call(&host, "/"), (200, "hello you\n".into()));
}

#[test]
fn has_the_columns_of_knative() {
    deploy(&CLUSTER, "columns", "hello-http", &[]);
    let table = CLUSTER.kubectl(&["get", "ksvc", "columns"]);
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON"]);
    let row = ["columns", "http://columns.default.example.com", "columns-00001", "columns-00001", "True"];
    assert_eq!(lines.next().unwrap(), row);
}

#[test]
fn a_host_that_nobody_has_is_not_found() {
    assert_eq!(CLUSTER.call("nobody.default.example.com", "/").0, 404);
}

#[test]
fn an_update_makes_a_revision_and_traffic_can_be_split() {
    let host = deploy(&CLUSTER, "split", "hello-http", &["-e", "TARGET=one"]);
    assert_eq!(CLUSTER.call(&host, "/").1, "hello one\n");
    deploy(&CLUSTER, "split", "hello-http", &["-e", "TARGET=two"]);
    assert_eq!(CLUSTER.value("ksvc/split", "{.status.latestReadyRevisionName}"), "split-00002");
    CLUSTER.until("the new revision answers", |p| p.call(&host, "/").1, |body| body == "hello two\n");

    let traffic = r#"{"spec":{"traffic":[{"revisionName":"split-00001","percent":100,"tag":"old"},
        {"latestRevision":true,"percent":0,"tag":"new"}]}}"#;
    CLUSTER.kubectl(&["patch", "ksvc", "split", "--type", "merge", "-p", traffic]);
    CLUSTER.until("all traffic goes to the first", |p| p.call(&host, "/").1, |body| body == "hello one\n");
    let tagged = |tag: &str| CLUSTER.call(&format!("{tag}-{host}"), "/").1;
    CLUSTER.until("a host of the tag `new`", |_| tagged("new"), |body| body == "hello two\n");
    assert_eq!(tagged("old"), "hello one\n");
}

#[test]
fn traffic_is_split_by_percent() {
    let host = deploy(&CLUSTER, "shared", "hello-http", &["-e", "TARGET=one"]);
    deploy(&CLUSTER, "shared", "hello-http", &["-e", "TARGET=two"]);
    let traffic = r#"{"spec":{"traffic":[{"revisionName":"shared-00001","percent":30},
        {"revisionName":"shared-00002","percent":70}]}}"#;
    CLUSTER.kubectl(&["patch", "ksvc", "shared", "--type", "merge", "-p", traffic]);
    CLUSTER.until("the first revision answers again", |p| p.call(&host, "/").1, |body| body == "hello one\n");
    let first = (0..200).filter(|_| CLUSTER.call(&host, "/").1 == "hello one\n").count();
    // 60 are expected; a fair choice is beyond these bounds less than once in a hundred thousand runs.
    assert!((30..=90).contains(&first), "{first} of 200");
}

#[test]
fn deletion_takes_everything_with_it() {
    let host = deploy(&CLUSTER, "gone", "hello-http", &[]);
    let kinds =
        "ksvc,configurations.serving.knative.dev,revisions,routes.serving.knative.dev,deployments,pods";
    let left = |p: &Program| p.kubectl(&["get", kinds, "-o", "name"]).matches("/gone").count();
    assert_eq!(CLUSTER.call(&host, "/").0, 200);
    assert!(left(&CLUSTER) >= 4, "a Service, a Configuration, a Revision and a Route");
    CLUSTER.wasmk(&["fn", "delete", "gone"]);
    CLUSTER.until("its host is unknown", |p| p.call(&host, "/").0, |code| *code == 404);
    CLUSTER.until("nothing is left", left, |n| *n == 0);
    // The same by kubectl.
    deploy(&CLUSTER, "gone", "hello-http", &[]);
    assert_eq!(CLUSTER.call(&host, "/").0, 200);
    CLUSTER.kubectl(&["delete", "ksvc", "gone"]);
    CLUSTER.until("nothing is left", left, |n| *n == 0);
}

#[test]
fn a_function_is_an_object_like_others() {
    let ns = ["-n", "tenants"];
    CLUSTER.kubectl(&["create", "namespace", "tenants"]);
    let in_ns = |args: &[&str]| CLUSTER.kubectl(&[&ns[..], args].concat());
    in_ns(&["create", "quota", "few", "--hard=count/services.serving.knative.dev=1"]);
    let hard = |p: &Program| {
        p.kubectl(&[&ns[..], &["get", "quota", "few", "-o", "jsonpath={.status.hard}"]].concat())
    };
    CLUSTER.until("the quota's status", hard, |text| text.contains("services.serving"));
    let image = CLUSTER.push("hello-http");
    let manifest = |name: &str| {
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}, namespace: tenants, labels: {{team: {name}}}}}\n\
             spec: {{template: {{spec: {{containers: [{{image: '{image}'}}]}}}}}}\n"
        )
    };
    CLUSTER.apply(&manifest("first"));
    let refused = CLUSTER.kubectl_refused(&["apply", "-f", "-"], Some(&manifest("second")));
    assert!(refused.contains("exceeded quota: few"), "{refused}");
    for (selector, found) in [("team=first", "service.serving.knative.dev/first\n"), ("team!=first", "")] {
        assert_eq!(in_ns(&["get", "ksvc", "-l", selector, "-o", "name"]), found, "{selector}");
    }
    // Roles for people know functions as they know everything else.
    let role_of = |user: &str, role: &str| {
        in_ns(&["create", "rolebinding", user, "--clusterrole", role, "--user", user])
    };
    role_of("viewer", "view");
    role_of("editor", "edit");
    let can = |user: &str, verb: &str| {
        let ask = ["auth", "can-i", verb, "services.serving.knative.dev", "--as", user];
        let out = CLUSTER.kubectl_output(&[&ns[..], &ask].concat(), None);
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    CLUSTER.until("the role of those who edit", |_| can("editor", "create"), |answer| answer == "yes");
    assert_eq!((can("viewer", "list"), can("viewer", "create")), ("yes".into(), "no".into()));
    in_ns(&["create", "role", "reader", "--verb=get,list", "--resource=services.serving.knative.dev"]);
    in_ns(&["create", "rolebinding", "reader", "--role=reader", "--user=jane"]);
    let listed = |p: &Program| {
        p.kubectl_output(&[&ns[..], &["get", "ksvc", "--as=jane"]].concat(), None).status.success()
    };
    CLUSTER.until("the role counts", listed, |may| *may);
    for verb in [&["delete", "ksvc", "first"][..], &["get", "revisions"]] {
        let refused = CLUSTER.kubectl_refused(&[&ns[..], verb, &["--as=jane"]].concat(), None);
        assert!(refused.contains("forbidden"), "{refused}");
    }
    in_ns(&["delete", "ksvc", "-l", "team=first"]);
    let left = |p: &Program| {
        p.kubectl(&[&ns[..], &["get", "ksvc,revisions,deployments,pods", "-o", "name"]].concat())
    };
    CLUSTER.until("nothing is left", left, |names| names.is_empty());
}

#[test]
fn is_listed_invoked_and_its_log_read() {
    deploy(&CLUSTER, "talker", "hello-http", &["-e", "TARGET=all"]);
    assert!(CLUSTER.wasmk(&["fn", "list"]).contains("http://talker.default.example.com"));
    assert_eq!(CLUSTER.wasmk(&["fn", "invoke", "talker", "--path", "/some/path"]), "hello all\n");
    let log = |p: &Program| p.wasmk(&["fn", "logs", "talker"]);
    CLUSTER.until("the guest's line", log, |text| text.contains("GET /some/path"));
}

#[test]
fn a_bad_guest_gets_its_own_error_and_leaves_neighbours_alone() {
    let good = deploy(&CLUSTER, "neighbour", "hello-http", &[]);
    let bad = deploy(&CLUSTER, "bad", "misbehave-http", &["--timeout", "2", "--memory", "32Mi"]);
    for (path, expected) in
        [("/panic", 500), ("/loop", 504), ("/memory", 500), ("/exit", 500), ("/other", 404)]
    {
        let (code, body) = CLUSTER.call(&bad, path);
        assert_eq!(code, expected, "{path}: {body}");
        assert_eq!(CLUSTER.call(&good, "/"), (200, "hello world\n".into()), "after {path}");
    }
}

#[test]
fn a_request_is_held_to_its_limits() {
    let flags = ["--max-cpu-millis", "250", "--max-memory", "16Mi", "--max-response", "100k"];
    let host = deploy(&CLUSTER, "limited", "misbehave-http", &flags);
    for (path, expected, text) in [
        ("/loop", 500, "more than 250ms of processor time"),
        ("/memory", 500, "ran out of its memory limit"),
        ("/other", 404, "no such misbehaviour"),
    ] {
        let (code, body) = CLUSTER.call(&host, path);
        assert!(code == expected && body.contains(text), "{path}: {code} {body}");
    }
    let file = guest("misbehave-http");
    let file = file.to_str().unwrap();
    let said = CLUSTER.refused(&["fn", "deploy", file, "--name", "wrong", "--max-memory", "much"]);
    assert!(said.contains("functions.wasmk.dev/max-memory"), "{said}");
}

#[test]
fn instances_are_used_again_only_where_the_program_declares_that() {
    let host = deploy(&CLUSTER, "again", "hello", &["--reuse"]);
    for _ in 0..3 {
        assert_eq!(CLUSTER.call(&host, "/"), (200, "hello world\n".into()));
    }
    let file = guest("hello-http");
    let file = file.to_str().unwrap();
    CLUSTER.wasmk(&["fn", "deploy", file, "--name", "not-again", "--reuse", "--no-wait"]);
    CLUSTER.until_value("ksvc/not-again", "{.status.conditions[?(@.type=='Ready')].status}", "False");
    let why = CLUSTER.value("ksvc/not-again", "{.status.conditions[?(@.type=='Ready')].message}");
    assert!(why.contains("does not declare"), "{why}");
}

#[test]
fn every_step_to_the_first_byte_is_measured() {
    let host = deploy(&CLUSTER, "measured", "hello-http", &[]);
    assert_eq!(CLUSTER.call(&host, "/").0, 200);
    let node = CLUSTER.kubectl(&["get", "nodes", "-o", "name"]).trim().replace("node/", "nodes/");
    let metrics = CLUSTER.kubectl(&["get", "--raw", &format!("/api/v1/{node}/proxy/metrics")]);
    for phase in ["pull", "compile", "instantiate", "route", "first-byte"] {
        let name = format!("wasmk_function_phase_seconds_count{{phase=\"{phase}\"}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
        assert!(count.is_some_and(|n| n.parse::<u64>().unwrap() > 0), "{phase} in\n{metrics}");
    }
    let cold = CLUSTER.wasmk(&["fn", "cold", "measured", "--calls", "3"]);
    assert!(["prepare", "route", "first-byte"].iter().all(|phase| cold.contains(phase)), "{cold}");
}

#[test]
fn what_cannot_run_says_why() {
    let file = CLUSTER.scratch().join("text.wasm");
    std::fs::write(&file, "not wasm").unwrap();
    let said = CLUSTER.refused(&["fn", "deploy", file.to_str().unwrap(), "--name", "text"]);
    assert!(said.contains("not WebAssembly"), "{said}");

    let image = format!("{}/default/missing:1", CLUSTER.address("registry"));
    CLUSTER.wasmk(&["fn", "deploy", "--image", &image, "--name", "missing", "--no-wait"]);
    CLUSTER.until_value("ksvc/missing", "{.status.conditions[?(@.type=='Ready')].status}", "False");
    let why = CLUSTER.value("ksvc/missing", "{.status.conditions[?(@.type=='Ready')].message}");
    assert!(why.contains("default/missing"), "{why}");
}

#[test]
fn a_function_is_made_built_and_deployed_from_source() {
    CLUSTER.wasmk(&["fn", "new", "greet", "--lang", "rust"]);
    CLUSTER.wasmk(&["fn", "deploy", "greet"]);
    let (code, body) = CLUSTER.call("greet.default.example.com", "/");
    assert_eq!(code, 200, "{body}");
    assert!(!body.is_empty());
}

/// Makes a function from a language's template, builds it, deploys what was built, and asks it.
fn from_template(name: &str, lang: &str) -> String {
    CLUSTER.wasmk(&["fn", "new", name, "--lang", lang]);
    let built = CLUSTER.wasmk(&["fn", "build", name]);
    let file = CLUSTER.scratch().join(name).join(format!("{name}.wasm"));
    assert!(built.contains(&format!("{name}.wasm")) && file.is_file(), "{built}");
    CLUSTER.wasmk(&["fn", "deploy", name, "--env", "TARGET=you"]);
    let (code, body) = CLUSTER.call(&format!("{name}.default.example.com"), "/");
    assert_eq!(code, 200, "{body}");
    body
}

#[test]
fn a_function_in_c_is_made_built_and_deployed_from_source() {
    assert_eq!(from_template("sea", "c"), "hello you\n");
}

#[test]
fn a_function_in_go_is_made_built_and_deployed_from_source() {
    assert_eq!(from_template("gopher", "go"), "hello you, from gopher\n");
}

#[test]
fn what_a_function_keeps_is_there_for_its_namespace() {
    let keep = |program: &Program, name: &str, flags: &[&str]| deploy(program, name, "state-http", flags);
    let writer = keep(&CLUSTER, "writer", &["--keyvalue", "visits", "-e", "COLOR=blue"]);
    let reader = keep(&CLUSTER, "reader", &["--keyvalue", "visits", "--keyvalue", "more"]);
    let put = |host: &str, path: &str, body: &str| {
        let url = format!("http://{}{path}", CLUSTER.address("gateway"));
        let done = std::process::Command::new("curl")
            .args(["-sS", "--max-time", "30", "-X", "PUT", "-d", body, "-H", &format!("Host: {host}"), &url])
            .status();
        assert!(done.expect("curl runs").success());
    };
    put(&writer, "/visits/a", "kept");
    assert_eq!(CLUSTER.call(&reader, "/visits/a"), (200, "kept".into()));
    assert_eq!(CLUSTER.call(&writer, "/more/a").0, 409, "a store it was not given");
    assert_eq!(CLUSTER.call(&writer, "/config").1, "Ok(Some(\"blue\")) Ok(None)");
    let without = keep(&CLUSTER, "without", &[]);
    assert_eq!(CLUSTER.call(&without, "/visits/a"), (409, "this function has no key-value stores\n".into()));
    let file = guest("state-http");
    let said =
        CLUSTER.refused(&["fn", "deploy", file.to_str().unwrap(), "--name", "wrong", "--keyvalue", "A/B"]);
    assert!(said.contains("functions.wasmk.dev/keyvalue"), "{said}");
}

#[test]
fn objects_are_there_for_a_namespace_with_and_without_the_second_wall() {
    let call = |host: &str, method: &str, path: &str, body: &str| {
        let url = format!("http://{}{path}", CLUSTER.address("gateway"));
        let host = format!("Host: {host}");
        let args = ["-sS", "--max-time", "60", "-X", method, "--data-binary", body, "-H", &host, &url];
        let out = std::process::Command::new("curl").args(args).output().expect("curl runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let here = deploy(&CLUSTER, "painter", "state-http", &["--blobstore", "art"]);
    let image = CLUSTER.value("ksvc/painter", "{.spec.template.spec.containers[0].image}");
    CLUSTER.apply(&format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: walled}}\nspec: {{template: {{metadata: {{annotations: \
         {{functions.wasmk.dev/blobstore: 'art,more'}}}}, spec: {{runtimeClassName: wasmtime-isolated, containers: [{{image: '{image}'}}]}}}}}}\n"
    ));
    CLUSTER.until_value("ksvc/walled", "{.status.conditions[?(@.type=='Ready')].status}", "True");
    let apart = "walled.default.example.com".to_owned();
    for (host, method, path, body, expect) in [
        (&here, "PUT", "/blobs/art/a", "by one", ""),
        (&apart, "GET", "/blobs/art/a", "", "by one"),
        (&apart, "PUT", "/blobs/art/b", "by another", ""),
        (&here, "GET", "/blobs/art/b?3-", "", "another"),
        (&apart, "POST", "/blobs/more/long?5000000", "", ""),
        (&apart, "GET", "/blobs/more/long?info", "", "Some(5000000)"),
        (&apart, "GET", "/blobs/more/long?4999997-", "", "xxx"),
        (&apart, "MOVE", "/blobs/more/long?art/long", "", ""),
        (&here, "GET", "/blobs/art/", "", "a b long"),
        (&here, "GET", "/blobs/more/", "", "container more was not given to this guest\n"),
        (&apart, "PUT", "/blobs/other/x", "", "container other was not given to this guest\n"),
        (&apart, "POST", "/blobs/art/longer?70000000", "", "an object has at most 67108864 bytes\n"),
    ] {
        assert_eq!(call(host, method, path, body), expect, "{method} {path} by {host}");
    }
    let file = guest("state-http");
    let said =
        CLUSTER.refused(&["fn", "deploy", file.to_str().unwrap(), "--name", "wrong", "--blobstore", "A/B"]);
    assert!(said.contains("functions.wasmk.dev/blobstore"), "{said}");
}

#[test]
fn a_command_answers_by_cgi_behind_the_second_wall() {
    let cgi = r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 64) "Content-Type: text/plain\n\nyou said: ")
        (func (export "_start")
            (i32.store (i32.const 0) (i32.const 200)) (i32.store (i32.const 4) (i32.const 1000))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 36))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
            (i32.store (i32.const 0) (i32.const 200)) (i32.store (i32.const 4) (i32.load (i32.const 16)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))))"#;
    let file = CLUSTER.scratch().join("says.wasm");
    std::fs::write(&file, wat::parse_str(cgi).expect("a module")).expect("a file");
    CLUSTER.wasmk(&["fn", "deploy", file.to_str().unwrap(), "--name", "says", "--wagi"]);
    let class = r#"{"spec":{"template":{"spec":{"runtimeClassName":"wasmtime-isolated"}}}}"#;
    CLUSTER.kubectl(&["patch", "ksvc", "says", "--type", "merge", "-p", class]);
    CLUSTER.until_value("ksvc/says", "{.status.latestReadyRevisionName}", "says-00002");
    let url = format!("http://{}/", CLUSTER.address("gateway"));
    let ask = |body: &str| {
        let args = ["-sS", "--max-time", "30", "-d", body, "-H", "Host: says.default.example.com", &url];
        let out = std::process::Command::new("curl").args(args).output().expect("curl runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    CLUSTER.until("the second revision answers", |_| ask("one"), |text| text == "you said: one");
    assert_eq!(ask("two words"), "you said: two words");
    // It runs in another process than the first revision did.
    let agent = CLUSTER.id().to_string();
    let workers = std::process::Command::new("pgrep").args(["-P", &agent, "-f", "wasm-worker"]).output();
    assert!(!workers.expect("pgrep runs").stdout.is_empty(), "{}", CLUSTER.log());
}

#[test]
fn by_the_flags_of_kn_and_in_its_columns() {
    let flags = "--scale-min 1 --scale-max 3 --scale-target 50 --scale-window 10s --concurrency-limit 5 --revision-name one";
    let host = deploy(&CLUSTER, "kin", "hello-http", &flags.split(' ').collect::<Vec<_>>());
    let template = |path: &str| CLUSTER.value("ksvc/kin", &format!("{{.spec.template.{path}}}"));
    for (key, value) in [("min-scale", "1"), ("max-scale", "3"), ("target", "50"), ("window", "10s")] {
        let key = format!("metadata.annotations.autoscaling\\.knative\\.dev/{key}");
        assert_eq!(template(&key), value, "{key}");
    }
    assert_eq!(
        (template("spec.containerConcurrency"), template("metadata.name")),
        ("5".into(), "kin-one".into())
    );
    deploy(&CLUSTER, "kin", "hello-http", &["--revision-name", "two"]);
    CLUSTER.wasmk(&["fn", "traffic", "kin", "--traffic", "kin-one=30,@latest=70", "--tag", "kin-one=old"]);

    let words = |text: &str| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    let line = |text: &str, name: &str| words(text.lines().find(|line| line.starts_with(name)).expect(name));
    let list = CLUSTER.wasmk(&["fn", "list"]);
    assert_eq!(line(&list, "NAME").join(" "), "NAME URL LATEST AGE CONDITIONS READY REASON");
    let row = line(&list, "kin");
    assert_eq!(row[..3], ["kin", &format!("http://{host}"), "kin-two"]);
    assert_eq!(row[4..].join(" "), "3 OK / 3 True");
    let revisions = CLUSTER.wasmk(&["fn", "revisions", "--service", "kin"]);
    let head = "NAME SERVICE TRAFFIC TAGS GENERATION AGE CONDITIONS READY REASON";
    assert_eq!(line(&revisions, "NAME").join(" "), head);
    assert_eq!(line(&revisions, "kin-one")[..5], ["kin-one", "kin", "30%", "old", "1"]);
    let described = CLUSTER.wasmk(&["fn", "describe", "kin"]);
    for part in
        ["   30%  kin-one #old [1] (", "   70%  @latest (kin-two) [2] (", "  ++ Ready ", "(pinned to "]
    {
        assert!(described.contains(part), "{part:?} in\n{described}");
    }
}

#[test]
fn a_command_is_started_for_each_request() {
    // It answers by CGI: what it prints is fixed, a head and a line.
    let head = "Status: 203 Told\\nContent-Type: text/plain\\n\\nby cgi\\n";
    let text = format!(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 16) "{head}")
            (func (export "_start") (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const {}))
              (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#,
        head.replace("\\n", "\n").len()
    );
    let file = CLUSTER.scratch().join("cgi.wasm");
    std::fs::write(&file, wat::parse_str(text).expect("a module")).unwrap();
    CLUSTER.wasmk(&["fn", "deploy", file.to_str().unwrap(), "--name", "cgi"]);
    let executor = "{.spec.template.metadata.annotations.functions\\.wasmk\\.dev/executor}";
    assert_eq!(CLUSTER.value("ksvc/cgi", executor), "wagi");
    for _ in 0..2 {
        assert_eq!(CLUSTER.call("cgi.default.example.com", "/"), (203, "by cgi\n".into()));
    }
    CLUSTER.until("a pod while active", |p| pods(p, "cgi"), |n| *n == 1);
    // One that prints no head says so to the client and in its log.
    let bad = deploy(&CLUSTER, "no-cgi", "command-module", &[]);
    let (code, body) = CLUSTER.call(&bad, "/");
    assert!(code == 502 && body.contains("guest answered with error"), "{code} {body}");
    let log = |p: &Program| p.wasmk(&["fn", "logs", "no-cgi"]);
    CLUSTER.until("the reason in its log", log, |text| text.contains("guest answered with error"));
}
