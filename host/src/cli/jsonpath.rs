//! `-o jsonpath`: kubectl's templates of text and JSONPath expressions in braces.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

/// Deepest nesting of `range`.
const MAX_DEPTH: usize = 16;

/// A template, read once and evaluated on any number of values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(Vec<Node>);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Node>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Any,
    /// Every value below, itself included.
    Below,
    Where(Vec<Step>, Option<(String, Value)>),
    Either(Vec<Step>),
}

impl Template {
    /// Reads `{range .items[*]}{.metadata.name}{"\n"}{end}`.
    ///
    /// # Errors
    /// When braces, quotes or a path are not closed or not understood.
    pub(super) fn parse(text: &str) -> Result<Self> {
        Self::between(text, "{", "}").map_err(|e| anyhow!("error parsing jsonpath {text}, {e}"))
    }

    /// Reads the part of Go's templates that names fields: `{{range .items}}{{.metadata.name}}{{end}}`.
    ///
    /// # Errors
    /// When something else is in the braces.
    pub(super) fn parse_go(text: &str) -> Result<Self> {
        Self::between(text, "{{", "}}").map_err(|e| anyhow!("error parsing template {text}, {e}"))
    }

    fn between(text: &str, open: &str, close: &str) -> Result<Self> {
        let mut stack: Vec<(Vec<Step>, Vec<Node>)> = vec![(Vec::new(), Vec::new())];
        let mut rest = text;
        while let Some(start) = rest.find(open) {
            push_text(&mut stack, &rest[..start]);
            let inside = &rest[start + open.len()..];
            let end = closing(inside, close).ok_or_else(|| anyhow!("unclosed action"))?;
            action(inside[..end].trim(), open == "{{", &mut stack)?;
            rest = &inside[end + close.len()..];
        }
        push_text(&mut stack, rest);
        match (stack.pop(), stack.is_empty()) {
            (Some((_, nodes)), true) => Ok(Self(nodes)),
            _ => bail!("range without end"),
        }
    }

    /// Reads a single path as columns and `--sort-by` have it: with or without braces and leading dot.
    ///
    /// # Errors
    /// When it is no path.
    pub(super) fn parse_path(text: &str) -> Result<Self> {
        let bare = text.trim().trim_start_matches('{').trim_end_matches('}');
        let bare = if bare.starts_with(['.', '[', '$', '@']) { bare.to_string() } else { format!(".{bare}") };
        let steps = path(&bare).map_err(|e| anyhow!("unexpected path string \"{text}\": {e}"))?;
        Ok(Self(vec![Node::Path(steps)]))
    }

    /// The text the template makes of a value.
    ///
    /// # Errors
    /// When an index is beyond its list.
    pub(super) fn render(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        render(&self.0, value, &mut out)?;
        Ok(out)
    }

    /// What the path of [`Template::parse_path`] leads to.
    ///
    /// # Errors
    /// When an index is beyond its list.
    pub(super) fn find(&self, value: &Value) -> Result<Vec<Value>> {
        match self.0.first() {
            Some(Node::Path(steps)) => walk(steps, value),
            _ => Ok(Vec::new()),
        }
    }
}

fn push_text(stack: &mut [(Vec<Step>, Vec<Node>)], text: &str) {
    if let (false, Some((_, nodes))) = (text.is_empty(), stack.last_mut()) {
        nodes.push(Node::Text(text.into()));
    }
}

/// Where the closing braces are that stand outside quotes.
fn closing(text: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[i..].starts_with(close) => return Some(i),
            None => {}
        }
    }
    None
}

fn action(text: &str, go: bool, stack: &mut Vec<(Vec<Step>, Vec<Node>)>) -> Result<()> {
    if let Some(over) = text.strip_prefix("range ") {
        if stack.len() >= MAX_DEPTH {
            bail!("more than {MAX_DEPTH} ranges inside each other");
        }
        let mut steps = path(over.trim())?;
        if go {
            steps.push(Step::Any);
        }
        stack.push((steps, Vec::new()));
        return Ok(());
    }
    let node = if text == "end" {
        let (steps, nodes) =
            stack.pop().filter(|_| !stack.is_empty()).ok_or_else(|| anyhow!("end without range"))?;
        Node::Range(steps, nodes)
    } else if text.starts_with(['"', '\'']) {
        Node::Text(literal(text)?)
    } else {
        Node::Path(path(text)?)
    };
    if let Some((_, nodes)) = stack.last_mut() {
        nodes.push(node);
    }
    Ok(())
}

