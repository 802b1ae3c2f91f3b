//! Label and field selectors: their text form and what they match.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use thiserror::Error;

/// A selector that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

/// How a requirement looks at a label's value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label is there with one of these values (`=`, `==`, `in`).
    In(Vec<String>),
    /// The label is absent, or has none of these values (`!=`, `notin`).
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label's value is a whole number above this one.
    Gt(i64),
    /// The label's value is a whole number below this one.
    Lt(i64),
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// What must hold of its value.
    pub operator: Operator,
}

impl Requirement {
    /// Whether a label of that value (`None`: absent) satisfies it.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let among = |values: &[String]| value.is_some_and(|v| values.iter().any(|w| w == v));
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => among(values),
            Operator::NotIn(values) => !among(values),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt(bound) => number().is_some_and(|n| n > *bound),
            Operator::Lt(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// Requirements that must all hold. The empty selector matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    /// All of them must hold.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Equality with every one of these pairs.
    pub fn equals<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        let requirements = pairs
            .into_iter()
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::In(vec![v.into()]) })
            .collect();
        Self { requirements }
    }

    /// The selector of an object's field (`matchLabels` and `matchExpressions`).
    ///
    /// # Errors
    /// When an operator is unknown.
    pub fn from_api(selector: &meta::LabelSelector) -> Result<Self, SelectorError> {
        let mut all = Self::equals(selector.match_labels.iter().flatten());
        for term in selector.match_expressions.iter().flatten() {
            let values = || term.values.clone().unwrap_or_default();
            let operator = match &*term.operator {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("\"{other}\" is not a valid label selector operator")));
                }
            };
            all.requirements.push(Requirement { key: term.key.clone(), operator });
        }
        Ok(all)
    }

    /// Whether labels, looked up by key, satisfy every requirement.
    pub fn matches_with<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|r| r.matches(value(&r.key)))
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: Option<&std::collections::BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels?.get(key).map(String::as_str))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Reads the text form: `a=b,c!=d,e in (f,g),!h,i>3`.
    ///
    /// # Errors
    /// In Kubernetes' words, when the text is not a selector.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { tokens: lex(text), at: 0 };
        let requirements =
            parser.requirements().map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
        Ok(Self { requirements })
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::Gt(bound) => write!(f, "{key}>{bound}")?,
                Operator::Lt(bound) => write!(f, "{key}<{bound}")?,
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Mark(&'static str),
    End,
}

const MARKS: [&str; 9] = ["==", "!=", "=", "!", ">", "<", ",", "(", ")"];

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        if let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) {
            tokens.push(Token::Mark(mark));
            rest = &rest[mark.len()..];
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=!><,()".contains(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].into()));
            rest = &rest[end..];
        }
        rest = rest.trim_start();
    }
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn requirements(&mut self) -> Result<Vec<Requirement>, String> {
        let mut all = Vec::new();
        if self.peek() == Token::End {
            return Ok(all);
        }
        loop {
            all.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(all),
                Token::Mark(",") if !matches!(self.peek(), Token::Word(_) | Token::Mark("!")) => {
                    return Err(format!("found '{}', expected: identifier after ','", shown(&self.peek())));
                }
                Token::Mark(",") => {}
                other => return Err(format!("found '{}', expected: ',' or 'end of string'", shown(&other))),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let negated = self.peek() == Token::Mark("!");
        if negated {
            self.at += 1;
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", shown(&other))),
        };
        if negated {
            return Ok(Requirement { key, operator: Operator::DoesNotExist });
        }
        let operator = match self.peek() {
            Token::End | Token::Mark(",") => Operator::Exists,
            token => {
                self.at += 1;
                self.operator(&token)?
            }
        };
        Ok(Requirement { key, operator })
    }

    fn operator(&mut self, token: &Token) -> Result<Operator, String> {
        Ok(match token {
            Token::Mark("=" | "==") => Operator::In(vec![self.value()?]),
            Token::Mark("!=") => Operator::NotIn(vec![self.value()?]),
            Token::Mark(">") => Operator::Gt(self.number()?),
            Token::Mark("<") => Operator::Lt(self.number()?),
            Token::Word(word) if word == "in" => Operator::In(self.values()?),
            Token::Word(word) if word == "notin" => Operator::NotIn(self.values()?),
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", shown(other)));
            }
        })
    }

    /// A single value; the empty one is written by leaving it out.
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::Word(word) => {
                self.at += 1;
                Ok(word)
            }
            Token::End | Token::Mark(",") => Ok(String::new()),
            other => Err(format!("found '{}', expected: identifier", shown(&other))),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let value = self.value()?;
        value.parse().map_err(|_| "for 'Gt', 'Lt' operators, the value must be an integer".into())
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        if self.next() != Token::Mark("(") {
            self.at -= 1;
            return Err(format!("found '{}' expected: '('", shown(&self.peek())));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => values.push(word),
                Token::Mark(",") => values.push(String::new()),
                Token::Mark(")") => {
                    values.push(String::new());
                    break;
                }
                other => return Err(format!("found '{}', expected: ',', ')' or identifier", shown(&other))),
            }
            let emptied = values.last().is_some_and(String::is_empty);
            match self.peek() {
                _ if emptied => {}
                Token::Mark(",") => self.at += 1,
                Token::Mark(")") => {
                    self.at += 1;
                    break;
                }
                other => return Err(format!("found '{}', expected: ',' or ')'", shown(&other))),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(word) => word.clone(),
        Token::Mark(mark) => (*mark).into(),
        Token::End => String::new(),
    }
}

