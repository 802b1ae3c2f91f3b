//! Content negotiation: which media types a request sends and wants back.

use http::{HeaderMap, header};
use wasmk_api::{Reason, Status};

use super::query::Query;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Format {
    /// `application/json`.
    #[default]
    Json,
    /// `application/yaml`.
    Yaml,
    /// Kubernetes' protobuf envelope.
    Protobuf,
}

impl Format {
    /// The media type.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// The form objects are turned into before they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// As they are.
    #[default]
    Whole,
    /// A `Table` of that version of `meta.k8s.io`.
    Table(&'static str),
    /// Their metadata alone, in that version of `meta.k8s.io`.
    Partial(&'static str),
}

/// What the client wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    /// The encoding.
    pub(crate) format: Format,
    /// The form.
    pub(crate) form: Form,
    /// Whether to indent.
    pub(crate) pretty: bool,
    /// Whether gzip is welcome.
    pub(crate) gzip: bool,
}

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMED: &str = ", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
/// More clauses than this in an `Accept` header are not looked at.
const MAX_CLAUSES: usize = 32;

struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    weight: f32,
}

impl Clause<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut all: Vec<Clause<'_>> = accept
        .split(',')
        .take(MAX_CLAUSES)
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or("");
            let params: Vec<_> = parts.filter_map(|p| p.split_once('=')).collect();
            let weight =
                params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            Clause { media, params, weight }
        })
        .filter(|c| !c.media.is_empty())
        .collect();
    all.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    all
}

/// What a route can give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Whether it also serves watches, which the wording of a refusal shows.
    pub(crate) list: bool,
    /// Whether its objects have a form in protobuf; those of custom resources have none, only their metadata.
    pub(crate) binary: bool,
}

/// Reads how a failure is to be told, for which anything will do.
pub(crate) fn failing(headers: &HeaderMap, query: &Query) -> Wanted {
    let wanted = wanted(headers, query, Offer { list: false, binary: true }).unwrap_or_default();
    Wanted { form: Form::Whole, ..wanted }
}

/// The refusal of a watch in an encoding without streams.
pub(crate) fn no_stream() -> Status {
    let offered = STREAMED.trim_start_matches(", ");
    not_acceptable(format!("only the following media types are accepted: {offered}"))
}

/// Reads what the client wants back.
///
/// # Errors
/// 406 when nothing that is wanted can be given.
pub(crate) fn wanted(headers: &HeaderMap, query: &Query, offer: Offer) -> Result<Wanted, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    let mut wanted = Wanted { pretty: pretty(headers, query), gzip: gzip(headers), ..Wanted::default() };
    if accept.is_empty() || accept == "application/json" {
        return Ok(wanted);
    }
    let all = clauses(accept);
    let known = |media: &str| {
        matches!(
            media,
            "*/*" | "application/json" | "application/yaml" | "application/vnd.kubernetes.protobuf"
        )
    };
    if !all.iter().any(|c| known(c.media)) {
        let streamed = if offer.list { STREAMED } else { "" };
        let message = format!("406: Not Acceptable\n\nAvailable representations: {ACCEPTED}{streamed}");
        return Err(not_acceptable(message));
    }
    for clause in &all {
        let format = match clause.media {
            "*/*" | "application/*" | "application/json" => Format::Json,
            "application/yaml" => Format::Yaml,
            "application/vnd.kubernetes.protobuf" => Format::Protobuf,
            _ => continue,
        };
        let Some(form) = form(clause) else { continue };
        let binary = match form {
            Form::Whole => offer.binary,
            Form::Table(_) => false,
            Form::Partial(_) => true,
        };
        if format == Format::Protobuf && !binary {
            continue;
        }
        wanted.format = format;
        wanted.form = form;
        wanted.pretty |= clause.param("pretty") == Some("1");
        return Ok(wanted);
    }
    Err(not_acceptable(format!("only the following media types are accepted: {ACCEPTED}")))
}

fn not_acceptable(message: String) -> Status {
    Status::new(Reason::NotAcceptable, message)
}

fn form(clause: &Clause<'_>) -> Option<Form> {
    let Some(kind) = clause.param("as") else { return Some(Form::Whole) };
    if clause.param("g") != Some("meta.k8s.io") {
        return None;
    }
    let version = match clause.param("v")? {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => return None,
    };
    match kind {
        "Table" => Some(Form::Table(version)),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::Partial(version)),
        _ => None,
    }
}

fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(value) = query.get("pretty") {
        return !matches!(value, "0" | "false");
    }
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    ["curl", "Wget", "Mozilla/"].iter().any(|person| agent.starts_with(person))
}

fn gzip(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT_ENCODING)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.split(',').any(|e| e.trim().split(';').next() == Some("gzip")))
}

/// How a request's body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyType {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf envelope.
    Protobuf,
}

/// The media type of a body, without parameters and in lower case; empty when there is none.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    text.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// How the body of a create or update is written.
///
/// # Errors
/// 415 for other media types.
pub(crate) fn body_type(headers: &HeaderMap) -> Result<BodyType, Status> {
    match &*content_type(headers) {
        "" | "application/json" => Ok(BodyType::Json),
        "application/yaml" => Ok(BodyType::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyType::Protobuf),
        _ => Err(unsupported(ACCEPTED)),
    }
}

/// The refusal of a body's media type.
pub(crate) fn unsupported(accepted: &str) -> Status {
    Status::new(
        Reason::UnsupportedMediaType,
        format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str, expect: Result<(Format, Form), &str>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        let offer = Offer { list: true, binary: !accept.contains("custom") };
        match (wanted(&headers, &Query::default(), offer), expect) {
            (Ok(got), Ok(want)) => assert_eq!((got.format, got.form), want, "{accept}"),
            (Err(status), Err(text)) => assert!(status.message.starts_with(text), "{accept}: {status}"),
            (got, want) => panic!("{accept}: {got:?} instead of {want:?}"),
        }
    }

    #[test]
    fn accept_headers() {
        let json = Format::Json;
        check("", Ok((json, Form::Whole)));
        check("*/*", Ok((json, Form::Whole)));
        check("application/yaml", Ok((Format::Yaml, Form::Whole)));
        check("application/vnd.kubernetes.protobuf,application/json", Ok((Format::Protobuf, Form::Whole)));
        check("application/vnd.kubernetes.protobuf,application/json;custom=1", Ok((json, Form::Whole)));
        check("application/vnd.kubernetes.protobuf;custom=1", Err("only the following media types"));
        check(
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
            Ok((json, Form::Table("v1"))),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io;custom=1",
            Ok((Format::Protobuf, Form::Partial("v1"))),
        );
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Ok((json, Form::Table("v1"))));
        check("application/json;as=Table;v=v9;g=meta.k8s.io,application/json", Ok((json, Form::Whole)));
        check("application/json;q=0.1,application/yaml", Ok((Format::Yaml, Form::Whole)));
        check("application/json;as=Odd;v=v1;g=meta.k8s.io", Err("only the following media types"));
        check("text/html", Err("406: Not Acceptable"));
        check("application/*", Err("406: Not Acceptable"));
    }
}
