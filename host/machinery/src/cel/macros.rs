//! What the evaluator lacks, put in terms of what it has. Objects of named types become maps. Loops with two
//! variables, which the parser leaves as calls: `m.all(k, v, …)` becomes a loop over the
//! pairs of `m`, with `k` and `v` standing for the parts of the pair. `authorizer.requestResource`, which is a
//! variable of its own and no field.

use kube_cel::cel::{
    IdedExpr,
    common::ast::{
        CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedEntryExpr, LiteralValue, MapEntryExpr, MapExpr,
    },
};

use super::authorizer::REQUEST_RESOURCE;

const RESULT: &str = "@result";
/// `m.?k` and `m[?'k']`: the evaluator lets the first fail where there is no such key.
const OPTIONAL_SELECT: &str = "_?._";
const OPTIONAL_INDEX: &str = "_[?_]";

/// Expands such calls everywhere in a tree, and has optional selections yield nothing for absent keys.
pub(super) fn expand(expression: &mut IdedExpr) {
    for_children(expression, &mut expand);
    if let Expr::Struct(of) = &mut expression.expr {
        expression.expr = Expr::Map(MapExpr { entries: of.entries.drain(..).map(named_entry).collect() });
        return;
    }
    if let Expr::Select(select) = &expression.expr
        && matches!(&select.operand.expr, Expr::Ident(name) if name == "authorizer")
        && select.field == "requestResource"
    {
        expression.expr = Expr::Ident(REQUEST_RESOURCE.into());
        return;
    }
    let Expr::Call(call) = &mut expression.expr else { return };
    let of_library = |target: &IdedExpr| matches!(&target.expr, Expr::Ident(name) if name == "jsonpatch");
    if call.func_name == "escapeKey" && call.target.as_deref().is_some_and(of_library) {
        call.target = None;
        return;
    }
    if call.func_name == OPTIONAL_SELECT {
        call.func_name = OPTIONAL_INDEX.into();
        return;
    }
    let known = matches!(&*call.func_name, "all" | "exists" | "existsOne" | "exists_one");
    if !known || call.args.len() != 3 || call.target.is_none() {
        return;
    }
    let (Expr::Ident(first), Expr::Ident(second)) = (&call.args[0].expr, &call.args[1].expr) else { return };
    // Nested loops need pairs of different names.
    let pair = format!("@pair:{first}:{second}");
    let names = [(first.clone(), 0), (second.clone(), 1)];
    let (Some(mut body), Some(target)) = (call.args.pop(), call.target.take()) else { return };
    substitute(&mut body, &names, &pair);
    expression.expr = looped(&call.func_name, *target, &pair, body);
}

/// Objects of named types (`Object.spec{replicas: 1}`) are maps by the names of their fields.
fn named_entry(entry: IdedEntryExpr) -> IdedEntryExpr {
    let expr = match entry.expr {
        EntryExpr::StructField(field) => EntryExpr::MapEntry(MapEntryExpr {
            key: of(Expr::Literal(LiteralValue::String(field.field.into()))),
            value: field.value,
            optional: field.optional,
        }),
        other => other,
    };
    IdedEntryExpr { id: entry.id, expr }
}

fn of(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}

fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    of(Expr::Call(CallExpr { func_name: name.into(), target: None, args }))
}

fn looped(kind: &str, target: IdedExpr, pair: &str, body: IdedExpr) -> Expr {
    let result = || of(Expr::Ident(RESULT.into()));
    let boolean = |flag: bool| of(Expr::Literal(LiteralValue::Boolean(flag.into())));
    let number = |number: i64| of(Expr::Literal(LiteralValue::Int(number.into())));
    let (init, cond, step, last) = match kind {
        "all" => {
            let step = call("_&&_", vec![result(), body]);
            (boolean(true), call("@not_strictly_false", vec![result()]), step, result())
        }
        "exists" => {
            let go_on = call("@not_strictly_false", vec![call("!_", vec![result()])]);
            (boolean(false), go_on, call("_||_", vec![result(), body]), result())
        }
        _ => {
            let more = call("_+_", vec![result(), number(1)]);
            let step = call("_?_:_", vec![body, more, result()]);
            (number(0), boolean(true), step, call("_==_", vec![result(), number(1)]))
        }
    };
    Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: call("@pairs", vec![target]),
        iter_var: pair.into(),
        iter_var2: None,
        accu_var: RESULT.into(),
        accu_init: init,
        loop_cond: cond,
        loop_step: step,
        result: last,
    }))
}

/// Replaces names by parts of the pair.
fn substitute(expression: &mut IdedExpr, names: &[(String, i64)], pair: &str) {
    if let Expr::Ident(name) = &expression.expr {
        let Some((_, index)) = names.iter().find(|(known, _)| known == name) else { return };
        let index = of(Expr::Literal(LiteralValue::Int((*index).into())));
        *expression = call("_[_]", vec![of(Expr::Ident(pair.into())), index]);
        return;
    }
    // A loop inside that uses one of the names for itself hides it.
    let hidden = match &expression.expr {
        Expr::Comprehension(over) => Some(over.iter_var.clone()),
        _ => None,
    };
    let names: Vec<(String, i64)> =
        names.iter().filter(|(name, _)| Some(name) != hidden.as_ref()).cloned().collect();
    for_children(expression, &mut |child| substitute(child, &names, pair));
}

fn for_children(expression: &mut IdedExpr, then: &mut dyn FnMut(&mut IdedExpr)) {
    match &mut expression.expr {
        Expr::Call(call) => {
            call.target.as_deref_mut().into_iter().for_each(&mut *then);
            call.args.iter_mut().for_each(then);
        }
        Expr::Select(select) => then(&mut select.operand),
        Expr::List(list) => list.elements.iter_mut().for_each(then),
        Expr::Map(map) => map.entries.iter_mut().for_each(|entry| in_entry(&mut entry.expr, then)),
        Expr::Struct(of) => of.entries.iter_mut().for_each(|entry| in_entry(&mut entry.expr, then)),
        Expr::Comprehension(over) => {
            let over = &mut **over;
            for child in [
                &mut over.iter_range,
                &mut over.accu_init,
                &mut over.loop_cond,
                &mut over.loop_step,
                &mut over.result,
            ] {
                then(child);
            }
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => (),
    }
}

fn in_entry(entry: &mut EntryExpr, then: &mut dyn FnMut(&mut IdedExpr)) {
    match entry {
        EntryExpr::StructField(field) => then(&mut field.value),
        EntryExpr::MapEntry(entry) => {
            then(&mut entry.key);
            then(&mut entry.value);
        }
    }
}
