//! Every example is applied, and does what its comment says.

use std::{collections::BTreeSet, process::Command};

use serde_json::Value;
use wasmk_tests::{
    node::fetch,
    program::{Program, binary, guest, repository},
};

/// What proves that an example works: a value that some object comes to have.
const OUTCOMES: &[(&str, &str, &str, &str)] = &[
    (
        "crd.yaml",
        "crd/countdowns.example.com",
        "{.status.conditions[?(@.type=='Established')].status}",
        "True",
    ),
    ("countdown.yaml", "countdown/doomsday", "{.spec.delay}", "1200"),
    ("deployment.yaml", "deployment/web", "{.status.availableReplicas}", "3"),
    (
        "domain.yaml",
        "domainmapping/hello.example.org",
        "{.status.conditions[?(@.type=='Ready')].status}",
        "True",
    ),
    ("events.yaml", "trigger/greetings", "{.status.conditions[?(@.type=='Ready')].status}", "True"),
    ("function.yaml", "ksvc/hello", "{.status.conditions[?(@.type=='Ready')].status}", "True"),
    ("dockercoins.yaml", "deployment/worker", "{.status.availableReplicas}", "1"),
    ("job.yaml", "job/count", "{.status.succeeded}", "3"),
    ("pages.yaml", "ksvc/helloworld-go", "{.status.conditions[?(@.type=='Ready')].status}", "True"),
    ("spinapp.yaml", "spinapp/simple-spinapp", "{.status.conditions[0].status}", "True"),
    ("network-policy.yaml", "networkpolicy/allow-front", "{.spec.policyTypes[0]}", "Ingress"),
    ("rbac.yaml", "rolebinding/reader-reads-pods", "{.roleRef.name}", "pod-reader"),
];

#[test]
fn every_example_has_an_outcome() {
    let files: BTreeSet<String> = std::fs::read_dir(repository().join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    let covered: BTreeSet<String> = OUTCOMES.iter().map(|(file, ..)| (*file).into()).collect();
    assert_eq!(files, covered);
}

fn push_dockercoins(program: &Program) {
    for part in ["redis", "rng", "hasher", "worker", "webui"] {
        let file = guest(&format!("dockercoins-{part}"));
        program.wasmk(&["push", &file.display().to_string(), &format!("dockercoins/{part}:v0.1")]);
    }
}

/// The walkthroughs' applications run where none of their images can be had.
#[test]
fn stand_ins_do_what_the_walkthroughs_expect() {
    let program = Program::start();
    push_dockercoins(&program);
    program.push("page");
    program.apply(&program.example("dockercoins.yaml"));
    program.apply(&program.example("pages.yaml"));

    // The worker reaches rng, hasher and redis by their plain names; the page shows what comes of it.
    let port = program.value("service/webui", "{.spec.ports[0].nodePort}");
    let webui = |path: &str| fetch(&format!("http://127.0.0.1:{port}/{path}"));
    let counts = |_: &Program| serde_json::from_str::<Value>(&webui("json")).unwrap_or_default();
    let first = program.until("hashes are counted", counts, |json| json["hashes"].as_i64() > Some(0));
    let later = program.until("more are", counts, |json| json["hashes"].as_i64() > first["hashes"].as_i64());
    assert!(later["now"].as_f64() > first["now"].as_f64(), "{first} {later}");
    assert!(webui("").contains("hashes/second"));
    program.until("a coin is found", counts, |json| json["coins"].as_i64() > Some(0));
    let log = program.kubectl(&["logs", "deployment/worker"]);
    assert!(
        log.contains("units of work done, updating hash counter") && log.contains("Coin found: 0"),
        "{log}"
    );
    // More workers find more.
    program.kubectl(&["scale", "deployment/worker", "--replicas=3"]);
    program.until_value("deployment/worker", "{.status.availableReplicas}", "3");
    let rng = program.value("pods", "{.items[?(@.metadata.labels.app=='rng')].status.podIP}");
    assert_eq!(
        fetch(&format!("http://{rng}:8080/")),
        format!(
            "RNG running on {}\n",
            program.value("pods", "{.items[?(@.metadata.labels.app=='rng')].metadata.name}")
        )
    );

    let address = program.value("pod/testweb", "{.status.podIP}");
    program.until(
        "the web server",
        |_| fetch(&format!("http://{address}:8080/")),
        |page| page.contains("Welcome to nginx!"),
    );
    let ingress = program.address("ingress");
    for cheese in ["cheddar", "stilton", "wensleydale"] {
        let title = format!("<h1>{}{}</h1>", cheese[..1].to_uppercase(), &cheese[1..]);
        let host = format!("Host: {cheese}.example.com");
        let page = |_: &Program| {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--max-time", "10", "-H", &host, &format!("http://{ingress}/")]);
            String::from_utf8_lossy(&curl.output().expect("curl runs").stdout).into_owned()
        };
        program.until(cheese, page, |page| page.contains(&title));
    }
    program.until_value("ksvc/helloworld-go", "{.status.conditions[?(@.type=='Ready')].status}", "True");
    assert_eq!(program.call("helloworld-go.default.example.com", "/"), (200, "Hello DwK!\n".into()));
}

#[test]
fn every_example_works() {
    let program = Program::start();
    program.push("hello");
    program.push("command");
    program.push("page");
    push_dockercoins(&program);
    for (file, ..) in OUTCOMES {
        program.apply(&program.example(file));
        if *file == "crd.yaml" {
            let crd = ["wait", "--for=condition=established", "--timeout=60s", "-f", "-"];
            // kubectl refuses to wait for one that has no conditions yet, so it is asked again.
            let wait = |p: &Program| p.kubectl_output(&crd, Some(&p.example(file))).status;
            program.until("the definition", wait, |status| status.success());
        }
    }
    for (_, object, path, expected) in OUTCOMES {
        program.until_value(object, path, expected);
    }
    // Applied by wasmk it is the same objects, and nothing changes.
    for (file, ..) in OUTCOMES {
        let objects = |said: &str| {
            said.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect::<Vec<_>>()
        };
        let known = objects(&program.apply(&program.example(file)));
        let out = program.client(&binary(), &["apply", "-f", "-"], Some(&program.example(file)));
        let said = String::from_utf8_lossy(&out.stdout);
        assert_eq!(objects(&said), known, "{file}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(said.lines().all(|line| line.ends_with(" unchanged")), "{file}: {said}");
    }
    assert_eq!(program.call("hello.default.example.com", "/"), (200, "hello wasm\n".into()));
    let can = ["auth", "can-i", "list", "pods", "--as=system:serviceaccount:default:reader"];
    assert_eq!(program.kubectl(&can), "yes\n");
}
