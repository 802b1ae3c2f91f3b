//! Programs in pods that use the API as their pod's account: clients, and somebody's controller in a Deployment. The
//! pods borrow this machine's programs. Skipped, with a word, where containers cannot be run and need not be.

use std::path::Path;

use wasmk_tests::{
    node::{Node, container, pod, together},
    program::{Program, binary},
};

/// Where a pod has what its account needs.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// This machine's directories with programs and what these load, mounted where they are: volumes of a pod, and
/// mounts of its container.
fn borrowed() -> (String, String) {
    let own = binary().parent().expect("a directory").display().to_string();
    let clients = std::env::var("WASMK_TEST_VENV").expect("WASMK_TEST_VENV is set by `make test`");
    let all = ["/usr", "/lib", "/lib64", &own, &clients];
    let there: Vec<&str> = all.into_iter().filter(|path| Path::new(path).is_dir()).collect();
    let each = |text: &dyn Fn(usize, &str) -> String| {
        there.iter().enumerate().map(|(n, path)| text(n, path)).collect::<Vec<_>>().join(", ")
    };
    let volumes = each(&|n, path| format!("{{name: b{n}, hostPath: {{path: {path}}}}}"));
    let mounts = each(&|n, path| format!("{{name: b{n}, mountPath: {path}, readOnly: true}}"));
    (format!("volumes: [{volumes}], "), format!(", volumeMounts: [{mounts}]"))
}

#[test]
fn programs_in_pods_use_the_api_as_their_account() {
    let Some(node) = Node::start() else { return };
    together(
        &node.program,
        &[
            clients_need_no_kubeconfig,
            the_api_is_known_by_its_name_everywhere,
            an_operator_is_a_definition_roles_and_a_deployment,
        ],
    );
}

fn clients_need_no_kubeconfig(p: &Program) {
    p.kubectl(&["create", "serviceaccount", "viewer"]);
    p.kubectl(&["create", "rolebinding", "viewer", "--clusterrole=view", "--serviceaccount=default:viewer"]);
    let (volumes, mounts) = borrowed();
    let spec = format!("{volumes}serviceAccountName: viewer, ");
    p.apply(&pod("inside", &spec, &[container("main", "sleep 600", &mounts)]));
    p.until_row("inside", "1/1 Running");
    for client in ["/usr/bin/env kubectl", &binary().display().to_string()] {
        let client = format!("PATH=/usr/local/bin:/usr/bin:/bin {client}");
        let all = p.within("inside", &format!("{client} get all"));
        for there in ["pod/inside", "service/kubernetes"] {
            assert!(all.contains(there), "{client}: {there} in {all}");
        }
        let said = p.within("inside", &format!("{client} run more --image=none 2>&1 && echo made || true"));
        assert!(
            said.contains("User \"system:serviceaccount:default:viewer\" cannot create resource \"pods\"")
                && !said.ends_with("made\n"),
            "{client}: {said}"
        );
    }
    p.kubectl(&["delete", "pod", "inside", "--now"]);
}

fn the_api_is_known_by_its_name_everywhere(p: &Program) {
    p.kubectl(&["create", "namespace", "elsewhere"]);
    let account = ["get", "serviceaccount", "default", "-n", "elsewhere"];
    p.until("its account", |p| p.kubectl_output(&account, None).status.success(), |there| *there);
    p.kubectl(&["create", "role", "ends", "--verb=get", "--resource=endpoints", "-n", "default"]);
    let (volumes, mounts) = borrowed();
    let abroad = pod("abroad", &volumes, &[container("main", "sleep 600", &mounts)]);
    p.apply(&abroad.replace("metadata: {name: abroad", "metadata: {namespace: elsewhere, name: abroad"));
    let running = |p: &Program| {
        let phase = ["get", "pod", "abroad", "-n", "elsewhere", "-o", "jsonpath={.status.phase}"];
        p.kubectl(&phase)
    };
    p.until("it runs", running, |phase| phase == "Running");
    let ask = |flags: &str, path: &str| {
        let line = format!(
            "/usr/bin/curl -sS --max-time 10 {flags} -H \"Authorization: Bearer $(cat {ACCOUNT}/token)\" \
             https://kubernetes.default.svc.cluster.local:443{path} 2>&1 || true"
        );
        p.within("abroad -n elsewhere", &line)
    };
    let trusting = format!("--cacert {ACCOUNT}/ca.crt");
    let version = ask(&trusting, "/version");
    assert!(
        version.contains("\"gitVersion\": \"v1.36.") || version.contains("\"gitVersion\":\"v1.36."),
        "{version}"
    );
    let distrusting = ask("", "/version");
    assert!(distrusting.contains("certificate"), "{distrusting}");
    // Whoever may read endpoints reads where the API itself is.
    let endpoints = "/api/v1/namespaces/default/endpoints/kubernetes";
    let refused = ask(&trusting, endpoints);
    assert!(
        refused.contains("system:serviceaccount:elsewhere:default") && refused.contains("403"),
        "{refused}"
    );
    p.kubectl(&["create", "rolebinding", "ends", "--role=ends", "--serviceaccount=elsewhere:default"]);
    let port = p.address("api").port().to_string();
    p.until(
        "its endpoints",
        |_| ask(&trusting, endpoints),
        |text| text.contains("\"subsets\"") && text.contains(&port),
    );
    p.kubectl(&["delete", "namespace", "elsewhere"]);
}

const ROLES: &str = "apiVersion: v1
kind: ServiceAccount
metadata: {name: greeter}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: greeter}
rules:
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get, list, watch, create, patch]}
- {apiGroups: [tests.wasmk.dev], resources: [greetings, greetings/status, greetings/scale], verbs: ['*']}
- {apiGroups: [''], resources: [configmaps], verbs: ['*']}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: greeter}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: greeter}
subjects: [{kind: ServiceAccount, name: greeter, namespace: default}]
---
";

/// The controller of `tests/clients/greeter`, which ends well when everything was as a controller's author expects.
fn an_operator_is_a_definition_roles_and_a_deployment(p: &Program) {
    let (volumes, mounts) = borrowed();
    let clients = std::env::var("WASMK_TEST_VENV").expect("WASMK_TEST_VENV is set by `make test`");
    let line = format!("{clients}/bin/greeter && echo every greeting was kept; sleep 600");
    let deployment = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: greeter}}\nspec: {{selector: {{matchLabels: {{app: greeter}}}}, \
         template: {{metadata: {{labels: {{app: greeter}}}}, spec: {{{volumes}serviceAccountName: greeter, terminationGracePeriodSeconds: 0, \
         containers: [{}]}}}}}}\n",
        container("main", &line, &mounts)
    );
    p.apply(&(ROLES.to_owned() + &deployment));
    p.kubectl(&["rollout", "status", "deployment/greeter", "--timeout=60s"]);
    p.kubectl(&["wait", "--for=create", "crd/greetings.tests.wasmk.dev", "--timeout=60s"]);
    let log = |p: &Program| p.kubectl(&["logs", "deployment/greeter"]);
    let said = p.until("its end", log, |text| text.contains("kept") || text.contains("panicked"));
    assert_eq!(said, "every greeting was kept\n");
    assert_eq!(
        p.kubectl(&["get", "greetings", "formal", "-n", "kube-public", "-o", "jsonpath={.spec.tone}"]),
        "Formal"
    );
    p.kubectl(&["delete", "deployment", "greeter"]);
}
