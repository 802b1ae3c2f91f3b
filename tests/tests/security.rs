//! Who is let in and what they may do, as kubectl, curl and openssl find out: certificates, tokens, policies, audit.

use std::{
    path::Path,
    process::{Command, Output},
    sync::LazyLock,
};

use serde_json::Value;
use wasmk_tests::program::Program;

const POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  userGroups: [system:nodes, system:serviceaccounts:kube-system]
- level: Metadata
  resources: [{group: '', resources: [secrets, configmaps]}]
";
const TOKENS: &str = "t0ken-of-ann,ann,1001,\"dev,ops\"\nt0ken-of-bob,bob,1002\n";

/// A cluster with static tokens, an authority of somebody's own for clients and an audit log.
static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let own = ["-subj", "/CN=own-authority", "-days", "2", "-keyout", "own-ca.key", "-out", "own-ca.crt"];
    run("openssl", dir.path(), &[&["req", "-x509", "-newkey", "rsa:2048", "-nodes"], &own[..]].concat());
    let own = dir.path().join("own-ca.crt").display().to_string();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (tokens, policy) = (file("tokens.csv", TOKENS), file("policy.yaml", POLICY));
    let log = dir.path().join("audit.log").display().to_string();
    let flags = [
        "--no-node",
        "--token-auth-file",
        &tokens,
        "--client-ca-file",
        &own,
        "--audit-policy-file",
        &policy,
        "--audit-log-path",
        &log,
    ];
    let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Program::start_in(dir, &flags)
});

fn run(program: &str, dir: &Path, args: &[&str]) -> Output {
    let out = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// `curl` of the API: the code and the answer.
fn curl(cluster: &Program, path: &str, more: &[&str]) -> (String, Value) {
    let url = format!("https://{}{path}", cluster.address("api"));
    let out = Command::new("curl").args(["-sk", "-w", "\n%{http_code}", &url]).args(more).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", &text));
    (code.into(), serde_json::from_str(body).unwrap_or(Value::Null))
}

/// A kubeconfig like the administrator's, with another user.
fn kubeconfig(cluster: &Program, name: &str, credentials: &[&str]) -> String {
    let path = cluster.scratch().join(format!("{name}.kubeconfig")).display().to_string();
    std::fs::copy(cluster.kubeconfig(), &path).unwrap();
    let set = |args: &[&str]| cluster.kubectl(&[&["--kubeconfig", &path, "config"], args].concat());
    set(&[&["set-credentials", name], credentials].concat());
    set(&["set-context", "--current", "--user", name]);
    path
}

fn base64(bytes: &[u8]) -> String {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), bytes).unwrap();
    let out = run("base64", Path::new("/"), &["-w0", path.path().to_str().unwrap()]);
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn openssl_asks_for_a_certificate_and_becomes_a_user() {
    let dir = CLUSTER.scratch();
    run(
        "openssl",
        dir,
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "jakub.pem"],
    );
    let subject = "/CN=users:jakub/O=cool-people";
    run("openssl", dir, &["req", "-new", "-key", "jakub.pem", "-subj", subject, "-out", "jakub.csr"]);
    let request = base64(&std::fs::read(dir.join("jakub.csr")).unwrap());
    CLUSTER.apply(&format!(
        "apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {{name: jakub}}
spec: {{request: {request}, signerName: kubernetes.io/kube-apiserver-client, usages: [client auth]}}
"
    ));
    assert!(CLUSTER.kubectl(&["get", "csr", "jakub", "--no-headers"]).contains("Pending"));
    CLUSTER.kubectl(&["certificate", "approve", "jakub"]);
    let list = |p: &Program| p.kubectl(&["get", "csr", "jakub", "--no-headers"]);
    CLUSTER.until("the certificate", list, |row| row.contains("Approved,Issued"));
    let cert = CLUSTER.value("csr/jakub", "{.status.certificate}");
    std::fs::write(dir.join("jakub.b64"), cert).unwrap();
    let cert = run("base64", dir, &["-d", "jakub.b64"]).stdout;
    std::fs::write(dir.join("jakub.crt"), cert).unwrap();
    let (cert, key) =
        (dir.join("jakub.crt").display().to_string(), dir.join("jakub.pem").display().to_string());
    let file = kubeconfig(
        &CLUSTER,
        "jakub",
        &["--client-certificate", &cert, "--client-key", &key, "--embed-certs"],
    );
    let who = CLUSTER.kubectl(&["--kubeconfig", &file, "auth", "whoami"]);
    assert!(who.contains("users:jakub") && who.contains("cool-people system:authenticated"), "{who}");
    let refused = CLUSTER.kubectl_refused(&["--kubeconfig", &file, "get", "pods"], None);
    assert!(refused.contains("User \"users:jakub\" cannot list resource \"pods\""), "{refused}");
    CLUSTER.kubectl(&["create", "rolebinding", "jakub", "--clusterrole=view", "--group=cool-people"]);
    let may = |p: &Program| p.kubectl_output(&["--kubeconfig", &file, "get", "pods"], None).status.success();
    CLUSTER.until("the binding", may, |may| *may);
    CLUSTER.kubectl_refused(&["--kubeconfig", &file, "get", "secrets"], None);
    // Taking the binding away takes the rights away; the certificate stays what it is.
    CLUSTER.kubectl(&["delete", "rolebinding", "jakub"]);
    CLUSTER.until("no binding", may, |may| !*may);
}