/// A quoted text with Go's escapes.
fn literal(text: &str) -> Result<String> {
    let inside =
        text.get(1..text.len().saturating_sub(1)).filter(|_| text.len() > 1 && text.ends_with(&text[..1]));
    let mut out = String::new();
    let mut chars = inside.ok_or_else(|| anyhow!("unterminated quoted string {text}"))?.chars();
    while let Some(c) = chars.next() {
        out.push(match (c, c == '\\') {
            (_, true) => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(other) => other,
                None => '\\',
            },
            (c, _) => c,
        });
    }
    Ok(out)
}

/// Reads `$.a['b'][0].*..c[?(@.d=="e")]`.
fn path(text: &str) -> Result<Vec<Step>> {
    let text = text.trim_start_matches(['$', '@']);
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Below);
            rest = after;
            if !rest.starts_with('[') {
                rest = field(rest, &mut steps);
            }
        } else if let Some(after) = rest.strip_prefix('.') {
            rest = field(after, &mut steps);
        } else if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after, "]").ok_or_else(|| anyhow!("unterminated array"))?;
            steps.push(bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else {
            bail!("unrecognized character in action: {:?}", rest.chars().next().unwrap_or(' '));
        }
    }
    Ok(steps)
}

/// A field's name, in which a backslash makes a dot a letter; what is left of the text.
fn field<'a>(text: &'a str, steps: &mut Vec<Step>) -> &'a str {
    let mut name = String::new();
    let mut escaped = false;
    let mut end = text.len();
    for (i, c) in text.char_indices() {
        match c {
            _ if std::mem::take(&mut escaped) => name.push(c),
            '\\' => escaped = true,
            '.' | '[' => {
                end = i;
                break;
            }
            c => name.push(c),
        }
    }
    match name.as_str() {
        "" => {}
        "*" => steps.push(Step::Any),
        _ => steps.push(Step::Field(name)),
    }
    &text[end..]
}

fn bracket(text: &str) -> Result<Step> {
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return filter_step(filter.trim());
    }
    if text == "*" {
        return Ok(Step::Any);
    }
    if text.starts_with(['\'', '"']) && !text.contains(',') {
        return Ok(Step::Field(literal(text)?));
    }
    if text.contains(',') {
        return text.split(',').map(|part| bracket(part.trim())).collect::<Result<_>>().map(Step::Either);
    }
    let number = |part: &str| -> Result<Option<i64>> {
        let part = part.trim();
        if part.is_empty() {
            Ok(None)
        } else {
            part.parse().map(Some).map_err(|_| anyhow!("invalid array index {text}"))
        }
    };
    match text.split_once(':') {
        Some((from, to)) => Ok(Step::Slice(number(from)?, number(to.split(':').next().unwrap_or(""))?)),
        None => number(text)?.map(Step::Index).ok_or_else(|| anyhow!("invalid array index {text}")),
    }
}

fn filter_step(text: &str) -> Result<Step> {
    for op in ["==", "!=", "<=", ">=", "<", ">"] {
        let Some((left, right)) = text.split_once(op) else { continue };
        let right = right.trim();
        let value = if right.starts_with(['\'', '"']) {
            Value::String(literal(right)?)
        } else {
            serde_json::from_str(right)
                .map_err(|_| anyhow!("{right} is neither a quoted text, a number nor a boolean"))?
        };
        return Ok(Step::Where(path(left.trim())?, Some((op.into(), value))));
    }
    Ok(Step::Where(path(text)?, None))
}

fn render(nodes: &[Node], value: &Value, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(steps) => {
                let texts: Vec<String> = walk(steps, value)?.iter().map(text).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(steps, nodes) => {
                for item in walk(steps, value)? {
                    render(nodes, &item, out)?;
                }
            }
        }
    }
    Ok(())
}

/// A value as kubectl prints it: texts bare, everything else as JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

fn walk(steps: &[Step], value: &Value) -> Result<Vec<Value>> {
    let mut now = vec![value.clone()];
    for step in steps {
        let mut next = Vec::new();
        for value in &now {
            take(step, value, &mut next)?;
        }
        now = next;
    }
    Ok(now)
}

