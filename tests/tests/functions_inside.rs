//! Functions by their names in the cluster: from pods of every kind and of every node, and from nowhere else.

use std::{
    io,
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{LazyLock, mpsc},
    thread,
};

use wasmk_tests::{
    agent::Agent,
    node::{Node, container, pod},
    place::Place,
    program::Program,
    required::skip,
};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start_with(&["--gateway-addr", "0.0.0.0:0"]);
    for guest in ["hello-http", "fetch-http", "sockets"] {
        program.push(guest);
    }
    program
});

/// A function of a pushed guest that says hello to its own name; `metadata` is more of its YAML, `, field: value`.
fn function(name: &str, guest: &str, metadata: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}{metadata}}}\n\
         spec: {{template: {{spec: {{containers: [{{image: '$REGISTRY/default/{guest}:1', env: [{{name: TARGET, value: {name}}}]}}]}}}}}}\n---\n"
    )
}

/// Flags of a machine that other tests' pods stay away from.
const RESERVED: [&str; 4] = [
    "--container-runtime-endpoint",
    "none",
    "--register-with-taints",
    "tests.wasmk.dev/reserved=:NoSchedule",
];

const LOCAL: &str = ", labels: {networking.knative.dev/visibility: cluster-local}";

fn ready(place: &Place, function: &str) {
    place.sh(&format!("kubectl wait --for=condition=Ready ksvc/{function} --timeout=60s"));
}

/// The address of a new pod that fetches what it is asked for.
fn fetcher(place: &Place, name: &str, more: &str) -> String {
    place.sh(&format!("kubectl run {name} --image $REGISTRY/default/fetch-http:1 --port 8080 {more}"));
    place.sh(&format!("kubectl wait --for=condition=Ready pod/{name} --timeout=60s"));
    place.value(&format!("pod/{name}"), "{.status.podIP}")
}

/// Has a fetcher fetch until it gets that.
fn fetches(place: &Place, by: &str, url: &str, expected: &str) {
    place.until(&format!("curl -sS --max-time 10 'http://{by}:8080/?{url}'"), expected);
}

/// What a host answers to somebody who is neither a pod nor on this machine, for all that the gateway knows: to an
/// address of this machine that is not its own alone.
fn outside(host: &str) -> Option<String> {
    let probe = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    // It is only asked which way that would be; nothing is sent.
    probe.connect("192.0.2.1:9").ok()?;
    let own = probe.local_addr().map(|address| address.ip()).ok().filter(|ip: &IpAddr| !ip.is_loopback())?;
    let at = SocketAddr::new(own, CLUSTER.address("gateway").port());
    let host = format!("Host: {host}");
    let args = [
        "-sS",
        "--max-time",
        "10",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "-H",
        &host,
        &format!("http://{at}/"),
    ];
    let out = Command::new("curl").args(args).output().expect("curl runs");
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
fn pods_call_functions_by_their_names_and_strangers_do_not() {
    let place = Place::new(&CLUSTER, "inside");
    place.apply(&[function("open", "hello-http", ""), function("shut", "hello-http", LOCAL)].concat());
    for name in ["open", "shut"] {
        ready(&place, name);
        let address = place.value(&format!("ksvc/{name}"), "{.status.address.url}");
        assert_eq!(address, format!("http://{name}.inside.svc.cluster.local"));
    }
    let of_functions = "kubectl get pods -l serving.knative.dev/service -o name";
    assert_eq!(place.sh(of_functions), "", "both are at rest");
    let by = fetcher(&place, "caller", "");
    for name in ["open", "shut"] {
        for suffix in [".inside.svc.cluster.local", ".inside.svc", ".inside", ""] {
            fetches(&place, &by, &format!("http://{name}{suffix}/"), &format!("hello {name}"));
        }
    }
    let other = Place::new(&CLUSTER, "inside-other");
    let by = fetcher(&other, "caller", "");
    fetches(&other, &by, "http://shut.inside/", "hello shut");
    let refused =
        other.sh(&format!("curl -sS --max-time 10 -w ' %{{http_code}}' 'http://{by}:8080/?http://shut/'"));
    assert!(refused.ends_with(" 502"), "a mere name means the pod's own namespace: {refused}");
    // A function in place of a pod, and a program with sockets of its own.
    place.apply(&function("relay", "fetch-http", ""));
    ready(&place, "relay");
    let relayed =
        |_: &Program| CLUSTER.call("relay.inside.example.com", "/?http://shut.inside.svc.cluster.local/");
    CLUSTER.until("a function's answer to a function", relayed, |answer| {
        *answer == (200, "hello shut\n".into())
    });
    place.sh("kubectl run raw --image $REGISTRY/default/sockets:1 --restart Never -- get shut.inside.svc.cluster.local");
    place.until("kubectl logs raw", "hello shut");

    let Some(open) = outside("open.inside.example.com") else {
        return skip("addresses", "this machine has no address that others could use: nobody is outside");
    };
    assert_eq!(open, "200");
    for host in [
        "shut.inside.svc.cluster.local",
        "shut.inside.svc",
        "shut.inside",
        "open.inside",
        "shut.inside.example.com",
    ] {
        assert_eq!(outside(host).as_deref(), Some("404"), "{host}");
    }
}

#[test]
fn policies_know_functions_as_pods_of_their_gateway() {
    let place = Place::new(&CLUSTER, "inside-policy");
    place.apply(&function("web", "hello-http", ""));
    ready(&place, "web");
    let by = fetcher(&place, "caller", "");
    fetches(&place, &by, "http://web.inside-policy/", "hello web");
    let policy = |egress: &str| {
        place.apply(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: caller}}\n\
             spec: {{podSelector: {{matchLabels: {{run: caller}}}}, policyTypes: [Egress], egress: [{egress}]}}\n"
        ));
    };
    policy("");
    let shut =
        format!("curl -sS -o /dev/null --max-time 2 'http://{by}:8080/?http://web.inside-policy/'; echo $?");
    place.until(&shut, "28");
    policy("{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: knative-serving}}}]}");
    fetches(&place, &by, "http://web.inside-policy/", "hello web");
}

