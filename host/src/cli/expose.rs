//! `wasmk expose`: a service over the pods of a workload. `wasmk autoscale`: an autoscaler of one.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::{
    Context, Exit,
    api::Api,
    make::{self, Flags},
    resources::Resources,
    selection::{self, Selection},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// TYPE NAME or TYPE/NAME
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// The service's port [default: the containers']
    #[arg(long)]
    port: Option<u16>,
    /// The containers' port or its name [default: the same]
    #[arg(long, value_name = "PORT")]
    target_port: Option<String>,
    /// The service's name [default: the workload's]
    #[arg(long)]
    name: Option<String>,
    /// ClusterIP, NodePort or LoadBalancer
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// TCP or UDP
    #[arg(long, default_value = "TCP")]
    protocol: String,
    /// An address outside that leads here
    #[arg(long, value_name = "IP")]
    external_ip: Option<String>,
    /// An address of one's choice, or `None`
    #[arg(long, value_name = "IP")]
    cluster_ip: Option<String>,
    /// `ClientIP` keeps a client with its pod
    #[arg(long, value_name = "KIND")]
    session_affinity: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for (name, object) in objects(&api, &selection::read(&resources, &args.words)?, "expose").await? {
        let service = service(&args, &name, &object)?;
        make::make_with(cx, &api, &resources, &args.flags, service, "exposed").await?;
    }
    Ok(Exit::Done)
}

/// The named objects of a selection.
async fn objects(api: &Api, selections: &[Selection<'_>], verb: &str) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for selection in selections {
        if selection.names.is_empty() {
            bail!("name the {} to {verb}", selection.resource.singular);
        }
        for name in &selection.names {
            let path = selection.resource.path(Some(api.default_namespace()));
            found.push((name.clone(), api.get(&format!("{path}/{name}")).await?));
        }
    }
    Ok(found)
}

fn service(args: &Args, name: &str, object: &Value) -> Result<Value> {
    let selector = match object["kind"].as_str() {
        Some("Pod") => &object["metadata"]["labels"],
        _ => {
            let selector = &object["spec"]["selector"];
            selector.get("matchLabels").unwrap_or(selector)
        }
    };
    if selector.as_object().is_none_or(Map::is_empty) {
        bail!("the {} has no labels to select pods by", object["kind"].as_str().unwrap_or("object"));
    }
    let ports = ports(args, object)?;
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": args.name.as_deref().unwrap_or(name), "labels": object["metadata"]["labels"]},
        "spec": {"selector": selector, "ports": ports},
    });
    for (field, value) in
        [("type", &args.kind), ("clusterIP", &args.cluster_ip), ("sessionAffinity", &args.session_affinity)]
    {
        if let Some(value) = value {
            service["spec"][field] = json!(value);
        }
    }
    if let Some(ip) = &args.external_ip {
        service["spec"]["externalIPs"] = json!([ip]);
    }
    Ok(service)
}

/// The one port of the flags, or all that the containers have.
fn ports(args: &Args, object: &Value) -> Result<Vec<Value>> {
    let target = |port: u16| match &args.target_port {
        Some(text) => text.parse::<u16>().map_or_else(|_| json!(text), |number| json!(number)),
        None => json!(port),
    };
    let entry = |port: u16| json!({"port": port, "protocol": args.protocol, "targetPort": target(port)});
    if let Some(port) = args.port {
        return Ok(vec![entry(port)]);
    }
    let template = object["spec"].get("template").map_or(&object["spec"], |t| &t["spec"]);
    let containers = template["containers"].as_array().into_iter().flatten();
    let declared = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
    let numbers: Vec<u16> =
        declared.filter_map(|p| u16::try_from(p["containerPort"].as_u64()?).ok()).collect();
    match numbers.as_slice() {
        [] => bail!("couldn't find port via --port flag or introspection"),
        [one] => Ok(vec![entry(*one)]),
        several => {
            let named = |(i, port): (usize, &u16)| {
                let mut entry = entry(*port);
                entry["name"] = json!(format!("port-{}", i + 1));
                entry
            };
            Ok(several.iter().enumerate().map(named).collect())
        }
    }
}

/// Arguments of `wasmk autoscale`.
#[derive(Debug, clap::Args)]
pub(super) struct Autoscale {
    /// TYPE NAME or TYPE/NAME
    #[arg(value_name = "TYPE", required = true)]
    words: Vec<String>,
    /// Never fewer pods
    #[arg(long)]
    min: Option<u32>,
    /// Never more pods
    #[arg(long)]
    max: u32,
    /// Wanted use of the requested processor time, in percent
    #[arg(long, value_name = "PERCENT")]
    cpu_percent: Option<u32>,
    /// The autoscaler's name [default: the workload's]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn autoscale(args: Autoscale, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let resources = Resources::discover(&api).await?;
    for (name, object) in objects(&api, &selection::read(&resources, &args.words)?, "autoscale").await? {
        let mut scaler = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": args.name.as_deref().unwrap_or(&name)},
            "spec": {
                "scaleTargetRef": {"apiVersion": object["apiVersion"], "kind": object["kind"], "name": name},
                "maxReplicas": args.max,
            },
        });
        if let Some(min) = args.min {
            scaler["spec"]["minReplicas"] = json!(min);
        }
        if let Some(percent) = args.cpu_percent {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            scaler["spec"]["metrics"] =
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
        }
        make::make_with(cx, &api, &resources, &args.flags, scaler, "autoscaled").await?;
    }
    Ok(Exit::Done)
}