/// Conditions on fields: `metadata.name=web,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field, wanted value, and whether equality (true) or inequality is asked for.
    pub terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Reads the text form. A backslash escapes `,`, `=` and itself.
    ///
    /// # Errors
    /// When a term has no operator or an escape is unknown.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            let bad = || SelectorError(format!("invalid selector: '{text}'; can't understand '{term}'"));
            let (at, mark) = operator_in(&term).ok_or_else(bad)?;
            let value = unescape(&term[at + mark.len()..])?;
            terms.push((term[..at].to_string(), value, mark != "!="));
        }
        Ok(Self { terms })
    }

    /// Whether the fields, looked up by path, satisfy every term. An absent field reads as empty.
    pub fn matches_with<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|(field, wanted, equal)| (value(field).unwrap_or("") == wanted) == *equal)
    }

    /// The value `field` must have, if an equality term asks for one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, _, equal)| *equal && f == field).map(|(_, value, _)| value.as_str())
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
        } else {
            terms.last_mut().expect("never empty").push(c);
        }
        escaped = c == '\\' && !escaped;
    }
    terms.retain(|t| !t.is_empty());
    terms
}

fn operator_in(term: &str) -> Option<(usize, &'static str)> {
    term.char_indices().find_map(|(i, _)| {
        let rest = &term[i..];
        ["!=", "==", "="].into_iter().find(|m| rest.starts_with(m)).map(|m| (i, m))
    })
}

fn unescape(text: &str) -> Result<String, SelectorError> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let seq: String = std::iter::once('\\').chain(other).collect();
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: {seq}"
                    )));
                }
            },
            '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        let selector = LabelSelector::parse(selector).unwrap();
        selector.matches_with(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
    }

    #[test]
    fn label_operators() {
        let labels = [("app", "x"), ("n", "5"), ("empty", "")];
        for selector in [
            "",
            "app=x",
            "app==x",
            "app!=y",
            "app in (x,y)",
            "app notin (y)",
            "n>4",
            "n<6",
            "app",
            "!zone",
            "zone!=a",
            "zone notin (a)",
            "empty=",
            "app in (x), n",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in
            ["app=y", "app!=x", "app in (y)", "app notin (x)", "n>5", "zone", "!app", "zone=", "app>3"]
        {
            assert!(!matches(selector, &labels), "{selector}");
        }
    }

    #[test]
    fn bad_label_selectors() {
        for text in ["=a", "a in b", "a in (b", "a=b c", "a,", ",a", "a>b", "a===b"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn field_selectors() {
        let selector = FieldSelector::parse(r"metadata.name=a\,b,status.phase!=Running").unwrap();
        assert_eq!(selector.required("metadata.name"), Some("a,b"));
        assert!(selector.matches_with(|f| (f == "metadata.name").then_some("a,b")));
        assert!(FieldSelector::parse("nonsense").is_err());
    }
}
