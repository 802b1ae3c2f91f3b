//! Who may do what: service accounts, strangers, and the question itself.

use std::{process::Command, sync::LazyLock};

use wasmk_tests::{
    place::{Place, Running},
    program::Program,
};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start_with(&["--no-node"]);
    program.apply(&program.example("rbac.yaml"));
    program
});

#[test]
fn an_account_may_do_what_its_role_says_and_no_more() {
    let token = CLUSTER.kubectl(&["create", "token", "reader"]);
    let file = CLUSTER.scratch().join("reader.kubeconfig");
    let config = std::fs::read_to_string(CLUSTER.kubeconfig()).unwrap();
    std::fs::write(&file, config).unwrap();
    let file = file.to_str().unwrap();
    // A client certificate would win over the token.
    CLUSTER.kubectl(&["--kubeconfig", file, "config", "set-credentials", "reader", "--token", token.trim()]);
    CLUSTER.kubectl(&["--kubeconfig", file, "config", "set-context", "--current", "--user", "reader"]);
    let whoami = CLUSTER.kubectl(&["--kubeconfig", file, "auth", "whoami"]);
    assert!(whoami.contains("system:serviceaccount:default:reader"), "{whoami}");

    CLUSTER.kubectl(&["--kubeconfig", file, "get", "pods"]);
    for (args, refusal) in [
        (
            &["get", "pods", "-n", "kube-system"][..],
            "cannot list resource \"pods\" in API group \"\" in the namespace \"kube-system\"",
        ),
        (&["delete", "pod", "x"][..], "cannot delete resource \"pods\""),
        (&["get", "secrets"][..], "cannot list resource \"secrets\""),
        (&["get", "nodes"][..], "at the cluster scope"),
        (&["get", "pods", "--as=ann"][..], "cannot impersonate resource \"users\""),
        (&["get", "pods", "--as=ann", "--as-group=system:masters"][..], "cannot impersonate"),
    ] {
        let said = CLUSTER.kubectl_refused(&[&["--kubeconfig", file], args].concat(), None);
        assert!(said.contains("(Forbidden)") && said.contains(refusal), "{said}");
    }
    // Who is allowed to speak for one may speak for that one.
    CLUSTER.apply(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: voice-of-ann}\n\
         rules: [{apiGroups: [''], resources: [users], verbs: [impersonate], resourceNames: [ann]}]\n",
    );
    let subject = "--serviceaccount=default:reader";
    CLUSTER.kubectl(&["create", "clusterrolebinding", "voice-of-ann", "--clusterrole=voice-of-ann", subject]);
    let as_ann = |p: &Program| {
        let out = p.kubectl_output(&["--kubeconfig", file, "auth", "whoami", "--as=ann"], None);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    CLUSTER.until("the right to be ann", as_ann, |who| {
        who.lines().any(|line| line.split_whitespace().eq(["Username", "ann"]))
    });
    let said = CLUSTER.kubectl_refused(&["--kubeconfig", file, "get", "pods", "--as=bob"], None);
    assert!(said.contains("cannot impersonate resource \"users\""), "{said}");
    let said = CLUSTER.kubectl_refused(&["--kubeconfig", file, "get", "pods", "--as=ann"], None);
    assert!(said.contains("User \"ann\" cannot list resource \"pods\""), "{said}");
}

