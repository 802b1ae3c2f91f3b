//! What was acknowledged is there after a stop and after a kill.

use wasmk_tests::program::{Program, guest};

const PRECIOUS: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {password: "correct horse"}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gems.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Gem, plural: gems, singular: gem}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, properties: {carat: {type: integer}}}}
"#;

#[test]
fn objects_outlive_a_kill() {
    let program = Program::start();
    program.apply(PRECIOUS);
    for i in 0..20 {
        program.kubectl(&[
            "create",
            "configmap",
            &format!("kept-{i}"),
            &format!("--from-literal=number={i}"),
        ]);
    }
    let revision = program.value("configmap/kept-19", "{.metadata.resourceVersion}");
    let program = program.kill();
    for i in 0..20 {
        assert_eq!(program.value(&format!("configmap/kept-{i}"), "{.data.number}"), i.to_string());
    }
    assert_eq!(program.value("configmap/kept-19", "{.metadata.resourceVersion}"), revision);
    assert_eq!(program.value("secret/key", "{.data.password}"), "Y29ycmVjdCBob3JzZQ==");
    program.until(
        "the kind of its own is served again",
        |p| p.kubectl_output(&["get", "gems"], None).status.success(),
        |served| *served,
    );

    program.kubectl(&["create", "configmap", "later"]);
    let later: u64 = program.value("configmap/later", "{.metadata.resourceVersion}").parse().unwrap();
    assert!(later > revision.parse().unwrap(), "revisions go on: {later} after {revision}");
}

#[test]
fn a_restart_finds_everything_as_it_was() {
    let program = Program::start();
    program.push("hello");
    program.apply(&program.example("deployment.yaml"));
    let file = guest("hello-http");
    program.wasmk(&["fn", "deploy", file.to_str().unwrap(), "--name", "greet", "-e", "TARGET=again"]);
    program.until_value("deployment/web", "{.status.readyReplicas}", "3");

    let program = program.restart();
    program.until_value("deployment/web", "{.status.readyReplicas}", "3");
    program.until(
        "the function answers",
        |p| p.call("greet.default.example.com", "/"),
        |(code, body)| *code == 200 && body == "hello again\n",
    );
}
