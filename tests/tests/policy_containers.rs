//! Network policies, held to by containers: filters in each pod's namespace. Skipped, with a word, where containers
//! cannot be run.

use wasmk_tests::{
    node::{Node, container, fetch, pod},
    program::Program,
};

const WEB: &str =
    "mkdir -p /www; echo welcome > /www/index.html; httpd -p 8080 -h /www; httpd -f -p 8081 -h /www";
const IDLE: &str = "while true; do sleep 1; done";

/// Fetches from inside a pod: what is there, or nothing.
fn within(p: &Program, from: &str, url: &str) -> String {
    let line = format!("timeout 3 wget -q -O - {url} 2>/dev/null || echo no");
    p.kubectl_output(&["exec", from, "--", "sh", "-c", &line], None)
        .stdout
        .iter()
        .map(|b| char::from(*b))
        .collect::<String>()
        .trim()
        .to_string()
}

fn until(p: &Program, from: &str, url: &str, expected: &str) {
    p.until(&format!("{from} {url}"), |p| within(p, from, url), |text| text == expected);
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

#[test]
fn containers_are_held_to_policies() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    let hello = p.push("hello");
    let probed = ", readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}";
    p.apply(
        &[
            pod("web", "", &[container("main", WEB, probed)]),
            pod("friend", "", &[container("main", IDLE, "")]),
            pod("stranger", "", &[container("main", IDLE, "")]),
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: wasm, labels: {{app: wasm}}}}\nspec: {{containers: [{{name: main, image: '{hello}', ports: [{{containerPort: 8080}}]}}]}}\n"),
        ]
        .concat(),
    );
    for name in ["web", "friend", "stranger", "wasm"] {
        p.until_row(name, "1/1 Running");
    }
    for name in ["web", "wasm"] {
        p.kubectl(&["expose", "pod", name, "--port=8000", "--target-port=8080"]);
    }
    let address = p.value("pod/web", "{.status.podIP}");
    let (direct, other) = (format!("http://{address}:8080/"), format!("http://{address}:8081/"));
    let service =
        |name: &str| format!("http://{}:8000/", p.value(&format!("svc/{name}"), "{.spec.clusterIP}"));
    let (web, wasm) = (service("web"), service("wasm"));
    until(p, "stranger", &direct, "welcome");
    until(p, "stranger", &web, "welcome");
    until(p, "stranger", &wasm, "hello world");

    // Into the pod only from one, on one port; itself and its node reach it all the same.
    let friend = "ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}], ports: [{port: 8080}]}]";
    p.apply(&policy("web", &format!("podSelector: {{matchLabels: {{app: web}}}}, {friend}")));
    until(p, "stranger", &direct, "no");
    until(p, "stranger", &web, "no");
    for url in [&direct, &web] {
        until(p, "friend", url, "welcome");
    }
    until(p, "friend", &other, "no");
    assert_eq!(within(p, "web", &other), "welcome");
    assert_eq!(fetch(&direct), "welcome\n");
    p.until_row("web", "1/1 Running");

    // Out of a pod; what the other end's rules say counts as well, here those of a pod of WebAssembly.
    let out = "egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]";
    p.apply(&policy(
        "out",
        &format!("podSelector: {{matchLabels: {{app: friend}}}}, policyTypes: [Egress], {out}"),
    ));
    until(p, "friend", &wasm, "no");
    until(p, "friend", &direct, "welcome");
    p.apply(&policy("wasm", "podSelector: {matchLabels: {app: wasm}}"));
    until(p, "stranger", &wasm, "no");

    // A pod that is made under a policy is shut from its first moment.
    p.apply(&policy("late", "podSelector: {matchLabels: {app: late}}"));
    p.apply(&pod("late", "", &[container("main", WEB, "")]));
    p.until_row("late", "1/1 Running");
    let late = format!("http://{}:8080/", p.value("pod/late", "{.status.podIP}"));
    assert_eq!(within(p, "stranger", &late), "no");

    p.kubectl(&["delete", "networkpolicies", "--all"]);
    for url in [&direct, &other, &web, &wasm, &late] {
        until(p, "stranger", url, if *url == wasm { "hello world" } else { "welcome" });
    }
    until(p, "friend", &wasm, "hello world");
}
