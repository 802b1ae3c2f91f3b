//! Machines that join with a token, by links with certificates, and come back after their certificate's end.

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
fn agent(place: &Place, node: &str, token: &str) -> Running {
    let server = format!("https://{}", CLUSTER.address("api"));
    let mut command = place.command("wasmk");
    command.args(["agent", "--node-name", node, "--data-dir", node, "--server", &server]);
    Running::start(command.args(["--token", token, "--container-runtime-endpoint", "none"]))
}

fn until_ready(node: &str) {
    CLUSTER.until_value(&format!("node/{node}"), "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
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
    let running = agent(&place, "edge", &token());
    until_ready("edge");
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
    let _running = agent(&place, "edge", &token());
    until_ready("edge");
    let second = kubeconfig(&file);
    let certificate = |config: &Value| config["users"][0]["user"]["client-certificate-data"].clone();
    assert_ne!(certificate(&first), certificate(&second));
    assert_ne!(certificate(&stale), certificate(&second));
}

/// The server lets in nodes of its own authority alone, and an agent talks to no server of another.
#[test]
fn links_are_certified_on_both_sides() {
    let place = Place::new(&CLUSTER, "links");
    let api = format!("https://{}", CLUSTER.address("api"));
    place.sh("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/O=system:nodes/CN=system:node:spy' \
              -keyout foreign.key -out foreign.crt 2>/dev/null");
    for part in ["certificate", "key"] {
        let path = format!("{{.users[0].user.client-{part}-data}}");
        place.sh(&format!("kubectl config view --raw -o jsonpath='{path}' | base64 -d >admin.{part}"));
    }
    for who in ["", "--cert foreign.crt --key foreign.key", "--cert admin.certificate --key admin.key"] {
        let answer = place.sh(&format!(
            "curl -sS -k -i --http2 {who} -H content-type:application/grpc -H te:trailers --data-binary @/dev/null \
             {api}/wasmk.tunnel.v1.Tunnel/Link"
        ));
        // Unauthenticated.
        assert!(answer.contains("grpc-status: 16"), "{who}: {answer}");
    }

    let running = agent(&place, "spy", &token());
    until_ready("spy");
    drop(running);
    let file = place.dir().join("spy/kubeconfig");
    let mut config = kubeconfig(&file);
    let foreign = std::fs::read(place.dir().join("foreign.crt")).expect("a certificate");
    use base64::{Engine, engine::general_purpose::STANDARD};
    config["clusters"][0]["cluster"]["certificate-authority-data"] = STANDARD.encode(foreign).into();
    std::fs::write(&file, config.to_string()).expect("a writable file");
    let out = place.output(
        "timeout 20 wasmk agent --node-name spy --data-dir spy --container-runtime-endpoint none 2>&1",
    );
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(said.contains("invalid peer certificate: UnknownIssuer"), "{said}");
}
