//! `wasmk auth`: who one is and what one may do. `wasmk certificate`: requests for certificates.

use anyhow::{Context as _, Result, bail};
use http::Method;
use serde_json::{Value, json};

use super::{Context, Exit, api::Api, resources::Resources, selection::with_query};

/// What `wasmk auth` asks.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Whether something is allowed
    CanI(CanI),
    /// Who the server takes one for
    Whoami,
}

#[derive(Debug, clap::Args)]
pub(super) struct CanI {
    /// VERB
    #[arg(required_unless_present = "list")]
    verb: Option<String>,
    /// TYPE, TYPE/NAME, or /path
    #[arg(required_unless_present = "list")]
    object: Option<String>,
    /// NAME
    name: Option<String>,
    /// Everything one may do in the namespace
    #[arg(long)]
    list: bool,
    /// A part of the object: log, status, ...
    #[arg(long, default_value = "")]
    subresource: String,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only the exit code
    #[arg(short, long)]
    quiet: bool,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    match command {
        Command::Whoami => whoami(cx, &api).await,
        Command::CanI(args) if args.list => rules(cx, &api).await,
        Command::CanI(args) => can_i(cx, &api, &args).await,
    }
}

async fn whoami(cx: &Context, api: &Api) -> Result<Exit> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = api.send(Method::POST, "/apis/authentication.k8s.io/v1/selfsubjectreviews", &review).await?;
    let user = &answer["status"]["userInfo"];
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let list = |v: &Value| {
        let all: Vec<String> = v.as_array().into_iter().flatten().map(text).collect();
        format!("[{}]", all.join(" "))
    };
    let mut rows = vec![vec!["ATTRIBUTE".to_string(), "VALUE".into()]];
    rows.push(vec!["Username".into(), text(&user["username"])]);
    if user["uid"].is_string() {
        rows.push(vec!["UID".into(), text(&user["uid"])]);
    }
    rows.push(vec!["Groups".into(), list(&user["groups"])]);
    for (key, value) in user["extra"].as_object().into_iter().flatten() {
        rows.push(vec![format!("Extra: {key}"), list(value)]);
    }
    cx.out.columns(&rows);
    Ok(Exit::Done)
}

async fn can_i(cx: &Context, api: &Api, args: &CanI) -> Result<Exit> {
    let (verb, object) = (args.verb.as_deref().unwrap_or(""), args.object.as_deref().unwrap_or(""));
    let spec = if object.starts_with('/') {
        json!({"nonResourceAttributes": {"verb": verb, "path": object}})
    } else {
        let (kind, in_path) =
            object.split_once('/').map_or((object, None), |(kind, name)| (kind, Some(name)));
        let resources = Resources::discover(api).await?;
        let (group, plural) = match resources.single(kind) {
            Ok(resource) => (resource.group.clone(), resource.plural.clone()),
            Err(_) => {
                if kind != "*" {
                    cx.out.note(format!("Warning: the server doesn't have a resource type '{kind}'\n"));
                }
                (if kind == "*" { "*".into() } else { String::new() }, kind.to_string())
            }
        };
        let namespace = if args.all_namespaces { "" } else { api.default_namespace() };
        json!({"resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": group, "resource": plural,
            "subresource": args.subresource, "name": in_path.or(args.name.as_deref()).unwrap_or(""),
        }})
    };
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = api.send(Method::POST, path, &review).await?;
    let allowed = answer["status"]["allowed"] == true;
    if !args.quiet {
        let reason = answer["status"]["reason"].as_str().filter(|_| !allowed).filter(|r| !r.is_empty());
        let reason = reason.map(|r| format!(" - {r}")).unwrap_or_default();
        cx.out.line(if allowed { "yes".into() } else { format!("no{reason}") });
    }
    Ok(if allowed { Exit::Done } else { Exit::No })
}

