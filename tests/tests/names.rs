//! The cluster's DNS server, asked by the protocol as containers and nodes do.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::LazyLock,
    time::Duration,
};

use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program
});

/// A question for the addresses of a name.
fn question(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat());
    let labels: Vec<u8> = labels.chain([0]).collect();
    [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &labels, &[0, 1, 0, 1]].concat()
}

/// The code of an answer, and for each record its type with the last four bytes of its data.
fn read(answer: &[u8], asked: usize) -> (u8, Vec<(u16, [u8; 4])>) {
    let mut at = asked;
    let records = (0..answer[7]).map(|_| {
        let kind = u16::from_be_bytes([answer[at + 2], answer[at + 3]]);
        let length = usize::from(u16::from_be_bytes([answer[at + 10], answer[at + 11]]));
        at += 12 + length;
        (kind, answer[at - 4..at].try_into().unwrap())
    });
    let records = records.collect();
    (answer[3] & 0x0f, records)
}

fn server() -> SocketAddr {
    let ip =
        CLUSTER.kubectl(&["get", "svc", "-n", "kube-system", "kube-dns", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(ip.starts_with("127.43.") && ip.ends_with(".10"), "{ip}");
    SocketAddr::new(ip.parse().unwrap(), 53)
}

/// Asks over UDP; a server that is not there yet is asked again.
fn ask(name: &str) -> (u8, Vec<(u16, [u8; 4])>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let message = question(name);
    for _ in 0..20 {
        socket.send_to(&message, server()).unwrap();
        let mut buffer = [0; 512];
        if let Ok(length) = socket.recv(&mut buffer) {
            return read(&buffer[..length], message.len());
        }
    }
    panic!("no answer for {name}");
}

/// Asks until the addresses are as many as expected; in order.
fn addresses(name: &str, count: usize) -> Vec<Ipv4Addr> {
    let ask =
        |_: &Program| ask(name).1.into_iter().filter(|(kind, _)| *kind == 1).map(|(_, a)| a.into()).collect();
    let mut found: Vec<Ipv4Addr> = CLUSTER.until(name, ask, |found: &Vec<Ipv4Addr>| found.len() == count);
    found.sort();
    found
}

const SETS: &str = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: consul}\nspec:\n  serviceName: consul\n  replicas: 2\n  \
    selector: {matchLabels: {app: consul}}\n  template:\n    metadata: {labels: {app: consul}}\n    spec:\n      \
    containers: [{name: c, image: $REGISTRY/default/hello:1, ports: [{containerPort: 8080}]}]\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: consul}\nspec: {clusterIP: None, selector: {app: consul}, ports: [{port: 8080}]}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: front}\nspec: {selector: {app: consul}, ports: [{port: 80, targetPort: 8080}]}\n";

#[test]
fn services_and_pods_have_names() {
    let place = Place::new(&CLUSTER, "dns");
    place.apply(SETS);
    place.sh("kubectl rollout status sts/consul --timeout=60s");
    let front: Ipv4Addr = place.value("svc/front", "{.spec.clusterIP}").parse().unwrap();
    assert_eq!(addresses("front.dns.svc.cluster.local", 1), [front]);
    let mut pods: Vec<Ipv4Addr> = place
        .value("pods -l app=consul", "{.items[*].status.podIP}")
        .split(' ')
        .map(|ip| ip.parse().unwrap())
        .collect();
    pods.sort();
    assert_eq!(addresses("consul.dns.svc.cluster.local", 2), pods);
    let first: Ipv4Addr = place.value("pod/consul-0", "{.status.podIP}").parse().unwrap();
    assert_eq!(addresses("consul-0.consul.dns.svc.cluster.local", 1), [first]);
    // Also when the governing service has an address of its own.
    place.apply(
        &SETS.replace("clusterIP: None, ", "").replace("consul", "vault").replace("front", "vault-front"),
    );
    place.sh("kubectl rollout status sts/vault --timeout=60s");
    let first: Ipv4Addr = place.value("pod/vault-0", "{.status.podIP}").parse().unwrap();
    assert_eq!(addresses("vault-0.vault.dns.svc.cluster.local", 1), [first]);
    // A Service may be another name for one.
    place.sh("kubectl create service externalname alias --external-name front.dns.svc.cluster.local");
    let all = CLUSTER.until("an alias", |_| ask("alias.dns.svc.cluster.local"), |(code, _)| *code == 0).1;
    assert!(matches!(all[..], [(5, _), (1, address)] if Ipv4Addr::from(address) == front), "{all:?}");
    // Records follow their service.
    assert_eq!(ask("late.dns.svc.cluster.local").0, 3);
    place.sh("kubectl create service clusterip late --tcp=80");
    addresses("late.dns.svc.cluster.local", 1);
    place.sh("kubectl delete svc late");
    addresses("late.dns.svc.cluster.local", 0);
    assert_eq!(ask("late.dns.svc.cluster.local").0, 3);
}

#[test]
fn aliases_and_streams_are_answered() {
    let place = Place::new(&CLUSTER, "aliases");
    place.sh("kubectl create service externalname numbers-api --external-name raw.githubusercontent.com");
    let kinds = |_: &Program| ask("numbers-api.aliases.svc.cluster.local").1.first().map(|(kind, _)| *kind);
    CLUSTER.until("an alias", kinds, |kind| *kind == Some(5));

    let message = question("kubernetes.default.svc.cluster.local");
    let mut stream = TcpStream::connect(server()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(&[&(message.len() as u16).to_be_bytes()[..], &message].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    let (code, records) = read(&answer, message.len());
    assert_eq!((code, records.len(), records[0].1[3]), (0, 1, 1));

    let row = place.sh("kubectl -n kube-system get svc kube-dns --no-headers | xargs");
    assert!(row.contains("53/UDP,53/TCP"), "{row}");
    assert!(place.sh("kubectl cluster-info").contains("CoreDNS is running at"));
    assert!(place.sh("wasmk cluster-info").contains("CoreDNS is running at"));
}