#[test]
fn openssl_signs_with_the_authoritys_key() {
    let dir = CLUSTER.scratch();
    let (ca, key) =
        (format!("{}/pki/ca.crt", CLUSTER.data_dir()), format!("{}/pki/ca.key", CLUSTER.data_dir()));
    run(
        "openssl",
        dir,
        &[
            "req",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "tool.key",
            "-subj",
            "/CN=tool/O=system:masters",
            "-out",
            "tool.csr",
        ],
    );
    run(
        "openssl",
        dir,
        &[
            "x509",
            "-req",
            "-in",
            "tool.csr",
            "-CA",
            &ca,
            "-CAkey",
            &key,
            "-CAcreateserial",
            "-days",
            "2",
            "-out",
            "tool.crt",
        ],
    );
    let at = |name: &str| dir.join(name).display().to_string();
    let (code, nodes) =
        curl(&CLUSTER, "/api/v1/nodes", &["--cert", &at("tool.crt"), "--key", &at("tool.key")]);
    assert_eq!((code.as_str(), nodes["kind"].as_str()), ("200", Some("NodeList")));
    // The same by an authority nobody knows.
    run(
        "openssl",
        dir,
        &[
            "req",
            "-x509",
            "-new",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "odd.key",
            "-subj",
            "/CN=odd/O=system:masters",
            "-days",
            "2",
            "-out",
            "odd.crt",
        ],
    );
    let (code, status) =
        curl(&CLUSTER, "/api/v1/nodes", &["--cert", &at("odd.crt"), "--key", &at("odd.key")]);
    assert_eq!((code.as_str(), status["reason"].as_str()), ("401", Some("Unauthorized")));
}

#[test]
fn clients_of_another_authority_are_users_too() {
    let dir = CLUSTER.scratch();
    let at = |name: &str| dir.join(name).display().to_string();
    let subject = "/O=guests/O=outside/CN=carla";
    let ask =
        ["-newkey", "rsa:2048", "-nodes", "-keyout", "carla.key", "-subj", subject, "-out", "carla.csr"];
    run("openssl", dir, &[&["req", "-new"], &ask[..]].concat());
    let sign =
        ["-CA", "own-ca.crt", "-CAkey", "own-ca.key", "-CAcreateserial", "-days", "2", "-out", "carla.crt"];
    run("openssl", dir, &[&["x509", "-req", "-in", "carla.csr"], &sign[..]].concat());
    let (cert, key) = (at("carla.crt"), at("carla.key"));
    let file = kubeconfig(
        &CLUSTER,
        "carla",
        &["--client-certificate", &cert, "--client-key", &key, "--embed-certs"],
    );
    let who = CLUSTER.kubectl(&["--kubeconfig", &file, "auth", "whoami", "-o", "json"]);
    let who: Value = serde_json::from_str(&who).unwrap();
    let info = &who["status"]["userInfo"];
    assert_eq!(info["username"], "carla");
    assert_eq!(info["groups"], serde_json::json!(["guests", "outside", "system:authenticated"]));
    let (code, status) = curl(&CLUSTER, "/api/v1/nodes", &["--cert", &cert, "--key", &key]);
    assert!(
        code == "403" && status["message"].as_str().unwrap().contains("User \"carla\""),
        "{code} {status}"
    );
    // What that authority says of groups counts.
    CLUSTER.kubectl(&["create", "clusterrolebinding", "guests", "--clusterrole=view", "--group=guests"]);
    let may = |p: &Program| curl(p, "/api/v1/pods", &["--cert", &cert, "--key", &key]).0;
    CLUSTER.until("the binding", may, |code| code == "200");
}