#[test]
fn a_stranger_is_refused() {
    let url = format!("https://{}/api/v1/pods", CLUSTER.address("api"));
    let ask = |more: &[&str]| {
        let out = Command::new("curl").args(["-sk", "-w", "%{http_code}", &url]).args(more).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let anonymous = ask(&[]);
    assert!(anonymous.ends_with("403") && anonymous.contains("system:anonymous"), "{anonymous}");
    assert!(ask(&["-H", "Authorization: Bearer nonsense"]).ends_with("401"));
}

#[test]
fn can_i_answers_for_others() {
    let reader = "--as=system:serviceaccount:default:reader";
    assert_eq!(CLUSTER.kubectl(&["auth", "can-i", "list", "pods", reader]), "yes\n");
    for question in
        [&["delete", "pods"][..], &["list", "pods", "-n", "kube-system"][..], &["get", "secrets"][..]]
    {
        let out = CLUSTER.kubectl_output(&[&["auth", "can-i", reader], question].concat(), None);
        assert_eq!(String::from_utf8_lossy(&out.stdout), "no\n", "{question:?}");
    }
}

/// The answer to `kubectl auth can-i`: `yes` or `no`.
fn can(place: &Place, who: &str, what: &str) -> String {
    let said = place.sh(&format!("kubectl auth can-i {what} {who} 2>/dev/null || true"));
    said.split_whitespace().next().unwrap_or("").to_owned()
}

/// Rights that follow from roles and bindings: who, what, and the answer.
fn check(place: &Place, cases: &[(&str, &str, &str)]) {
    for (who, what, expected) in cases {
        assert_eq!(&can(place, who, what), expected, "{who}: {what}");
    }
}

const BINDINGS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: secret-watcher}
rules: [{apiGroups: [''], resources: [secrets], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: watchers, namespace: binds}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: secret-watcher}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: ann}
- {apiGroup: rbac.authorization.k8s.io, kind: Group, name: watch}
- {kind: ServiceAccount, name: viewer, namespace: other}
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: 'binds:local'}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: early, namespace: binds}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: not-yet}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: early}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: fields, namespace: binds}
rules: [{apiGroups: [''], resources: [configmaps.data, configmaps/data], verbs: ['*']}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: fields, namespace: binds}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: fields}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: fielder}]
";

#[test]
fn bindings_give_rights_to_their_subjects_where_they_are() {
    let place = Place::new(&CLUSTER, "binds");
    place.sh("kubectl create namespace other");
    place.write("bindings.yaml", BINDINGS);
    place.sh("kubectl apply -f bindings.yaml");
    check(
        &place,
        &[
            // A cluster role by a role binding holds in that namespace alone.
            ("--as=ann", "list secrets", "yes"),
            ("--as=ann", "list secrets -n other", "no"),
            ("--as=ann", "list secrets -A", "no"),
            ("--as=ann", "create secrets", "no"),
            ("--as=ann", "list secrets.apps", "no"),
            // Every sort of subject; an account needs its namespace.
            ("--as=bob --as-group=watch", "get secrets/any", "yes"),
            ("--as=bob --as-group=others", "get secrets/any", "no"),
            ("--as=system:serviceaccount:other:viewer", "list secrets", "yes"),
            ("--as=system:serviceaccount:binds:viewer", "list secrets", "no"),
            // A user called like an account is not that account.
            ("--as=binds:local", "list secrets", "yes"),
            ("--as=system:serviceaccount:binds:local", "list secrets", "no"),
            // What is not there yet, and what rules cannot say.
            ("--as=early", "list pods", "no"),
            ("--as=fielder", "get configmaps", "no"),
            ("--as=fielder", "patch configmaps", "no"),
        ],
    );
    place.sh("kubectl create role not-yet --verb=list --resource=pods");
    CLUSTER.until("the role's rights", |_| can(&place, "--as=early", "list pods"), |said| said == "yes");
    let refused = |script: &str, why: &str| {
        let out = place.output(script);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(why), "{script}: {said}");
    };
    let binding =
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: wrong}";
    let role = "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: fields}";
    place.write("role.yaml", &format!("{binding}\n{role}\n"));
    refused("kubectl create -f role.yaml", "roleRef.kind: Unsupported value: \"Role\"");
    let role = role.replace("kind: Role", "kind: ClusterRole");
    place.write(
        "nowhere.yaml",
        &format!("{binding}\n{role}\nsubjects: [{{kind: ServiceAccount, name: x}}]\n"),
    );
    refused("kubectl create -f nowhere.yaml", "subjects[0].namespace: Required value");
}