#[test]
fn names_come_and_go_with_routes_and_tags() {
    let place = Place::new(&CLUSTER, "inside-names");
    place.apply(&function("web", "hello-http", ""));
    ready(&place, "web");
    let row = place.sh("kubectl get svc web --no-headers | tr -s ' ' | cut -d' ' -f1-5");
    assert_eq!(row, "web ExternalName <none> gateway.knative-serving.svc.cluster.local 80/TCP");
    let value = |path: &str| place.value("svc/web", path);
    assert_eq!(value("{.metadata.ownerReferences[0].kind}/{.metadata.ownerReferences[0].name}"), "Route/web");
    assert_eq!(value("{.metadata.labels.serving\\.knative\\.dev/route}"), "web");
    assert_eq!(value("{.metadata.labels.serving\\.knative\\.dev/service}"), "web");
    let tagged = |tags: &str| {
        let patch =
            format!("{{\"spec\":{{\"traffic\":[{{\"latestRevision\":true,\"percent\":100}}{tags}]}}}}");
        place.sh(&format!("kubectl patch ksvc web --type merge -p '{patch}'"));
    };
    tagged(",{\"revisionName\":\"web-00001\",\"tag\":\"first\"}");
    let names = "kubectl get svc -l serving.knative.dev/route=web -o name";
    place.until(names, "service/first-web\nservice/web");
    let by = fetcher(&place, "caller", "");
    for url in ["http://first-web.inside-names.svc.cluster.local/", "http://first-web/"] {
        fetches(&place, &by, url, "hello web");
    }
    // What somebody deletes is made again.
    place.sh("kubectl delete svc first-web");
    place.until(names, "service/first-web\nservice/web");
    tagged("");
    place.until(names, "service/web");
    place.sh("kubectl delete ksvc web");
    place.until("kubectl get svc -o name", "");
    let gone = "curl -sS --max-time 10 -o /dev/null -w '%{http_code}'";
    place.until(&format!("{gone} 'http://{by}:8080/?http://web.inside-names.svc.cluster.local/'"), "502");
}