#[test]
fn the_servers_certificate_has_the_names_of_a_cluster() {
    let path = format!("{}/pki/apiserver.crt", CLUSTER.data_dir());
    let out = run("openssl", Path::new("/"), &["x509", "-in", &path, "-noout", "-ext", "subjectAltName"]);
    let names = String::from_utf8(out.stdout).unwrap();
    let inside = format!("IP Address:{}", CLUSTER.value("service/kubernetes", "{.spec.clusterIP}"));
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_lowercase();
    let host = format!("DNS:{host}");
    for name in [
        "DNS:kubernetes,",
        "DNS:kubernetes.default,",
        "DNS:kubernetes.default.svc,",
        "DNS:kubernetes.default.svc.cluster.local",
        "DNS:localhost",
        "IP Address:127.0.0.1",
        &inside,
        &host,
    ] {
        assert!(names.contains(name), "{name} in {names}");
    }
    // A client that knows another authority does not talk to it.
    let url = format!("https://{}/version", CLUSTER.address("api"));
    let ca = format!("{}/pki/ca.crt", CLUSTER.data_dir());
    assert!(Command::new("curl").args(["-s", "--cacert", &ca, &url]).status().unwrap().success());
    assert!(!Command::new("curl").args(["-s", &url]).status().unwrap().success());
}

#[test]
fn static_tokens_are_users_with_groups() {
    let bearer = |token: &str| format!("Authorization: Bearer {token}");
    let file = kubeconfig(&CLUSTER, "ann", &["--token", "t0ken-of-ann"]);
    let config = std::fs::read_to_string(&file).unwrap();
    assert!(config.contains("t0ken-of-ann"));
    let who = CLUSTER.kubectl(&["--kubeconfig", &file, "auth", "whoami", "-o", "json"]);
    let who: Value = serde_json::from_str(&who).unwrap();
    let info = &who["status"]["userInfo"];
    assert_eq!((info["username"].as_str(), info["uid"].as_str()), (Some("ann"), Some("1001")));
    assert_eq!(info["groups"], serde_json::json!(["dev", "ops", "system:authenticated"]));
    assert_eq!(curl(&CLUSTER, "/api/v1/pods", &["-H", &bearer("t0ken-of-bob")]).0, "403");
    assert_eq!(curl(&CLUSTER, "/api/v1/pods", &["-H", &bearer("t0ken-of-eve")]).0, "401");
    let (code, status) = curl(&CLUSTER, "/api/v1/pods", &[]);
    assert!(code == "403" && status["message"].as_str().unwrap().contains("system:anonymous"));
    // There are no users to list, and bindings name whom they like.
    assert!(
        CLUSTER.kubectl_refused(&["get", "users"], None).contains("the server doesn't have a resource type")
    );
    CLUSTER.kubectl(&[
        "create",
        "clusterrolebinding",
        "nobody",
        "--clusterrole=view",
        "--user=nobody-at-all",
    ]);
}

