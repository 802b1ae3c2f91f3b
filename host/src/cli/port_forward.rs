//! `wasmk port-forward`: ports of this machine that lead into a pod.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    Context, Exit,
    api::Api,
    output::Output,
    pods::{self, text},
    resources::Resources,
};

/// Most connections at a time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// POD, or TYPE/NAME of something that has pods: a service, a deployment
    #[arg(value_name = "TYPE/NAME")]
    target: String,
    /// [LOCAL:]REMOTE, a number or a port's name; nothing before the colon means a free port
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    /// Where to listen: IP addresses or localhost, comma separated
    #[arg(long, default_value = "localhost", value_delimiter = ',')]
    address: Vec<String>,
}

/// A port here and the pod's port it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Forward {
    local: u16,
    remote: u16,
}

pub(super) async fn run(args: Args, cx: &Context) -> Result<Exit> {
    let api = Api::new(cx.client().await?);
    let service = service(&api, &args.target).await?;
    let pod = pods::one(&api, &args.target).await?;
    let phase = text(&pod["status"]["phase"]);
    if phase != "Running" {
        bail!("unable to forward port because pod is not running. Current status={phase}");
    }
    let name: Arc<str> = text(&pod["metadata"]["name"]).into();
    let kube: kube::Api<Pod> = kube::Api::default_namespaced(api.client.clone());
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut listeners = JoinSet::new();
    for word in &args.ports {
        let forward = forward(word, &pod, service.as_ref())?;
        for listener in listen(&args.address, forward.local).await? {
            cx.out.line(format!("Forwarding from {} -> {}", listener.local_addr()?, forward.remote));
            listeners.spawn(serve(
                listener,
                kube.clone(),
                name.clone(),
                forward.remote,
                room.clone(),
                cx.out,
            ));
        }
    }
    tokio::select! {
        Some(ended) = listeners.join_next() => ended?.map(|()| Exit::Done),
        _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
    }
}

/// The service that `svc/NAME` means; none for other targets.
async fn service(api: &Api, target: &str) -> Result<Option<Value>> {
    let Some((kind, name)) = target.split_once('/') else { return Ok(None) };
    let resources = Resources::discover(api).await?;
    let resource = resources.single(kind)?;
    if resource.kind != "Service" {
        return Ok(None);
    }
    Ok(Some(api.get(&format!("{}/{name}", resource.path(Some(api.default_namespace())))).await?))
}

/// Reads `[LOCAL:]REMOTE`.
fn forward(word: &str, pod: &Value, service: Option<&Value>) -> Result<Forward> {
    let (local, wanted) = match word.split_once(':') {
        Some((local, wanted)) => (Some(local), wanted),
        None => (None, word),
    };
    let (shown, remote) = match service {
        Some(service) => of_service(wanted, service, pod)?,
        None => of_pod(wanted, pod).map(|port| (port, port))?,
    };
    let local = match local {
        None => shown,
        Some("") => 0,
        Some(local) => {
            local.parse().map_err(|_| anyhow!("error parsing local port {local:?}: expected 0 to 65535"))?
        }
    };
    Ok(Forward { local, remote })
}

/// A service's port, and the pod's port behind it.
fn of_service(wanted: &str, service: &Value, pod: &Value) -> Result<(u16, u16)> {
    let name = text(&service["metadata"]["name"]);
    let ports = service["spec"]["ports"].as_array();
    let number: Option<u16> = wanted.parse().ok();
    let is_it = |port: &&Value| port["name"] == wanted || number.is_some_and(|n| port["port"] == n);
    let port = ports
        .into_iter()
        .flatten()
        .find(is_it)
        .with_context(|| format!("Service {name} does not have a service port {wanted}"))?;
    let number = port["port"].to_string();
    let target = match &port["targetPort"] {
        _ if service["spec"]["clusterIP"] == "None" => number.clone(),
        Value::String(target) => target.clone(),
        Value::Null => number.clone(),
        target => target.to_string(),
    };
    Ok((number.parse()?, of_pod(&target, pod)?))
}

/// A port of a pod, by number or by the name that a container gives it.
fn of_pod(wanted: &str, pod: &Value) -> Result<u16> {
    if wanted.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = wanted.parse().ok().filter(|port| *port > 0);
        return number.ok_or_else(|| anyhow!("error parsing remote port {wanted:?}: expected 1 to 65535"));
    }
    let containers = pod["spec"]["containers"].as_array();
    let mut ports = containers.into_iter().flatten().filter_map(|c| c["ports"].as_array()).flatten();
    let port = ports.find(|port| port["name"] == wanted).and_then(|port| port["containerPort"].as_u64());
    let name = text(&pod["metadata"]["name"]);
    let port = port.with_context(|| format!("Pod '{name}' does not have a named port '{wanted}'"))?;
    Ok(u16::try_from(port)?)
}