#[test]
fn a_name_that_somebody_has_stays_theirs() {
    let place = Place::new(&CLUSTER, "inside-taken");
    place.sh("kubectl create service clusterip web --tcp=80");
    let before = place.value("svc/web", "{.metadata.uid} {.spec}");
    place.apply(&function("web", "hello-http", ""));
    let condition = |kind: &str, of: &str, path: &str| {
        place.value(&format!("{of}/web"), &format!("{{.status.conditions[?(@.type==\"{kind}\")].{path}}}"))
    };
    place.until_value(
        "route.serving.knative.dev/web",
        "{.status.conditions[?(@.type==\"IngressReady\")].reason}",
        "NotOwned",
    );
    let said = condition("IngressReady", "route.serving.knative.dev", "message");
    assert_eq!(said, "There is an existing placeholder Service \"web\" that we do not own.");
    place.until_value("ksvc/web", "{.status.conditions[?(@.type==\"Ready\")].status}", "False");
    assert_eq!(condition("RoutesReady", "ksvc", "reason"), "NotOwned");
    assert_eq!(place.value("svc/web", "{.metadata.uid} {.spec}"), before);
    place.sh("kubectl delete svc web");
    ready(&place, "web");
    assert_eq!(place.value("svc/web", "{.spec.type}"), "ExternalName");
}

#[test]
fn pods_of_another_node_call_functions_by_their_names() {
    let place = Place::new(&CLUSTER, "inside-far");
    let _agent = Agent::join(&CLUSTER, "edge", &RESERVED);
    CLUSTER.until_value("node/edge", "{.status.conditions[?(@.type=='Ready')].status}", "True");
    place.apply(&function("shut", "hello-http", LOCAL));
    ready(&place, "shut");
    let by = fetcher(&place, "caller", "--overrides='{\"spec\":{\"nodeName\":\"edge\"}}'");
    for url in ["http://shut.inside-far.svc.cluster.local/", "http://shut.inside-far/", "http://shut/"] {
        fetches(&place, &by, url, "hello shut");
    }
}

/// Does something as on another machine, that reaches nothing of this one but those addresses: in a network namespace
/// whose listeners pass connections on. `None` where there can be no such.
fn elsewhere<T: Send>(reached: &[SocketAddr], work: impl FnOnce() -> T + Send) -> Option<T> {
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let there = scope.spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            up.ok().filter(|status| status.success())?;
            for address in reached {
                tell.send((TcpListener::bind(address).expect("a free address"), *address))
                    .expect("a receiver");
            }
            drop(tell);
            Some(work())
        });
        // These threads are on this side.
        for (listener, to) in told {
            thread::spawn(move || listener.incoming().flatten().for_each(|from| pass_on(from, to)));
        }
        there.join().expect("the other side does not panic")
    })
}

fn pass_on(from: TcpStream, to: SocketAddr) {
    let Ok(to) = TcpStream::connect(to) else { return };
    let one_way = |from: &TcpStream, to: &TcpStream| {
        let (mut from, mut to) = (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"));
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    };
    one_way(&from, &to);
    one_way(&to, &from);
}

#[test]
fn pods_of_another_machine_call_functions_by_their_names() {
    let place = Place::new(&CLUSTER, "inside-abroad");
    let reached = [CLUSTER.address("api"), CLUSTER.address("registry")];
    let Some(_agent) = elsewhere(&reached, || Agent::join(&CLUSTER, "abroad", &RESERVED)) else {
        return skip("containers", "no network namespace can be made");
    };
    CLUSTER.until_value("node/abroad", "{.status.conditions[?(@.type=='Ready')].status}", "True");
    place.apply(&function("shut", "hello-http", LOCAL));
    ready(&place, "shut");
    let on = "--overrides='{\"spec\":{\"nodeName\":\"abroad\"}}'";
    for (pod, host) in [("whole", "shut.inside-abroad.svc.cluster.local"), ("mere", "shut")] {
        place.sh(&format!(
            "kubectl run {pod} --image $REGISTRY/default/sockets:1 --restart Never {on} -- get {host}"
        ));
        place.until(&format!("kubectl logs {pod}"), "hello shut");
    }
}

#[test]
fn containers_call_functions_by_their_names() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    let image = p.push("hello-http");
    p.apply(&function("shut", "hello-http", LOCAL).replace("$REGISTRY/default/hello-http:1", &image));
    p.kubectl(&["wait", "--for=condition=Ready", "ksvc/shut", "--timeout=60s"]);
    p.apply(&pod("caller", "", &[container("main", "sleep 600", "")]));
    p.until_row("caller", "1/1 Running");
    for host in ["shut.default.svc.cluster.local", "shut.default.svc", "shut.default", "shut"] {
        let line = format!("timeout 10 wget -q -O - http://{host}/ 2>&1 || true");
        p.until(host, |p| p.within("caller", &line), |said| said == "hello shut\n");
    }
    p.kubectl(&["delete", "pod", "caller", "--now"]);
}
