//! Machines that join with a token, and come back after their certificate's end.

use std::{path::Path, sync::LazyLock};

use serde_json::{Value, json};
use wasmk_tests::{
    place::{Place, Running},
    program::Program,
};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| Program::start_with(&["--no-node"]));

/// A join token, as the cluster prints it.
fn token() -> String {
    let printed = CLUSTER.wasmk(&["token", "create"]);
    let mut words = printed.split_whitespace().skip_while(|word| *word != "--token");
    words.nth(1).unwrap_or_else(|| panic!("no token in {printed}")).to_owned()
}

/// `wasmk agent`, running.
fn agent(place: &Place, token: &str) -> Running {
    let server = format!("https://{}", CLUSTER.address("api"));
    let mut command = place.command("wasmk");
    command.args(["agent", "--node-name", "edge", "--data-dir", "edge", "--server", &server]);
    Running::start(command.args(["--token", token, "--container-runtime-endpoint", "none"]))
}

fn until_ready(when: &str) {
    let ready = |p: &Program| p.value("node/edge", "{.status.conditions[?(@.type==\"Ready\")].status}");
    CLUSTER.until(when, ready, |status| status == "True");
}

fn kubeconfig(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).expect("the node's kubeconfig");
    let json =
        CLUSTER.kubectl(&["config", "view", "--raw", "-o", "json", "--kubeconfig", file.to_str().unwrap()]);
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A certificate of that user that ended yesterday, PEM.
fn ended(user: &str) -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, user);
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(30);
    params.not_after = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    let key = rcgen::KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").pem()
}

#[test]
fn a_machine_joins_and_comes_back_after_its_certificates_end() {
    let place = Place::new(&CLUSTER, "default");
    let running = agent(&place, &token());
    until_ready("the node");
    let file = place.dir().join("edge/kubeconfig");
    let first = kubeconfig(&file);
    let who = CLUSTER.kubectl(&["auth", "whoami", "-o", "json", "--kubeconfig", file.to_str().unwrap()]);
    let who: Value = serde_json::from_str(&who).expect("a review");
    assert_eq!(who["status"]["userInfo"]["username"], "system:node:edge");
    assert!(
        who["status"]["userInfo"]["groups"].as_array().unwrap().contains(&json!("system:nodes")),
        "{who}"
    );
    let own = |args: &[&str]| {
        CLUSTER.kubectl_output(&[&["--kubeconfig", file.to_str().unwrap()], args].concat(), None)
    };
    assert!(own(&["get", "node", "edge"]).status.success());
    for args in
        [&["get", "secrets", "-A"][..], &["label", "node", "other", "a=b"], &["delete", "node", "edge"]]
    {
        assert!(!own(args).status.success(), "{args:?}");
    }
    drop(running);

    // Away for longer than the certificate lasts: what is left is worth nothing, and a new token buys another.
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut stale = first.clone();
    stale["users"][0]["user"]["client-certificate-data"] = STANDARD.encode(ended("system:node:edge")).into();
    std::fs::write(&file, stale.to_string()).expect("a writable file");
    let out = place.output("wasmk agent --node-name edge --data-dir edge --container-runtime-endpoint none");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("has not joined a cluster yet"), "{said}");
    CLUSTER.kubectl(&["delete", "node", "edge"]);
    let _running = agent(&place, &token());
    until_ready("the node again");
    let second = kubeconfig(&file);
    let certificate = |config: &Value| config["users"][0]["user"]["client-certificate-data"].clone();
    assert_ne!(certificate(&first), certificate(&second));
    assert_ne!(certificate(&stale), certificate(&second));
}