/// Listens on each address; of `localhost` one of its two is enough.
async fn listen(addresses: &[String], port: u16) -> Result<Vec<TcpListener>> {
    let mut all = Vec::new();
    for address in addresses {
        if address == "localhost" {
            let first = bind((Ipv4Addr::LOCALHOST, port).into()).await;
            let port = first.as_ref().ok().and_then(|l| l.local_addr().ok()).map_or(port, |a| a.port());
            let second = bind((Ipv6Addr::LOCALHOST, port).into()).await;
            match (first, second) {
                (Err(error), Err(_)) => return Err(error),
                (first, second) => all.extend([first, second].into_iter().flatten()),
            }
        } else {
            let ip: IpAddr = address
                .parse()
                .map_err(|_| anyhow!("--address {address:?}: expected IP addresses or localhost"))?;
            all.push(bind((ip, port).into()).await?);
        }
    }
    Ok(all)
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("unable to listen on {address}"))
}

async fn serve(
    listener: TcpListener,
    kube: kube::Api<Pod>,
    pod: Arc<str>,
    port: u16,
    room: Arc<Semaphore>,
    out: Output,
) -> Result<()> {
    loop {
        let permit = room.clone().acquire_owned().await?;
        let (stream, _) = listener.accept().await?;
        out.line(format!("Handling connection for {}", listener.local_addr()?.port()));
        let (kube, pod) = (kube.clone(), pod.clone());
        tokio::spawn(async move {
            if let Err(error) = carry(stream, &kube, &pod, port).await {
                out.note(format!("error: forwarding to port {port} of pod {pod}: {error:#}"));
            }
            drop(permit);
        });
    }
}

/// Carries one connection, each over a stream of its own.
async fn carry(mut here: TcpStream, kube: &kube::Api<Pod>, pod: &str, port: u16) -> Result<()> {
    let mut forwarder = kube.portforward(pod, &[port]).await?;
    let failed = forwarder.take_error(port);
    let mut there = forwarder.take_stream(port).context("the server opened no stream")?;
    let carried = copy_bidirectional(&mut here, &mut there).await;
    drop(there);
    // A reset by either end is an ordinary end of a connection; what the node says of it is not.
    drop(carried);
    drop(forwarder.join().await);
    match failed {
        Some(failed) => failed.await.map_or(Ok(()), |reason| Err(anyhow!(reason))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"ports": [{"name": "web", "containerPort": 8080}]}, {"ports": [{"name": "admin", "containerPort": 9}]}]}});
        let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "127.43.0.2", "ports": [
            {"name": "http", "port": 80, "targetPort": "web"}, {"name": "raw", "port": 81, "targetPort": 82},
            {"name": "same", "port": 83}]}});
        let headless = json!({"metadata": {"name": "h"}, "spec": {"clusterIP": "None", "ports": [
            {"port": 80, "targetPort": 8080}]}});
        let check = |word: &str, service: Option<&Value>, local: u16, remote: u16| {
            assert_eq!(forward(word, &pod, service).unwrap(), Forward { local, remote }, "{word}");
        };
        check("8080", None, 8080, 8080);
        check("80:8080", None, 80, 8080);
        check(":8080", None, 0, 8080);
        check("web", None, 8080, 8080);
        check("1:admin", None, 1, 9);
        check("80", Some(&service), 80, 8080);
        check("8000:http", Some(&service), 8000, 8080);
        check("raw", Some(&service), 81, 82);
        check(":same", Some(&service), 0, 83);
        check("80", Some(&headless), 80, 80);
        let refused = |word: &str, service: Option<&Value>, expected: &str| {
            assert_eq!(forward(word, &pod, service).unwrap_err().to_string(), expected, "{word}");
        };
        refused("nope", None, "Pod 'p' does not have a named port 'nope'");
        refused("0", None, "error parsing remote port \"0\": expected 1 to 65535");
        refused("70000", None, "error parsing remote port \"70000\": expected 1 to 65535");
        refused("x:80", None, "error parsing local port \"x\": expected 0 to 65535");
        refused("99", Some(&service), "Service s does not have a service port 99");
    }
}