#[test]
fn the_audit_log_says_who_touched_what() {
    CLUSTER.kubectl(&["create", "secret", "generic", "audited", "--from-literal=k=s3cret-value"]);
    let refused = CLUSTER.kubectl_refused(&["--as=ann", "get", "secret", "audited"], None);
    assert!(refused.contains("(Forbidden)"), "{refused}");
    assert_eq!(curl(&CLUSTER, "/api/v1/namespaces/default/secrets/audited", &[]).0, "403");
    let path = CLUSTER.scratch().join("audit.log");
    let events = |_: &Program| -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(!text.contains("s3cret") && !text.contains("czNjcmV0"), "{text}");
        let all = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        all.filter(|e: &Value| e["objectRef"]["name"] == "audited").collect()
    };
    let found = CLUSTER.until("all events", events, |found| found.len() >= 3);
    let nobody =
        found.iter().find(|e| e["user"]["username"] == "system:anonymous").expect("the anonymous read");
    assert_eq!(nobody["user"]["groups"], serde_json::json!(["system:unauthenticated"]));
    let read = found.iter().find(|e| !e["impersonatedUser"].is_null()).expect("the refused read");
    assert_eq!(read["impersonatedUser"]["username"], "ann");
    assert_eq!(read["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(
        (read["level"].as_str(), read["responseStatus"]["code"].as_i64()),
        (Some("Metadata"), Some(403))
    );
    assert_eq!(read["sourceIPs"], serde_json::json!(["127.0.0.1"]));
}

#[test]
fn a_secret_holds_an_accounts_token_as_long_as_it_is_there() {
    CLUSTER.kubectl(&["create", "serviceaccount", "legacy"]);
    CLUSTER.apply(
        "apiVersion: v1
kind: Secret
type: kubernetes.io/service-account-token
metadata: {name: legacy-token, annotations: {kubernetes.io/service-account.name: legacy}}
",
    );
    let read = |p: &Program| p.kubectl(&["get", "secret", "legacy-token", "-o", "jsonpath={.data.token}"]);
    let encoded = CLUSTER.until("the token", read, |token| !token.is_empty());
    let file = CLUSTER.scratch().join("legacy.b64");
    std::fs::write(&file, encoded).unwrap();
    let token = run("base64", CLUSTER.scratch(), &["-d", file.to_str().unwrap()]).stdout;
    let token = String::from_utf8(token).unwrap();
    let payload = token.split('.').nth(1).unwrap().replace('-', "+").replace('_', "/");
    std::fs::write(&file, format!("{payload}{}", "=".repeat((4 - payload.len() % 4) % 4))).unwrap();
    let claims = run("base64", CLUSTER.scratch(), &["-d", file.to_str().unwrap()]).stdout;
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["iss"], "kubernetes/serviceaccount");
    assert_eq!(claims["sub"], "system:serviceaccount:default:legacy");
    assert_eq!(claims["kubernetes.io/serviceaccount/namespace"], "default");
    assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "legacy-token");
    assert_eq!(claims["kubernetes.io/serviceaccount/service-account.name"], "legacy");
    // Whoever may read it is shown it as it is.
    for shown in [
        CLUSTER.kubectl(&["describe", "secret", "legacy-token"]),
        CLUSTER.wasmk(&["describe", "secret", "legacy-token"]),
    ] {
        assert!(shown.contains(&token) && shown.contains("namespace:  7 bytes"), "{shown}");
    }
    let account = CLUSTER.value("serviceaccount/legacy", "{.metadata.uid}");
    assert_eq!(claims["kubernetes.io/serviceaccount/service-account.uid"], account);
    for field in ["ca\\.crt", "namespace"] {
        assert!(!CLUSTER.value("secret/legacy-token", &format!("{{.data.{field}}}")).is_empty(), "{field}");
    }
    let bearer = format!("Authorization: Bearer {token}");
    let ask = |p: &Program| curl(p, "/api/v1/namespaces/default/pods", &["-H", &bearer]).0;
    assert_eq!(ask(&CLUSTER), "403");
    // New rights need no new token.
    CLUSTER.kubectl(&[
        "create",
        "rolebinding",
        "legacy",
        "--clusterrole=view",
        "--serviceaccount=default:legacy",
    ]);
    CLUSTER.until("the right", ask, |code| code == "200");
    CLUSTER.kubectl(&["delete", "secret", "legacy-token"]);
    CLUSTER.until("the end of the token", ask, |code| code == "401");
}

