//! Who may do what: service accounts, strangers, and the question itself.

use std::{process::Command, sync::LazyLock};

use wasmk_tests::program::Program;

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
    ] {
        let said = CLUSTER.kubectl_refused(&[&["--kubeconfig", file], args].concat(), None);
        assert!(said.contains("(Forbidden)") && said.contains(refusal), "{said}");
    }
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