async fn rules(cx: &Context, api: &Api) -> Result<Exit> {
    let spec = json!({"namespace": api.default_namespace()});
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let status = api.send(Method::POST, path, &review).await?["status"].clone();
    let list = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().map(|t| t.as_str().unwrap_or("").to_string()).collect()
    };
    let bracketed = |v: &Value| format!("[{}]", list(v).join(" "));
    let mut rows =
        vec![["Resources", "Non-Resource URLs", "Resource Names", "Verbs"].map(String::from).to_vec()];
    for rule in status["resourceRules"].as_array().into_iter().flatten() {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                let named = if group.is_empty() { resource } else { format!("{resource}.{group}") };
                rows.push(vec![
                    named,
                    "[]".into(),
                    bracketed(&rule["resourceNames"]),
                    bracketed(&rule["verbs"]),
                ]);
            }
        }
    }
    for rule in status["nonResourceRules"].as_array().into_iter().flatten() {
        rows.push(vec![
            String::new(),
            bracketed(&rule["nonResourceURLs"]),
            "[]".into(),
            bracketed(&rule["verbs"]),
        ]);
    }
    cx.out.columns(&rows);
    Ok(Exit::Done)
}

/// What `wasmk certificate` does.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Certificate {
    /// Let requests be signed
    Approve(Requests),
    /// Refuse requests
    Deny(Requests),
}

#[derive(Debug, clap::Args)]
pub(super) struct Requests {
    /// The requests' names
    #[arg(value_name = "CSR", required = true)]
    names: Vec<String>,
}

pub(super) async fn certificate(command: Certificate, cx: &Context) -> Result<Exit> {
    let (args, kind, done) = match &command {
        Certificate::Approve(args) => (args, "Approved", "approved"),
        Certificate::Deny(args) => (args, "Denied", "denied"),
    };
    let api = Api::new(cx.client().await?);
    for name in &args.names {
        let name = name.rsplit('/').next().unwrap_or(name);
        let path = format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}");
        let mut request = api.get(&path).await?;
        let present = request["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if !present.iter().any(|c| c["type"] == kind) {
            let condition = json!({
                "type": kind, "status": "True", "reason": format!("Wasmk{}", &kind[..kind.len() - 1]),
                "message": format!("This CSR was {done} by wasmk certificate {}.", &done[..done.len() - 1]),
            });
            request["status"]["conditions"] = [present, vec![condition]].concat().into();
            api.send(Method::PUT, &with_query(&format!("{path}/approval"), &[]), &request).await?;
        }
        cx.out.line(format!("certificatesigningrequest.certificates.k8s.io/{name} {done}"));
    }
    Ok(Exit::Done)
}

/// `wasmk cluster-info`: where the control plane is.
pub(super) async fn cluster_info(cx: &Context) -> Result<()> {
    let config = cx.kube_config().await?;
    let url = config.cluster_url.to_string();
    let url = url.trim_end_matches('/');
    cx.out.line(format!("Kubernetes control plane is running at {url}"));
    let api = Api::new(cx.client().await?);
    let query = [("labelSelector", "kubernetes.io/cluster-service=true")];
    let list = api.get(&with_query("/api/v1/namespaces/kube-system/services", &query)).await?;
    for service in list["items"].as_array().into_iter().flatten() {
        let name = service["metadata"]["name"].as_str().context("a service without a name")?;
        let shown = service["metadata"]["labels"]["kubernetes.io/name"].as_str().unwrap_or(name);
        let port = service["spec"]["ports"][0]["name"].as_str().map(|p| format!(":{p}")).unwrap_or_default();
        cx.out.line(format!(
            "{shown} is running at {url}/api/v1/namespaces/kube-system/services/{name}{port}/proxy"
        ));
    }
    Ok(())
}

/// `wasmk api-versions`: every group and version the server has.
pub(super) async fn api_versions(cx: &Context) -> Result<()> {
    let resources = Resources::discover(&Api::new(cx.client().await?)).await?;
    let mut all: Vec<String> = resources.iter().map(|r| r.api_version()).collect();
    all.sort();
    all.dedup();
    if all.is_empty() {
        bail!("the server named no versions");
    }
    cx.out.line(all.join("\n"));
    Ok(())
}