#[test]
fn roles_for_people_say_what_they_are_called() {
    CLUSTER.kubectl(&["create", "namespace", "team"]);
    for role in ["view", "edit", "admin"] {
        let (name, user) = (format!("--clusterrole={role}"), format!("--user={role}-er"));
        CLUSTER.kubectl(&["-n", "team", "create", "rolebinding", role, &name, &user]);
    }
    CLUSTER.kubectl(&["create", "clusterrolebinding", "boss", "--clusterrole=cluster-admin", "--user=boss"]);
    let ask = |who: &str, question: &[&str]| {
        let who = format!("--as={who}");
        let out = CLUSTER.kubectl_output(&[&["auth", "can-i", &who], question].concat(), None);
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let ready = |_: &Program| ask("view-er", &["list", "pods", "-n", "team"]);
    CLUSTER.until("aggregated roles", ready, |answer| answer == "yes");
    for (who, question, expect) in [
        ("view-er", &["list", "pods", "-n", "team"][..], "yes"),
        ("view-er", &["get", "secrets", "-n", "team"], "no"),
        ("view-er", &["create", "deployments.apps", "-n", "team"], "no"),
        ("view-er", &["list", "pods"], "no"),
        ("edit-er", &["create", "deployments.apps", "-n", "team"], "yes"),
        ("edit-er", &["create", "roles.rbac.authorization.k8s.io", "-n", "team"], "no"),
        ("admin-er", &["create", "rolebindings.rbac.authorization.k8s.io", "-n", "team"], "yes"),
        ("admin-er", &["update", "resourcequotas", "-n", "team"], "no"),
        ("admin-er", &["create", "networkpolicies.networking.k8s.io", "-n", "team"], "yes"),
        ("admin-er", &["create", "networkpolicies.networking.k8s.io", "-n", "default"], "no"),
        ("view-er", &["create", "networkpolicies.networking.k8s.io", "-n", "team"], "no"),
        ("admin-er", &["list", "nodes"], "no"),
        ("boss", &["*", "*", "--all-namespaces"], "yes"),
        ("boss", &["get", "/metrics"], "yes"),
        ("view-er", &["get", "/metrics"], "no"),
    ] {
        assert_eq!(ask(who, question), expect, "{who} {question:?}");
    }
    let list = CLUSTER.kubectl(&["auth", "can-i", "--list", "--as=view-er", "-n", "team"]);
    assert!(list.contains("pods/log") && list.contains("selfsubjectreviews"), "{list}");
    // Nobody hands out more than they have.
    let more = [
        "-n",
        "team",
        "create",
        "rolebinding",
        "grab",
        "--clusterrole=cluster-admin",
        "--user=admin-er",
        "--as=admin-er",
    ];
    let refused = CLUSTER.kubectl_refused(&more, None);
    assert!(refused.contains("is attempting to grant RBAC permissions not currently held"), "{refused}");
    let basic = CLUSTER.kubectl(&["get", "clusterrole", "system:basic-user", "-o", "json"]);
    let basic: Value = serde_json::from_str(&basic).unwrap();
    assert_eq!(basic["metadata"]["labels"]["kubernetes.io/bootstrapping"], "rbac-defaults");
    assert_eq!(basic["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"], "true");
}

#[test]
fn keys_and_tokens_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let mut folders = vec![Path::new(&CLUSTER.data_dir()).join("pki")];
    let mut count = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            if path.is_dir() {
                assert_eq!(mode, 0o700, "{}", path.display());
                folders.push(path);
            } else {
                assert_eq!(mode, 0o600, "{}", path.display());
                count += 1;
            }
        }
    }
    assert!(count >= 7, "{count} files");
    let mode = std::fs::metadata(CLUSTER.kubeconfig()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let log = CLUSTER.log();
    assert!(!log.contains("t0ken-of") && !log.contains("PRIVATE KEY"), "{log}");
}

/// Who makes the pods of a ReplicaSet.
const REPLICAS: &str = "system:serviceaccount:kube-system:replicaset-controller";

