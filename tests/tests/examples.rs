//! Every example is applied, and does what its comment says.

use std::collections::BTreeSet;

use wasmk_tests::program::{Program, binary, repository};

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
    ("job.yaml", "job/count", "{.status.succeeded}", "3"),
    ("spinapp.yaml", "spinapp/simple-spinapp", "{.status.conditions[0].status}", "True"),
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

#[test]
fn every_example_works() {
    let program = Program::start();
    program.push("hello");
    program.push("command");
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
