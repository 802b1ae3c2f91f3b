//! Several servers of one cluster on a shared etcd: clients use one address, one of the servers runs the controllers,
//! and any of them may go.

use std::{
    collections::BTreeSet,
    fs,
    io::copy,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    thread,
};

use tempfile::TempDir;
use wasmk_tests::{
    agent::{Agent, NO_CONTAINERS},
    etcd::Etcd,
    program::Program,
};

/// Leads connections to the first of these servers that accepts them, as a balancer before them does; the address
/// that clients use.
fn balancer(servers: Vec<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if let Some(server) = servers.iter().find_map(|server| TcpStream::connect(server).ok()) {
                lead(&client, &server);
                lead(&server, &client);
            }
        }
    });
    address
}

/// Copies from one end to the other until either is closed, in the background.
fn lead(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
    thread::spawn(move || {
        let _ = copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    });
}

/// A server of the cluster that `first` is of, on the same etcd and with the same authority.
fn another(first: &Program, etcd: &Etcd) -> Program {
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy_files(&Path::new(&first.data_dir()).join("pki"), &dir.path().join("data/pki"));
    start(dir, etcd, &first.ranges())
}

fn start(dir: TempDir, etcd: &Etcd, ranges: &[String]) -> Program {
    let store = etcd.store();
    let mut flags = vec!["--no-node", "--store", &store];
    flags.extend(ranges.iter().map(String::as_str));
    Program::start_in(dir, &flags)
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a new directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_files(&path, &target);
        } else {
            fs::copy(&path, &target).expect("a readable file");
        }
    }
}

/// Who holds the lease of the controllers; nobody while there is none.
fn leader(program: &Program) -> String {
    let lease = ["get", "lease", "kube-controller-manager", "-n", "kube-system", "--ignore-not-found"];
    program.kubectl(&[&lease[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat())
}

/// Names of the pods of `web` that are not on their way out.
fn pods(program: &Program) -> BTreeSet<String> {
    let row = "{range .items[*]}{.metadata.name}={.metadata.deletionTimestamp} {end}";
    let rows = program.kubectl(&["get", "pods", "-l", "app=web", "-o", &format!("jsonpath={row}")]);
    rows.split_whitespace().filter_map(|row| row.strip_suffix('=')).map(ToOwned::to_owned).collect()
}

/// Where names are answered: address and port.
fn answering(program: &Program) -> String {
    let show = "jsonpath={.endpoints[0].addresses[0]}:{.ports[0].port}";
    let slice = ["get", "endpointslice/kube-dns", "-n", "kube-system", "--ignore-not-found", "-o", show];
    program.kubectl(&slice)
}

/// The service of the cluster's names as a server shows it: address, uid, version.
fn dns(program: &Program) -> String {
    let show = "jsonpath={.spec.clusterIP} {.metadata.uid} {.metadata.resourceVersion}";
    program.kubectl(&["get", "service/kube-dns", "-n", "kube-system", "-o", show])
}

const READY: &str = "{.status.readyReplicas}";

fn web(image: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: 3\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      \
         containers: [{{name: main, image: '{image}', ports: [{{containerPort: 8000}}]}}]\n"
    )
}

/// What one server is told, the others show, and those who watch them see.
fn tell_each_other(servers: [&Program; 3]) {
    for (i, writer) in servers.into_iter().enumerate() {
        let (name, watcher) = (format!("news-{i}"), servers[(i + 1) % 3]);
        thread::scope(|scope| {
            let object = format!("configmap/{name}");
            let watching = scope
                .spawn(move || watcher.kubectl(&["wait", "--for=create", "--timeout=60s", object.as_str()]));
            writer.kubectl(&["create", "configmap", &name]);
            watching.join().expect("it is seen");
        });
    }
}

/// Three servers, a machine, and what clients see while the one that leads is killed.
#[test]
fn the_cluster_goes_on_without_the_server_that_led_it() {
    let etcd = Etcd::start();
    let first = start(tempfile::tempdir().expect("a temporary directory"), &etcd, &[]);
    let led = first.until("the first leads", leader, |holder| !holder.is_empty());
    let named = first.until("its names are asked for", answering, |at| !at.is_empty());
    let (second, third) = (another(&first, &etcd), another(&first, &etcd));
    let door = balancer([&first, &second, &third].map(|p| p.address("api")).to_vec());
    let server = format!("--server=https://{door}");
    // By the address of all, with what the third has given out.
    let kubectl = |args: &[&str]| third.kubectl(&[&[server.as_str()], args].concat());
    let _agent = Agent::join_at(&second, &format!("https://{door}"), "worker", &NO_CONTAINERS);
    second.until_value("node/worker", "{.status.conditions[?(@.type=='Ready')].status}", "True");
    let names = dns(&third);
    assert_eq!([dns(&first), dns(&second)], [names.clone(), names.clone()]);
    tell_each_other([&first, &second, &third]);
    assert_eq!(answering(&third), named, "who does not lead leaves them alone");
    // The registry is that of a server which stays.
    first.apply(&web(&third.push("hello")));
    second.until_value("deployment/web", READY, "3");
    let before = pods(&third);
    assert_eq!((before.len(), leader(&third)), (3, led.clone()), "the others wait");

    // It is killed. Clients are answered at once, and what they ask for is done by who leads next.
    drop(first);
    kubectl(&["create", "configmap", "meanwhile"]);
    assert_eq!(kubectl(&["get", "--raw", "/readyz"]), "ok");
    kubectl(&["scale", "deployment/web", "--replicas=5"]);
    let victim = before.first().expect("a pod").clone();
    kubectl(&["delete", "pod", &victim, "--wait=false"]);
    let next = third.until("another leads", leader, |holder| *holder != led);
    third.until("names are asked for elsewhere", answering, |at| *at != named);
    third.until_value("deployment/web", READY, "5");
    let all = third.until("five pods", pods, |names| names.len() == 5 && !names.contains(&victim));
    let kept: BTreeSet<String> = before.into_iter().filter(|name| *name != victim).collect();
    assert!(all.is_superset(&kept), "there was no reason to replace any of {kept:?}: {all:?}");

    // Nothing was made twice, and who does not lead writes nothing.
    let sets = kubectl(&["get", "replicasets", "-l", "app=web", "-o", "name"]);
    let set = sets.trim().rsplit('/').next().expect("a name").to_owned();
    let made = third.until(
        "events of all pods",
        |p| p.events(&set).lines().filter(|line| line.contains("SuccessfulCreate")).count(),
        |made| *made >= 6,
    );
    assert_eq!(
        (sets.lines().count(), made),
        (1, 6),
        "three, two more and one for the deleted: {}",
        third.events(&set)
    );
    assert_eq!((pods(&second), leader(&second), dns(&second)), (all, next, names));
}