/// What is behind `kubectl run` and `kubectl create deployment`, by what each part leaves behind.
#[test]
fn every_part_leaves_a_trace_of_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let all = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
               - level: RequestResponse\n  resources: [{group: '', resources: [pods, pods/binding]}, {group: apps}]\n";
    let (policy, tokens) = (file("policy.yaml", all), file("tokens.csv", TOKENS));
    let log = dir.path().join("audit.log");
    let (path, ann) = (log.display().to_string(), "--token=t0ken-of-ann");
    let flags = ["--audit-policy-file", &policy, "--audit-log-path", &path, "--token-auth-file", &tokens];
    let flags = flags.map(String::from);
    let cluster = Program::start_in(dir, &flags.each_ref().map(String::as_str));
    let image = cluster.push("hello-http");
    let account =
        |p: &Program| p.kubectl_output(&["get", "serviceaccount", "default"], None).status.success();
    cluster.until("the default account", account, |there| *there);
    let config = kubeconfig(&cluster, "ann", &[ann]);
    fn by<'a>(config: &'a str, args: &[&'a str]) -> Vec<&'a str> {
        [&["--kubeconfig", config][..], args].concat()
    }
    let with_image = format!("--image={image}");
    let create = by(&config, &["create", "deployment", "web", &with_image]);

    // Authentication and authorization: who nobody is, and who may not.
    assert_eq!(curl(&cluster, "/api/v1/pods", &["-H", "Authorization: Bearer wrong"]).0, "401");
    let refused = cluster.kubectl_refused(&create, None);
    assert!(refused.contains("User \"ann\" cannot create resource \"deployments\""), "{refused}");
    cluster.kubectl(&["create", "rolebinding", "ann", "--clusterrole=edit", "--user=ann"]);
    // Validation.
    let refused = cluster.kubectl_refused(&by(&config, &["run", "Bad_Name", &with_image]), None);
    assert!(refused.contains("metadata.name: Invalid value: \"Bad_Name\""), "{refused}");
    cluster.until("she may", |p| p.kubectl_output(&create, None).status, |status| status.success());
    cluster.until_value("deployment/web", "{.status.availableReplicas}", "1");
    cluster.until_value("pods", "{.items[0].status.phase}", "Running");

    let audited = |_: &Program| -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let is = |event: &Value, verb: &str, resource: &str, user: &str, code: i64| {
        event["verb"] == verb
            && event["objectRef"]["resource"] == resource
            && event["user"]["username"] == user
            && event["responseStatus"]["code"] == code
    };
    let steps = [
        ("create", "deployments", "ann", 403),
        ("create", "pods", "ann", 422),
        ("create", "deployments", "ann", 201),
        ("create", "replicasets", "system:serviceaccount:kube-system:deployment-controller", 201),
        ("create", "pods", REPLICAS, 201),
        ("create", "pods", "system:kube-scheduler", 201),
    ];
    let events = cluster.until("all steps", audited, |events| {
        steps
            .iter()
            .all(|(verb, resource, user, code)| events.iter().any(|e| is(e, verb, resource, user, *code)))
    });
    let find = |verb, resource, user, code| {
        events.iter().find(|e| is(e, verb, resource, user, code)).expect("a step")
    };
    let decision = |event: &Value| event["annotations"]["authorization.k8s.io/decision"].clone();
    assert_eq!(decision(find("create", "deployments", "ann", 403)), "forbid");
    let stored = find("create", "deployments", "ann", 201);
    assert_eq!(decision(stored), "allow");
    // Stored: it has a version. Admitted: the pod was asked for without an account, and has one.
    assert!(stored["responseObject"]["metadata"]["resourceVersion"].is_string(), "{stored}");
    let pod = find("create", "pods", REPLICAS, 201);
    let account = |of: &str| pod[of]["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    assert_eq!((account("requestObject"), account("responseObject")), (String::new(), "default".into()));
    let bound = find("create", "pods", "system:kube-scheduler", 201);
    assert_eq!(bound["objectRef"]["subresource"], "binding");

    // Controllers, scheduler, kubelet and runtime tell what they did themselves.
    let told = |p: &Program| p.kubectl(&["get", "events", "-o", "jsonpath={range .items[*]}{.reason} {end}"]);
    let reasons = ["ScalingReplicaSet", "SuccessfulCreate", "Scheduled", "Created", "Started"];
    cluster.until("events", told, |told| reasons.iter().all(|r| told.split(' ').any(|t| t == *r)));
    assert!(cluster.log().contains("compiled "), "{}", cluster.log());
}

#[test]
fn a_policy_file_and_plugins_by_flag() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let tokens = file("tokens.csv", "guest-token,sisense_guest,1\n");
    let policy = file(
        "policy.json",
        r#"{
  "apiVersion": "abac.authorization.kubernetes.io/v1beta1",
  "kind": "Policy",
  "spec": {
    "user": "sisense_guest",
    "namespace": "sisense",
    "resource": "pods",
    "readonly": true
  }
}"#,
    );
    let flags = [
        "--no-node",
        "--token-auth-file",
        &tokens,
        "--authorization-mode=Node,RBAC,ABAC",
        "--authorization-policy-file",
        &policy,
        "--enable-admission-plugins=AlwaysPullImages,NamespaceLifecycle",
        "--disable-admission-plugins=DefaultTolerationSeconds",
    ];
    let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let cluster = Program::start_in(dir, &flags);
    cluster.kubectl(&["create", "namespace", "sisense"]);
    let guest = ["-H", "Authorization: Bearer guest-token"];
    for (path, method, expect) in [
        ("/api/v1/namespaces/sisense/pods", "GET", "200"),
        ("/api/v1/namespaces/sisense/pods/x", "DELETE", "403"),
        ("/api/v1/namespaces/sisense/secrets", "GET", "403"),
        ("/api/v1/namespaces/default/pods", "GET", "403"),
    ] {
        assert_eq!(
            curl(&cluster, path, &[&guest[..], &["-X", method]].concat()).0,
            expect,
            "{method} {path}"
        );
    }
    let account =
        |p: &Program| p.kubectl_output(&["get", "serviceaccount", "default"], None).status.success();
    cluster.until("the default account", account, |there| *there);
    cluster.kubectl(&["run", "p", "--image=busybox:1", "--image-pull-policy=Never"]);
    assert_eq!(cluster.value("pod/p", "{.spec.containers[0].imagePullPolicy}"), "Always");
    assert_eq!(cluster.value("pod/p", "{.spec.tolerations}"), "");
}

