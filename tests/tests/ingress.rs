//! Ingresses: HTTP from outside, led to pods by host and path.

use std::sync::LazyLock;

use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program
});

/// Deployments that say their name, each behind a service of the same name; `spec` is more of the service's.
fn shops(place: &Place, names: &[&str], spec: &str) {
    for name in names {
        place.apply(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  selector: {{matchLabels: {{app: {name}}}}}\n  \
             template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      containers:\n      - name: main\n        \
             image: $REGISTRY/default/hello:1\n        env: [{{name: TARGET, value: {name}}}]\n        ports: [{{containerPort: 8080}}]\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{spec}selector: {{app: {name}}}, ports: [{{name: web, port: 80, targetPort: 8080}}]}}\n"
        ));
    }
    for name in names {
        place.sh(&format!("kubectl rollout status deploy/{name} --timeout=60s"));
    }
}

fn ingress(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn path(path: &str, service: &str) -> String {
    format!(
        "{{path: {path}, pathType: Prefix, backend: {{service: {{name: {service}, port: {{number: 80}}}}}}}}"
    )
}

fn rule(host: &str, paths: &str) -> String {
    format!("{{host: {host}, http: {{paths: [{paths}]}}}}")
}

/// A request with that Host header: the body and the code.
fn ask(host: &str, path: &str) -> String {
    let address = CLUSTER.address("ingress");
    format!("curl -sS --max-time 5 -w ' %{{http_code}}' -H 'Host: {host}' http://{address}{path} | xargs")
}

#[test]
fn hosts_and_paths_lead_to_services() {
    let place = Place::new(&CLUSTER, "cheeses");
    assert_eq!(place.sh(&ask("cheddar.example.com", "/")), "404 page not found 404");
    shops(&place, &["cheddar", "stilton", "wensleydale"], "");
    let rules: Vec<_> = ["cheddar", "stilton", "wensleydale"]
        .iter()
        .map(|n| rule(&format!("{n}.example.com"), &path("/", n)))
        .collect();
    place.apply(&ingress("cheeses", &format!("rules: [{}]", rules.join(", "))));
    for name in ["cheddar", "stilton", "wensleydale"] {
        place.until(&ask(&format!("{name}.example.com"), "/"), &format!("hello {name} 200"));
    }
    // Names that say their address are names like others.
    let by_address = "cheddar.127.0.0.1.nip.io";
    place.apply(&ingress("by-address", &format!("rules: [{}]", rule(by_address, &path("/", "cheddar")))));
    place.until(&ask(by_address, "/"), "hello cheddar 200");
    let address = CLUSTER.address("ingress").ip().to_string();
    place.until_value("ingress/cheeses", "{.status.loadBalancer.ingress[0].ip}", &address);
    let row = place.sh("kubectl get ing cheeses --no-headers | xargs");
    assert!(
        row.starts_with("cheeses <none> cheddar.example.com,stilton.example.com,wensleydale.example.com")
            && row.contains(&address),
        "{row}"
    );

    // One host fanned out by path: the longest that fits, and whole elements only.
    let paths = [path("/blue", "cheddar"), path("/blue/deep", "stilton")].join(", ");
    place.apply(&ingress("fanout", &format!("rules: [{}]", rule("fan.example.com", &paths))));
    place.until(&ask("fan.example.com", "/blue/x"), "hello cheddar 200");
    place.until(&ask("fan.example.com:8080", "/blue/deep/x"), "hello stilton 200");
    assert_eq!(place.sh(&ask("fan.example.com", "/bluely")), "404 page not found 404");

    // The rules are apart from the services: they go and come back, and nothing else changes.
    place.sh("kubectl delete ingress cheeses");
    place.until(&ask("stilton.example.com", "/"), "404 page not found 404");
    assert_eq!(place.value("svc/stilton", "{.metadata.generation}{.spec.type}"), "ClusterIP");
    place.apply(&ingress("cheeses", &format!("rules: [{}]", rules.join(", "))));
    place.until(&ask("stilton.example.com", "/"), "hello stilton 200");
}

#[test]
fn classes_choose_and_pods_share_the_load() {
    let place = Place::new(&CLUSTER, "classes");
    shops(&place, &["plain"], "clusterIP: None, ");
    let spec = |host: &str| format!("rules: [{}]", rule(host, &path("/", "plain")));
    place.apply(
        &(ingress("ours", &("ingressClassName: wasmk, ".to_owned() + &spec("ours.example.com")))
            + &ingress("theirs", &("ingressClassName: traefik, ".to_owned() + &spec("theirs.example.com")))),
    );
    // A headless service is as good: requests go to pods.
    place.until(&ask("ours.example.com", "/"), "hello plain 200");
    assert_eq!(place.sh(&ask("theirs.example.com", "/")), "404 page not found 404");
    assert_eq!(place.value("ingress/theirs", "{.status.loadBalancer.ingress}"), "");

    place.sh("kubectl patch deploy plain --type=json -p '[{\"op\": \"replace\", \"path\": \"/spec/template/spec/containers/0/env/0\", \
              \"value\": {\"name\": \"TARGET\", \"valueFrom\": {\"fieldRef\": {\"fieldPath\": \"metadata.name\"}}}}]' && \
              kubectl scale deploy/plain --replicas=3 && kubectl rollout status deploy/plain --timeout=60s");
    let many =
        format!("for i in 1 2 3 4 5 6 7 8 9; do {}; done | sort -u | wc -l", ask("ours.example.com", "/"));
    place.until(&many, "3");
    place.sh("kubectl scale deploy/plain --replicas=0");
    place.until(&ask("ours.example.com", "/"), "no pod of service classes/plain is ready 503");
}

#[test]
fn what_no_rule_takes_goes_to_the_default() {
    let program: &'static Program = Box::leak(Box::new(Program::start()));
    program.push("hello");
    let place = Place::new(program, "default");
    shops(&place, &["plain", "rest"], "");
    let rest = "defaultBackend: {service: {name: rest, port: {name: web}}}";
    place.apply(&ingress(
        "all",
        &format!("{rest}, rules: [{}]", rule("plain.example.com", &path("/plain", "plain"))),
    ));
    let address = program.address("ingress");
    for (host, path, answer) in [
        ("plain.example.com", "/plain", "hello plain"),
        ("plain.example.com", "/other", "hello rest"),
        ("unknown.example.com", "/plain", "hello rest"),
    ] {
        place.until(&format!("curl -sS --max-time 5 -H 'Host: {host}' http://{address}{path}"), answer);
    }
}

/// An Ingress with annotations of ingress-nginx.
fn noted(name: &str, notes: &[(&str, &str)], spec: &str) -> String {
    let notes: String =
        notes.iter().map(|(key, value)| format!("nginx.ingress.kubernetes.io/{key}: {value:?}, ")).collect();
    let meta = format!("metadata: {{name: {name}, annotations: {{{notes}example.com/unknown: ignored}}}}");
    ingress(name, spec).replace(&format!("metadata: {{name: {name}}}"), &meta)
}

/// A certificate for a host and its key, in files `NAME.crt` and `NAME.key`.
fn certificate(place: &Place, name: &str, host: &str) {
    let made = rcgen::generate_simple_self_signed([host.to_string()]).expect("a certificate");
    place.write(&format!("{name}.crt"), &made.cert.pem());
    place.write(&format!("{name}.key"), &made.signing_key.serialize_pem());
}

/// A request over TLS for that host, trusting only the certificate in a file.
fn ask_securely(host: &str, trusted: &str, more: &str) -> String {
    let address = CLUSTER.address("ingressTls");
    format!(
        "curl -sS --max-time 5 --cacert {trusted} --resolve {host}:{}:{} {more} https://{host}:{}/ | xargs",
        address.port(),
        address.ip(),
        address.port()
    )
}

#[test]
fn hosts_have_certificates_that_can_change() {
    let place = Place::new(&CLUSTER, "sealed");
    shops(&place, &["blue"], "");
    certificate(&place, "one", "blue.sealed.example.com");
    certificate(&place, "two", "blue.sealed.example.com");
    place.sh("kubectl create secret tls blue --cert=one.crt --key=one.key");
    let tls = "tls: [{hosts: [blue.sealed.example.com], secretName: blue}]";
    let rules = rule("blue.sealed.example.com", &path("/", "blue"));
    place.apply(&noted("blue", &[("ssl-redirect", "true")], &format!("{tls}, rules: [{rules}]")));
    let ask_one = ask_securely("blue.sealed.example.com", "one.crt", "");
    place.until(&ask_one, "hello blue");
    place.until(
        &ask_securely("blue.sealed.example.com", "one.crt", "--http2 -w ' %{http_version}'"),
        "hello blue 2",
    );

    // Plain requests are sent there.
    let plain = format!(
        "curl -sS --max-time 5 -o /dev/null -w '%{{http_code}} %{{redirect_url}}' -H 'Host: blue.sealed.example.com' 'http://{}/a?b=c'",
        CLUSTER.address("ingress")
    );
    let port = CLUSTER.address("ingressTls").port();
    assert_eq!(place.sh(&plain), format!("308 https://blue.sealed.example.com:{port}/a?b=c"));

    // Another host has the ingress's own certificate, which nobody trusts by this one.
    let other = ask_securely("other.sealed.example.com", "one.crt", "");
    assert!(place.output(&format!("set -o pipefail; {other}")).status.code() == Some(60));

    place.sh("kubectl create secret tls blue --cert=two.crt --key=two.key --dry-run=client -o yaml | kubectl apply -f - 2>/dev/null");
    place.until(&ask_securely("blue.sealed.example.com", "two.crt", ""), "hello blue");
}

#[test]
fn annotations_change_what_an_ingress_does() {
    let place = Place::new(&CLUSTER, "noted");
    shops(&place, &["old", "new"], "");
    let rules = |service: &str| format!("rules: [{}]", rule("noted.example.com", &path("/", service)));
    place.apply(&noted("main", &[("affinity", "cookie"), ("session-cookie-name", "stay")], &rules("old")));
    let canary = [
        ("canary", "true"),
        ("canary-by-header", "X-New"),
        ("canary-by-cookie", "beta"),
        ("canary-weight", "0"),
    ];
    place.apply(&noted("main-canary", &canary, &rules("new")));
    let with = |more: &str| ask("noted.example.com", "/").replace("-sS", &format!("-sS {more}"));
    place.until(&with("-H 'X-New: always'"), "hello new 200");
    place.until(&with("-b beta=always"), "hello new 200");
    assert_eq!(place.sh(&with("")), "hello old 200");
    place
        .sh("kubectl annotate ingress main-canary --overwrite nginx.ingress.kubernetes.io/canary-weight=100");
    place.until(&with(""), "hello new 200");
    assert_eq!(place.sh(&with("-H 'X-New: never'")), "hello old 200");
    let cookie = place.sh(&with("-D - -o /dev/null -H 'X-New: never'"));
    assert!(cookie.to_lowercase().contains("set-cookie: stay="), "{cookie}");

    // One request at a time and no more: what comes at once is refused, what comes later is not.
    let limits = [("limit-rps", "1"), ("limit-burst-multiplier", "1")];
    let limited = format!("rules: [{}]", rule("limited.example.com", &path("/", "old")));
    place.apply(&noted("limited", &limits, &limited));
    place.until(&ask("limited.example.com", "/"), "hello old 200");
    let burst = format!("for i in 1 2 3 4 5; do {}; done", ask("limited.example.com", "/"));
    let said = place.sh(&burst);
    assert!(said.contains("503") && said.contains("too many requests"), "{said}");
    place.until(&ask("limited.example.com", "/"), "hello old 200");
}

#[test]
fn what_a_rule_matched_is_taken_away() {
    let place = Place::new(&CLUSTER, "rewritten");
    let image = CLUSTER.push("hello-http");
    place.sh(&format!("kubectl run echo --image {image} --port 8080"));
    place.sh("kubectl wait --for=condition=Ready pod/echo --timeout=60s");
    place.sh("kubectl expose pod echo --port 80 --target-port 8080");
    let rules = |host: &str, at: &str| format!("rules: [{}]", rule(host, &path(at, "echo")));
    place.apply(&noted("root", &[("rewrite-target", "/")], &rules("root.example.com", "/shop")));
    let strip = noted("strip", &[], &rules("strip.example.com", "/shop"));
    place
        .apply(&strip.replace("example.com/unknown: ignored", "traefik.frontend.rule.type: PathPrefixStrip"));
    for host in ["root.example.com", "strip.example.com"] {
        let path = ask(host, "/shop/a/b?c=d")
            .replace("-sS", "-sS -D - -o /dev/null")
            .replace("| xargs", "| grep -i x-path | tr -d '\\r'");
        place.until(&path, "x-path: /a/b");
    }
}