#[test]
fn an_accounts_rights_end_at_its_namespace_unless_given() {
    let place = Place::new(&CLUSTER, "tiller-world");
    place.sh(
        "kubectl create namespace myorg-users && kubectl create namespace myorg-system
         kubectl create sa tiller && kubectl create sa tiller -n myorg-system && kubectl create sa tiller -n kube-system
         kubectl create role tiller-manager --verb='*' --resource='*.,*.apps,*.batch'
         kubectl create rolebinding tiller --role=tiller-manager --serviceaccount=tiller-world:tiller
         kubectl create role tiller-manager -n myorg-users --verb='*' --resource='*.,*.apps'
         kubectl create rolebinding tiller -n myorg-users --role=tiller-manager --serviceaccount=myorg-system:tiller
         kubectl create role tiller -n myorg-system --verb='*' --resource=configmaps
         kubectl create rolebinding tiller -n myorg-system --role=tiller --serviceaccount=myorg-system:tiller
         kubectl create clusterrolebinding tiller --clusterrole=cluster-admin --serviceaccount=kube-system:tiller",
    );
    let (own, system, admin) = (
        "--as=system:serviceaccount:tiller-world:tiller",
        "--as=system:serviceaccount:myorg-system:tiller",
        "--as=system:serviceaccount:kube-system:tiller",
    );
    check(
        &place,
        &[
            (own, "create deployments", "yes"),
            (own, "delete pods", "yes"),
            (own, "get pods -n default", "no"),
            (own, "create roles", "no"),
            (system, "create deployments -n myorg-users", "yes"),
            (system, "list pods -n tiller-world", "no"),
            (system, "create configmaps -n myorg-system", "yes"),
            (system, "get secrets -n myorg-system", "no"),
            (admin, "'*' '*' -A", "yes"),
            (admin, "get /metrics", "yes"),
        ],
    );
}

#[test]
fn every_namespace_has_an_account_without_rights() {
    let place = Place::new(&CLUSTER, "fresh");
    let there = |_: &Program| place.sh("kubectl get serviceaccounts -o name");
    CLUSTER.until("the default account", there, |names| names == "serviceaccount/default");
    let account = "--as=system:serviceaccount:fresh:default";
    check(&place, &[(account, "get pods", "no"), (account, "get configmaps -n default", "no")]);
    place.sh("kubectl create sa robot && kubectl create token robot >/dev/null");
    // Pods get the account they name, else the default one, and its token; an account that is not there is an error.
    let script = |name: &str, more: &str| {
        format!(
            "kubectl run {name} --image=none --dry-run=server -o json {more} | jq -r \
             '.spec.serviceAccountName + \" \" + (.spec.volumes[0].projected.sources[0].serviceAccountToken.path)'"
        )
    };
    assert_eq!(place.sh(&script("plain", "")), "default token");
    let with = |name: &str| format!("--overrides='{{\"spec\":{{\"serviceAccountName\":\"{name}\"}}}}'");
    assert_eq!(place.sh(&script("own", &with("robot"))), "robot token");
    let out = place.output(&format!("kubectl run none --image=none {}", with("nobody")));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        said.contains("error looking up service account fresh/nobody: serviceaccount \"nobody\" not found"),
        "{said}"
    );
}

#[test]
fn the_administrator_is_of_the_masters() {
    let place = Place::new(&CLUSTER, "masters");
    let subject = place.sh(
        "kubectl config view --raw --minify -o jsonpath='{.users[0].user.client-certificate-data}' | base64 -d | \
         openssl x509 -noout -subject -nameopt RFC2253",
    );
    let parts: Vec<&str> = subject.trim_start_matches("subject=").split(',').map(str::trim).collect();
    assert!(parts.contains(&"CN=kubernetes-admin") && parts.contains(&"O=system:masters"), "{subject}");
    check(
        &place,
        &[("", "'*' '*' -A", "yes"), ("--as=anyone --as-group=system:masters", "'*' '*' -A", "yes")],
    );
}

#[test]
fn a_proxy_with_a_limited_account_gives_its_rights_and_no_more() {
    let place = Place::new(&CLUSTER, "limited");
    place.sh("kubectl create sa viewer && kubectl create role viewer --verb=get,list --resource=configmaps
         kubectl create rolebinding viewer --role=viewer --serviceaccount=limited:viewer
         cp config limited && token=$(kubectl create token viewer)
         kubectl --kubeconfig limited config set-credentials viewer --token $token
         kubectl --kubeconfig limited config set-context --current --user viewer");
    let _proxy = Running::start(
        place.command("bash").args(["-c", "kubectl --kubeconfig limited proxy --unix-socket=./proxy.sock"]),
    );
    let code = |path: &str| {
        place.sh(&format!(
            "curl -s -o /dev/null -w '%{{http_code}}' --unix-socket proxy.sock http://localhost{path} || true"
        ))
    };
    let maps = "/api/v1/namespaces/limited/configmaps";
    CLUSTER.until("the proxy", |_| code(maps), |said| said == "200");
    for (path, expected) in
        [("/api/v1/namespaces/limited/secrets", "403"), ("/api/v1/namespaces/default/configmaps", "403")]
    {
        assert_eq!(code(path), expected, "{path}");
    }
}