#[test]
fn wrong_flags_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let odd = dir.path().join("odd").display().to_string();
    std::fs::write(&odd, "nonsense").unwrap();
    for (flags, expect) in [
        (&["--basic-auth-file", odd.as_str()][..], "removed in Kubernetes 1.19"),
        (&["--token-auth-file", "/nowhere/tokens"], "cannot read /nowhere/tokens"),
        (&["--token-auth-file", &odd], "line 1: token, user name and user id were expected"),
        (&["--authorization-mode=ABAC"], "needs --authorization-policy-file"),
        (&["--authorization-mode=Magic"], "one of Node, RBAC, ABAC"),
        (&["--enable-admission-plugins=Magic"], "there is no admission plugin \"Magic\""),
        (&["--audit-policy-file", &odd], "needs --audit-log-path"),
        (&["--client-ca-file", &odd], "holds no PEM certificate"),
        (&["--oidc-issuer-url=http://x", "--oidc-client-id=y"], "an https:// URL was expected"),
    ] {
        let said = CLUSTER.refused(&[&["up", "--data-dir", &data], flags].concat());
        assert!(said.contains(expect), "{flags:?}: {said}");
    }
}

#[test]
fn what_is_taken_from_a_system_role_is_back_after_a_restart() {
    let cluster = Program::start_with(&["--no-node"]);
    let rules = |p: &Program, role: &str| p.value(&format!("clusterrole/{role}"), "{.rules}");
    let (whole, kept) = (rules(&cluster, "system:basic-user"), rules(&cluster, "system:discovery"));
    for role in ["system:basic-user", "system:discovery"] {
        cluster.kubectl(&["patch", "clusterrole", role, "--type=merge", "-p", r#"{"rules":[]}"#]);
    }
    let mark = "rbac.authorization.kubernetes.io/autoupdate=false";
    cluster.kubectl(&["annotate", "--overwrite", "clusterrole", "system:discovery", mark]);
    let cluster = cluster.restart();
    assert_eq!(rules(&cluster, "system:basic-user"), whole);
    assert_ne!(rules(&cluster, "system:discovery"), kept);
}
