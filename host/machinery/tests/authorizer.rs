//! What expressions ask of authorizers, part by part.

use std::sync::Arc;

use wasmk_machinery::cel::{Check, Decider, Value, Verdict, authorizer, compile};

struct Table;

impl Decider for Table {
    fn decide(&self, check: &Check) -> Result<Verdict, String> {
        if check.verb == "never" {
            return Err("operation cancelled: actual cost limit exceeded".into());
        }
        let shown = format!(
            "{} {}/{}/{} {}/{} {} {:?}",
            check.verb,
            check.group,
            check.resource,
            check.subresource,
            check.namespace,
            check.name,
            check.path,
            check.account
        );
        let error = if check.verb == "break" { "broken".to_owned() } else { String::new() };
        Ok(Verdict { allowed: check.verb == "get" && check.name == "a", reason: shown, error })
    }
}

fn run(source: &str) -> Result<Value, String> {
    let decider: Arc<dyn Decider> = Arc::new(Table);
    let own = Check { group: "apps".into(), resource: "own".into(), name: "a".into(), ..Check::default() };
    compile(source)?.run(authorizer(&decider, own))
}

#[test]
fn checks_are_built_part_by_part() {
    let deployments = "authorizer.group('apps').resource('deployments')";
    for (source, shown) in [
        (
            format!("{deployments}.subresource('scale').namespace('n').name('x').check('v').reason()"),
            "v apps/deployments/scale n/x  None",
        ),
        ("authorizer.path('/healthz').check('get').reason()".into(), "get // / /healthz None"),
        (
            "authorizer.serviceAccount('n', 's').group('').resource('pods').check('list').reason()".into(),
            "list /pods/ /  Some((\"n\", \"s\"))",
        ),
        ("authorizer.requestResource.check('v').reason()".into(), "v apps/own/ /a  None"),
        (
            format!(
                "({deployments}.check('break').errored() ? 'true' : '') + {deployments}.check('break').error()"
            ),
            "truebroken",
        ),
    ] {
        assert_eq!(run(&source), Ok(Value::String(Arc::new(shown.into()))), "{source}");
    }
    assert_eq!(run("authorizer.requestResource.check('get').allowed()"), Ok(Value::Bool(true)));
    assert_eq!(run("authorizer.requestResource.name('b').check('get').allowed()"), Ok(Value::Bool(false)));
}

#[test]
fn what_makes_no_sense_fails() {
    for source in [
        "authorizer.check('get')",
        "authorizer.group('').check('get')",
        "authorizer.resource('pods')",
        "authorizer.path('/').name('a')",
        "authorizer.serviceAccount('N', 's')",
        "authorizer.serviceAccount('n', '')",
        "'a'.check('get')",
        "authorizer.requestResource.check('never')",
        "authorizer.requestResource.allowed()",
    ] {
        assert!(run(source).is_err(), "{source}");
    }
}