fn take(step: &Step, value: &Value, out: &mut Vec<Value>) -> Result<()> {
    let items = || -> Vec<Value> {
        match value {
            Value::Array(list) => list.clone(),
            Value::Object(map) => map.values().cloned().collect(),
            _ => Vec::new(),
        }
    };
    match step {
        Step::Field(name) => out.extend(value.get(name).filter(|v| !v.is_null()).cloned()),
        Step::Any => out.extend(items()),
        Step::Below => below(value, out),
        Step::Either(steps) => steps.iter().try_for_each(|step| take(step, value, out))?,
        Step::Index(index) => {
            let Some(list) = value.as_array() else { return Ok(()) };
            let at = if *index < 0 { index + i64::try_from(list.len())? } else { *index };
            let found = usize::try_from(at).ok().and_then(|at| list.get(at));
            out.push(
                found.cloned().ok_or_else(|| {
                    anyhow!("array index out of bounds: index {index}, length {}", list.len())
                })?,
            );
        }
        Step::Slice(from, to) => {
            let Some(list) = value.as_array() else { return Ok(()) };
            let length = i64::try_from(list.len())?;
            let place = |at: i64| {
                usize::try_from((if at < 0 { at + length } else { at }).clamp(0, length)).unwrap_or(0)
            };
            let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
            out.extend(list.get(from..to.max(from)).into_iter().flatten().cloned());
        }
        Step::Where(left, condition) => {
            for item in items() {
                let found = walk(left, &item)?;
                let holds = match condition {
                    None => !found.is_empty(),
                    Some((op, right)) => found.first().is_some_and(|left| holds(left, op, right)),
                };
                if holds {
                    out.push(item);
                }
            }
        }
    }
    Ok(())
}

fn below(value: &Value, out: &mut Vec<Value>) {
    out.push(value.clone());
    match value {
        Value::Array(list) => list.iter().for_each(|v| below(v, out)),
        Value::Object(map) => map.values().for_each(|v| below(v, out)),
        _ => {}
    }
}

fn holds(left: &Value, op: &str, right: &Value) -> bool {
    let order = match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left.partial_cmp(&right),
        _ => Some(text(left).cmp(&text(right))),
    };
    match op {
        "==" => order.is_some_and(|o| o.is_eq()),
        "!=" => order.is_some_and(|o| o.is_ne()),
        "<" => order.is_some_and(|o| o.is_lt()),
        "<=" => order.is_some_and(|o| o.is_le()),
        ">" => order.is_some_and(|o| o.is_gt()),
        _ => order.is_some_and(|o| o.is_ge()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> Value {
        json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"app": "x", "a.b/c": "d"}}, "status": {"ip": "1"}, "n": 1},
            {"metadata": {"name": "b"}, "status": {"ip": "2"}, "n": 2},
        ]})
    }

    #[test]
    fn templates() {
        let check = |text: &str, expected: &str| {
            let made = Template::parse(text).and_then(|t| t.render(&pods()));
            assert_eq!(made.unwrap_or_else(|e| e.to_string()), expected, "{text}");
        };
        check("{.kind}", "List");
        check("{.items[*].metadata.name}", "a b");
        check("{.items[0].metadata.labels}", r#"{"app":"x","a.b/c":"d"}"#);
        check("{.items[-1:].metadata.name}", "b");
        check("{.items[0].metadata.labels.a\\.b/c}", "d");
        check("{.items[0].metadata.labels['a.b/c']}", "d");
        check("{range .items[*]}{.metadata.name}={.status.ip}{\"\\n\"}{end}", "a=1\nb=2\n");
        check("{.items[?(@.metadata.name==\"b\")].status.ip}", "2");
        check("{.items[?(@.n>=2)].metadata.name}", "b");
        check("{.items[?(@.metadata.labels)].metadata.name}", "a");
        check("{..ip}", "1 2");
        check("{.items[0]['n', 'status']}", "1 {\"ip\":\"1\"}");
        check("{.nothing}x", "x");
        check("plain", "plain");
        check("{.items[7]}", "array index out of bounds: index 7, length 2");
        check("{.items", "error parsing jsonpath {.items, unclosed action");
        check("{end}", "error parsing jsonpath {end}, end without range");
        let go = Template::parse_go("{{range .items}}{{ .metadata.name }};{{end}}").unwrap();
        assert_eq!(go.render(&pods()).unwrap(), "a;b;");
    }

    #[test]
    fn paths() {
        for text in ["kind", ".kind", "{.kind}"] {
            assert_eq!(Template::parse_path(text).unwrap().find(&pods()).unwrap(), [json!("List")], "{text}");
        }
    }
}
