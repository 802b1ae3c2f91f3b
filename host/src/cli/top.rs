//! `wasmk top`: what nodes and pods use, from the metrics API.

use std::cmp::Reverse;

use anyhow::{Result, bail};
use serde_json::Value;
use wasmk_api::Quantity;

use super::{Context, Exit, api::Api, pods::text, selection::with_query};

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Of nodes
    #[command(visible_aliases = ["nodes", "no"])]
    Node(Args),
    /// Of pods
    #[command(visible_aliases = ["pods", "po"])]
    Pod(PodArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only the one of that name
    name: Option<String>,
    /// Only those with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with = "name")]
    selector: Option<String>,
    /// `cpu` or `memory`: the largest first [default: by name]
    #[arg(long, value_name = "WHAT", value_parser = ["cpu", "memory"])]
    sort_by: Option<String>,
    /// No header line
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct PodArgs {
    #[command(flatten)]
    which: Args,
    /// Each container by itself
    #[arg(long)]
    containers: bool,
    /// Over all namespaces
    #[arg(short = 'A', long, conflicts_with = "name")]
    all_namespaces: bool,
}

/// What one thing uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    /// Thousandths of a core.
    cpu: i64,
    /// Bytes.
    memory: i64,
}

impl Usage {
    fn read(usage: &Value) -> Self {
        let quantity = |key: &str| usage[key].as_str().and_then(|text| text.parse::<Quantity>().ok());
        Self {
            cpu: quantity("cpu").map_or(0, Quantity::milli_value),
            memory: quantity("memory").map_or(0, Quantity::value),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu.saturating_add(other.cpu), memory: self.memory.saturating_add(other.memory) }
    }
}

/// A line: what comes before the figures, the figures, and of how much.
struct Row {
    names: Vec<String>,
    used: Usage,
    of: Option<Usage>,
}

pub(super) async fn run(command: Command, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let (header, rows, args): (&[&str], _, _) = match &command {
        Command::Node(args) => {
            (&["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"], nodes(&api, args).await?, args)
        }
        Command::Pod(args) => (pod_header(args), pods(&api, args).await?, &args.which),
    };
    if rows.is_empty() {
        cx.out.note("No resources found");
        return Ok(Exit::Done);
    }
    cx.out.columns(&lines(header, rows, args));
    Ok(Exit::Done)
}

async fn nodes(api: &Api, args: &Args) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for metrics in asked(api, &format!("{METRICS}/nodes"), args).await? {
        let name = text(&metrics["metadata"]["name"]);
        let node = api.get(&format!("/api/v1/nodes/{name}")).await?;
        let of = Some(Usage::read(&node["status"]["allocatable"]));
        rows.push(Row { names: vec![name], used: Usage::read(&metrics["usage"]), of });
    }
    Ok(rows)
}

async fn pods(api: &Api, args: &PodArgs) -> Result<Vec<Row>> {
    let path = match args.all_namespaces {
        true => format!("{METRICS}/pods"),
        false => format!("{METRICS}/namespaces/{}/pods", api.default_namespace()),
    };
    let mut rows = Vec::new();
    for metrics in asked(api, &path, &args.which).await? {
        let mut names = vec![text(&metrics["metadata"]["name"])];
        if args.all_namespaces {
            names.insert(0, text(&metrics["metadata"]["namespace"]));
        }
        let containers = metrics["containers"].as_array().cloned().unwrap_or_default();
        if args.containers {
            rows.extend(containers.iter().map(|container| {
                let mut names = names.clone();
                names.push(text(&container["name"]));
                Row { names, used: Usage::read(&container["usage"]), of: None }
            }));
        } else {
            let used =
                containers.iter().map(|c| Usage::read(&c["usage"])).fold(Usage::default(), Usage::plus);
            rows.push(Row { names, used, of: None });
        }
    }
    Ok(rows)
}

/// The metrics of one thing, or of all that are selected.
async fn asked(api: &Api, path: &str, args: &Args) -> Result<Vec<Value>> {
    if let Some(name) = &args.name {
        return Ok(vec![api.get(&format!("{path}/{name}")).await?]);
    }
    let selector = args.selector.as_deref().unwrap_or_default();
    let list = api.get(&with_query(path, &[("labelSelector", selector)])).await?;
    match list["items"].as_array() {
        Some(items) => Ok(items.clone()),
        None => bail!("the metrics API sent no list"),
    }
}

fn pod_header(args: &PodArgs) -> &'static [&'static str] {
    match (args.all_namespaces, args.containers) {
        (false, false) => &["NAME", "CPU(cores)", "MEMORY(bytes)"],
        (true, false) => &["NAMESPACE", "NAME", "CPU(cores)", "MEMORY(bytes)"],
        (false, true) => &["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"],
        (true, true) => &["NAMESPACE", "POD", "NAME", "CPU(cores)", "MEMORY(bytes)"],
    }
}

fn lines(header: &[&str], mut rows: Vec<Row>, args: &Args) -> Vec<Vec<String>> {
    match args.sort_by.as_deref() {
        Some("cpu") => rows.sort_by_key(|row| Reverse(row.used.cpu)),
        Some(_) => rows.sort_by_key(|row| Reverse(row.used.memory)),
        None => rows.sort_by(|a, b| a.names.cmp(&b.names)),
    }
    let header = (!args.no_headers).then(|| header.iter().map(ToString::to_string).collect());
    header.into_iter().chain(rows.into_iter().map(line)).collect()
}

fn line(row: Row) -> Vec<String> {
    let Row { names: mut cells, used, of } = row;
    let percent = |part: i64, whole: i64| match whole {
        0 => "<unknown>".into(),
        whole => format!("{}%", part.saturating_mul(100) / whole),
    };
    cells.push(format!("{}m", used.cpu));
    cells.extend(of.map(|of| percent(used.cpu, of.cpu)));
    cells.push(format!("{}Mi", used.memory >> 20));
    cells.extend(of.map(|of| percent(used.memory, of.memory)));
    cells
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_kubectls() {
        let used = Usage::read(&json!({"cpu": "1500000n", "memory": "3145728"}));
        assert_eq!(used, Usage { cpu: 2, memory: 3 << 20 }, "cores are rounded up");
        let row = |name: &str, cpu| Row {
            names: vec![name.into()],
            used: Usage { cpu, ..used },
            of: Some(Usage { cpu: 2000, memory: 0 }),
        };
        let args = |by: Option<&str>| Args {
            name: None,
            selector: None,
            sort_by: by.map(Into::into),
            no_headers: by.is_some(),
        };
        let shown = lines(&["NAME"], vec![row("b", 100), row("a", 50)], &args(None));
        assert_eq!(
            shown,
            [
                vec!["NAME"],
                vec!["a", "50m", "2%", "3Mi", "<unknown>"],
                vec!["b", "100m", "5%", "3Mi", "<unknown>"]
            ]
        );
        let shown = lines(&["NAME"], vec![row("a", 50), row("b", 100)], &args(Some("cpu")));
        assert_eq!(shown[0][0], "b");
    }
}
