//! What expressions of policies and webhooks ask of the authorizers.

use std::time::Duration;

use serde_json::{Value, json};
use wasmk_apiserver::{Authorizer, User, Webhook};

use crate::{
    support::{self, Server},
    world::service,
};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Binds a policy about config maps.
async fn policy(server: &Server, name: &str, rest: Value) {
    let rule =
        json!({"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]});
    let mut spec = json!({"matchConstraints": {"resourceRules": [rule]}});
    for (key, value) in rest.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let made = server.post(POLICIES, json!({"metadata": {"name": name}, "spec": spec})).await;
    assert_eq!(made.code, 201, "{made:?}");
    let binding = json!({"policyName": name, "validationActions": ["Deny"]});
    assert_eq!(server.post(BINDINGS, json!({"metadata": {"name": name}, "spec": binding})).await.code, 201);
}

async fn create(server: &Server, token: &str, name: &str) -> support::Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("content-type", "application/json")];
    let body = json!({"metadata": {"name": name}});
    server.send("POST", MAPS, &headers, &body.to_string()).await
}

fn validation(expression: &str) -> Value {
    let said = "authorizer.requestResource.check('create').allowed() ? 'may create' : 'may not'";
    json!({"validations": [{"expression": expression, "messageExpression": said}]})
}

/// A user who may create config maps, and delete the one called `mine`.
async fn with_a_writer(change: impl FnOnce(&mut wasmk_apiserver::Config)) -> Server {
    let server = support::start_with(|config| {
        config.static_tokens.push(("ann".into(), User::new("ann", ["writers"])));
        change(config);
    })
    .await;
    let role = json!({"metadata": {"name": "w"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"], "verbs": ["delete"]},
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["update"]},
    ]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    server.post(&format!("{rbac}/roles"), role).await;
    let subjects = json!([
        {"kind": "User", "name": "ann", "apiGroup": "rbac.authorization.k8s.io"},
        {"kind": "ServiceAccount", "name": "robot", "namespace": "default"},
    ]);
    let reference = json!({"kind": "Role", "name": "w", "apiGroup": "rbac.authorization.k8s.io"});
    let binding = json!({"metadata": {"name": "w"}, "subjects": subjects, "roleRef": reference});
    server.post(&format!("{rbac}/rolebindings"), binding).await;
    server
}

#[tokio::test]
async fn policies_ask_what_callers_may_do() {
    for (expression, ann) in [
        ("authorizer.requestResource.check('delete').allowed()", "only mine"),
        ("authorizer.requestResource.name('mine').check('delete').allowed()", "yes"),
        ("authorizer.group('').resource('configmaps').namespace('other').check('create').allowed()", "no"),
        (
            "authorizer.group('apps').resource('deployments').subresource('scale').namespace('default').check('update').allowed()",
            "yes",
        ),
        ("authorizer.path('/api').check('get').allowed()", "yes"),
        ("authorizer.path('/secret').check('get').allowed()", "no"),
        (
            "authorizer.serviceAccount('default', 'robot').group('').resource('configmaps').namespace('default').check('create').allowed()",
            "yes",
        ),
        (
            "!authorizer.serviceAccount('default', 'other').group('').resource('configmaps').namespace('default').check('create').allowed()",
            "yes",
        ),
        ("authorizer.requestResource.check('create').reason().contains('RoleBinding')", "yes"),
        ("!authorizer.requestResource.check('create').errored()", "yes"),
        ("authorizer.requestResource.check('create').error() == ''", "yes"),
        // Two checks are what an expression may cost.
        (
            "['a', 'b', 'c'].exists(n, authorizer.requestResource.name(n).check('delete').allowed())",
            "too much",
        ),
    ] {
        let server = with_a_writer(|_| ()).await;
        policy(&server, "p", validation(expression)).await;
        let (mine, other) = (create(&server, "ann", "mine").await, create(&server, "ann", "other").await);
        let expect = match ann {
            "yes" => (201, 201),
            "only mine" => (201, 422),
            _ => (422, 422),
        };
        assert_eq!((mine.code, other.code), expect, "{expression}: {mine:?} {other:?}");
        if expect.1 == 422 {
            let said = other.body["message"].as_str().unwrap();
            let end =
                if ann == "too much" { "actual cost limit exceeded" } else { "denied request: may create" };
            assert!(said.ends_with(end), "{said}");
        }
    }
}

#[tokio::test]
async fn conditions_ask_as_well() {
    let server = with_a_writer(|_| ()).await;
    let condition =
        "!authorizer.group('').resource('configmaps').namespace('default').check('bypass').allowed()";
    let rest = json!({
        "matchConditions": [{"name": "unless", "expression": condition}],
        "validations": [{"expression": "false", "message": "never"}],
    });
    policy(&server, "p", rest).await;
    assert_eq!(create(&server, "ann", "a").await.code, 422);
    // Administrators may do everything, also what nobody else ever heard of.
    assert_eq!(create(&server, support::TOKEN, "b").await.code, 201);
}

#[tokio::test]
async fn answers_that_take_time_are_waited_for() {
    let service = service(|review| {
        let asked = &review["spec"]["resourceAttributes"];
        let allowed = asked["verb"] == "create" || asked["name"] == "mine";
        json!({"status": {"allowed": allowed, "reason": "says the service"}})
    })
    .await;
    let config = service.config.clone();
    let server = with_a_writer(move |all| {
        all.authorization.modes = vec![Authorizer::Webhook];
        let (good, bad) = (Duration::ZERO, Duration::ZERO);
        all.authorization.webhook = Some(Webhook { config, version: "v1".into(), good, bad });
    })
    .await;
    let expression = "authorizer.requestResource.check('delete').allowed()";
    policy(&server, "p", validation(expression)).await;
    let other = create(&server, "ann", "other").await;
    assert_eq!(other.code, 422);
    assert!(other.body["message"].as_str().unwrap().ends_with("denied request: may create"), "{other:?}");
    let mine = create(&server, "ann", "mine").await;
    assert_eq!(mine.code, 201, "{mine:?}");
}
