//! Network policies, held to by pods of WebAssembly: nobody needs to be root for them.

use std::{net::TcpListener, process::Command, sync::LazyLock};

use wasmk_tests::{
    agent::{Agent, NO_CONTAINERS},
    place::{Place, Running},
    program::Program,
};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program.push("fetch-http");
    program
});

/// What curl says when nothing came in time.
const TIMEOUT: &str = "28";

/// A pod `run=NAME` that says hello with its name.
fn says_hello(place: &Place, name: &str) -> String {
    run(place, name, "hello", &format!("--env TARGET={name}"))
}

/// A pod `run=NAME` that fetches what it is asked for.
fn fetches(place: &Place, name: &str) -> String {
    run(place, name, "fetch-http", "")
}

/// The pod's address.
fn run(place: &Place, name: &str, image: &str, more: &str) -> String {
    place.sh(&format!("kubectl run {name} --image $REGISTRY/default/{image}:1 --port 8080 {more}"));
    place.sh(&format!("kubectl wait --for=condition=Ready pod/{name} --timeout=60s"));
    place.value(&format!("pod/{name}"), "{.status.podIP}")
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n"
    )
}

/// Asks until the answer begins with `hello NAME`.
fn open(place: &Place, url: &str, name: &str) {
    place.until_that(&format!("curl -sS --max-time 5 '{url}'"), |text| {
        text.starts_with(&format!("hello {name}"))
    });
}

/// Asks until nothing comes back any more.
fn shut(place: &Place, url: &str) {
    place.until(&format!("curl -sS -o /dev/null --max-time 2 '{url}'; echo $?"), TIMEOUT);
}

/// A question that `by` passes on to another address.
fn through(by: &str, url: &str) -> String {
    format!("http://{by}:8080/?{url}")
}

#[test]
fn a_pod_is_shut_and_opened_to_some() {
    let place = Place::new(&CLUSTER, "np-web");
    let web = format!("http://{}:8080/", says_hello(&place, "testweb"));
    let (curl, kurl) = (fetches(&place, "testcurl"), fetches(&place, "testkurl"));
    open(&place, &web, "testweb");
    open(&place, &through(&curl, &web), "testweb");

    let testweb = "podSelector: {matchLabels: {run: testweb}}, ";
    let said = place.apply(&policy("deny-all-for-testweb", &format!("{testweb}ingress: []")));
    assert_eq!(said, "networkpolicy.networking.k8s.io/deny-all-for-testweb created");
    shut(&place, &web);
    shut(&place, &through(&curl, &web));

    let from = "ingress: [{from: [{podSelector: {matchLabels: {run: testcurl}}}]}]";
    place.apply(&policy("allow-testcurl-for-testweb", &format!("{testweb}{from}")));
    open(&place, &through(&curl, &web), "testweb");
    shut(&place, &through(&kurl, &web));
    shut(&place, &web);

    // Who may use the API reaches it all the same.
    place.until_that("kubectl get --raw /api/v1/namespaces/np-web/pods/testweb:8080/proxy/", |t| {
        t.starts_with("hello testweb")
    });
    let port = free_port();
    let _forward = Running::start(place.command("kubectl").args([
        "port-forward",
        "pod/testweb",
        &format!("{port}:8080"),
    ]));
    open(&place, &format!("http://127.0.0.1:{port}/"), "testweb");

    place.sh("kubectl delete networkpolicies --all");
    open(&place, &web, "testweb");
    open(&place, &through(&kurl, &web), "testweb");
}

/// A port that nobody listens on just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

#[test]
fn a_namespace_is_closed_but_for_its_front() {
    let place = Place::new(&CLUSTER, "np-coins");
    fetches(&place, "webui");
    says_hello(&place, "rng");
    says_hello(&place, "hasher");
    place.sh("kubectl expose pod webui --type NodePort --port 80 --target-port 8080");
    for name in ["rng", "hasher"] {
        place.sh(&format!("kubectl expose pod {name} --port 8000 --target-port 8080"));
    }
    let other = Place::new(&CLUSTER, "np-elsewhere");
    let stranger = fetches(&other, "stranger");
    let node_port = place.value("svc/webui", "{.spec.ports[0].nodePort}");
    let ui = |url: &str| format!("http://127.0.0.1:{node_port}/?{url}");
    let address =
        |name: &str| format!("http://{}:8000/", place.value(&format!("svc/{name}"), "{.spec.clusterIP}"));
    open(&place, &through(&stranger, &address("rng")), "rng");

    place.apply(
        &[
            policy("deny-from-other-namespaces", "podSelector: {}, ingress: [{from: [{podSelector: {}}]}]"),
            policy("allow-webui", "podSelector: {matchLabels: {run: webui}}, ingress: [{from: []}]"),
        ]
        .concat(),
    );
    for name in ["rng", "hasher"] {
        shut(&place, &address(name));
        shut(&place, &through(&stranger, &address(name)));
        // From outside the front answers, and it reaches the rest by name.
        open(&place, &ui(&format!("http://{name}:8000/")), name);
    }
    place.sh("kubectl delete networkpolicies --all");
    open(&place, &address("rng"), "rng");
    open(&place, &through(&stranger, &address("hasher")), "hasher");
}

#[test]
fn directions_ports_and_blocks_are_told_apart() {
    let place = Place::new(&CLUSTER, "np-rules");
    let (db, web) = (says_hello(&place, "db"), says_hello(&place, "web"));
    let client = fetches(&place, "client");
    let (db, web) = (format!("http://{db}:8080/"), format!("http://{web}:8080/"));

    // Out to one pod and port only; what comes in is not touched, nor is the answer to it.
    let selected = "podSelector: {matchLabels: {run: client}}, ";
    let out =
        "egress: [{to: [{podSelector: {matchLabels: {run: db}}}], ports: [{protocol: TCP, port: 8080}]}]";
    place.apply(&policy("out", &format!("{selected}policyTypes: [Egress], {out}")));
    shut(&place, &through(&client, &web));
    open(&place, &through(&client, &db), "db");
    // The API is as closed to it as all else.
    let api = through(&client, "http://kubernetes.default.svc:443/");
    shut(&place, &api);

    // The other end has to agree.
    let nobody = policy("in", "podSelector: {matchLabels: {run: db}}, ingress: [{ports: [{port: 8081}]}]");
    place.apply(&nobody);
    shut(&place, &through(&client, &db));
    shut(&place, &db);
    place.apply(&nobody.replace("8081", "8080"));
    open(&place, &through(&client, &db), "db");
    open(&place, &db, "db");

    // One that only restricts what comes in leaves the way to the API open.
    place.sh("kubectl delete networkpolicy out in");
    place.apply(&policy(
        "only-in",
        "podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 127.0.0.0/29, except: [127.0.0.2/32]}}]}]",
    ));
    open(&place, &web, "web");
    shut(&place, &through(&client, &web));
    place.until_that(&format!("curl -sS --max-time 5 '{api}' -o /dev/null && echo answered"), |t| {
        t == "answered"
    });
    place.until(&format!("curl -sS -o /dev/null --max-time 2 --interface 127.0.0.2 {web}; echo $?"), TIMEOUT);
    assert_eq!(place.sh(&format!("curl -sS --interface 127.0.0.3 {web}")), "hello web");
}

#[test]
fn a_service_passes_or_fails_by_the_pod_chosen() {
    let place = Place::new(&CLUSTER, "np-chosen");
    for name in ["one", "two"] {
        says_hello(&place, name);
        place.sh(&format!("kubectl label pod {name} app=both"));
    }
    place.sh("kubectl create service clusterip both --tcp=8000:8080");
    let address = place.value("svc/both", "{.spec.clusterIP}");
    let both = format!(
        "for i in 1 2 3 4; do curl -sS --max-time 2 http://{address}:8000/ 2>/dev/null || echo $?; done | sort -u | xargs"
    );
    place.until(&both, "hello one hello two");
    place.apply(&policy("shut-two", "podSelector: {matchLabels: {run: two}}"));
    place.until(&both, &format!("{TIMEOUT} hello one"));
}

#[test]
fn connections_to_a_guests_own_sockets_are_asked_about_with_and_without_the_second_wall() {
    CLUSTER.push("sockets");
    let place = Place::new(&CLUSTER, "np-sockets");
    let shut = policy("shut", "podSelector: {}, ingress: []");
    for (name, class) in [("plain", ""), ("apart", "runtimeClassName: wasmtime-isolated, ")] {
        place.apply(&shut);
        place.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{class}restartPolicy: Never, automountServiceAccountToken: false, \
             containers: [{{name: main, image: '$REGISTRY/default/sockets:1', args: [listen, '0.0.0.0:7000']}}]}}\n"
        ));
        place.until_that(&format!("kubectl logs {name}"), |log| log.starts_with("listening "));
        let address = format!("{}:7000", place.value(&format!("pod/{name}"), "{.status.podIP}"));
        let hear = || {
            let mut client = std::net::TcpStream::connect(&address).expect("the system takes it");
            client.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a limit");
            let mut text = String::new();
            // One that is closed at once may say so by an error.
            let _ = std::io::Read::read_to_string(&mut client, &mut text);
            text
        };
        for _ in 0..3 {
            assert_eq!(hear(), "", "{name}");
        }
        // It has not noticed, and waits.
        assert_eq!(place.value(&format!("pod/{name}"), "{.status.phase}"), "Running");
        place.sh("kubectl delete networkpolicy shut");
        CLUSTER.until("the greeting", |_| hear(), |text| text == "greetings");
        place.until(&format!("kubectl get pod {name} -o jsonpath={{.status.phase}}"), "Succeeded");
    }
}

/// Each team has a namespace, rights in it, a share of the cluster, and visitors from it alone.
#[test]
fn teams_share_a_cluster_and_are_kept_apart() {
    let teams = ["red", "blue"].map(|team| (team, Place::new(&CLUSTER, &format!("team-{team}"))));
    let who = |team: &str| format!("--as=ann-of-{team} --as-group=team-{team}");
    let mut web = Vec::new();
    for (team, place) in &teams {
        place.sh(&format!("kubectl create rolebinding team --clusterrole=edit --group=team-{team}"));
        place.sh("kubectl create quota share --hard=pods=2,services=1");
        place.until("kubectl get quota share -o jsonpath='{.status.hard.pods}'", "2");
        place.apply(&policy(
            "own",
            "podSelector: {matchLabels: {run: web}}, ingress: [{from: [{podSelector: {}}]}]",
        ));
        let as_team = who(team);
        let address = run(place, "web", "hello", &format!("--env TARGET=web {as_team}"));
        web.push((format!("http://{address}:8080/"), run(place, "client", "fetch-http", &as_team)));
    }
    for (mine, (team, place)) in teams.iter().enumerate() {
        let (as_team, other) = (who(team), &teams[1 - mine].0);
        // Its share is used up, its own objects are its, and the other's are not.
        let over = place.fails(&format!("kubectl run third --image $REGISTRY/default/hello:1 {as_team}"));
        assert!(
            over.contains("exceeded quota: share, requested: pods=1, used: pods=2, limited: pods=2"),
            "{over}"
        );
        assert_eq!(place.sh(&format!("kubectl get pods -o name {as_team} | xargs")), "pod/client pod/web");
        for wish in ["get pods", "delete pod web", "create configmap mark"] {
            let refused = place.fails(&format!("kubectl {wish} -n team-{other} {as_team}"));
            assert!(
                refused.to_lowercase().contains("forbidden") && refused.contains(&format!("ann-of-{team}")),
                "{refused}"
            );
        }
        place.fails(&format!("kubectl get nodes {as_team}"));
        place.fails(&format!("kubectl delete quota share {as_team}"));
        // So are its visitors.
        let (own, client) = &web[mine];
        open(place, &through(client, own), "web");
        shut(place, &through(client, &web[1 - mine].0));
        shut(place, own);
    }
}

#[test]
fn what_has_the_nodes_network_is_not_filtered() {
    let place = Place::new(&CLUSTER, "np-host");
    let port = free_port();
    place.apply(&policy("shut", "podSelector: {}, policyTypes: [Ingress, Egress]"));
    place.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: host}}\nspec: {{hostNetwork: true, containers: [{{name: main, \
         image: '$REGISTRY/default/hello:1', env: [{{name: TARGET, value: host}}], ports: [{{containerPort: {port}}}]}}]}}\n"
    ));
    place.sh("kubectl wait --for=condition=Ready pod/host --timeout=60s");
    // The policy holds for a pod beside it.
    let beside = says_hello(&place, "beside");
    shut(&place, &format!("http://{beside}:8080/"));
    open(&place, &format!("http://127.0.0.1:{port}/"), "host");
}

#[test]
fn probes_pass_and_a_new_pod_is_shut_from_its_start() {
    let place = Place::new(&CLUSTER, "np-probes");
    place.apply(&policy("shut", "podSelector: {}"));
    place.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: probed}\nspec: {containers: [{name: main, \
         image: '$REGISTRY/default/hello:1', ports: [{containerPort: 8080}], \
         readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}]}\n",
    );
    place.sh("kubectl wait --for=condition=Ready pod/probed --timeout=60s");
    let address = place.value("pod/probed", "{.status.podIP}");
    let once = place.output(&format!("curl -sS --max-time 2 http://{address}:8080/"));
    assert_eq!(once.status.code().map(|c| c.to_string()).as_deref(), Some(TIMEOUT));
}

#[test]
fn what_has_no_effect_is_told() {
    let place = Place::new(&CLUSTER, "np-told");
    let told = |spec: &str| {
        place.write("policy.yaml", &policy("told", spec));
        place.sh("kubectl apply -f policy.yaml 2>&1")
    };
    let said =
        told("podSelector: {}, egress: [{ports: [{port: 53, protocol: UDP}, {port: 80, protocol: SCTP}]}]");
    assert!(said.contains("Warning: spec.egress[0].ports[1].protocol: Wasm pods have no SCTP"), "{said}");
    let said = told("podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 'fd00::/8'}}]}]");
    assert!(said.contains("Warning: spec.ingress[0].from[0].ipBlock.cidr: pods here have IPv4"), "{said}");
    let said =
        told("podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80, endPort: 90}]}]");
    assert!(!said.contains("Warning"), "{said}");
}

#[test]
fn functions_are_held_to_policies_with_and_without_a_pod() {
    let place = Place::new(&CLUSTER, "np-functions");
    place.apply(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: fn}\nspec: {template: {spec: {containers: [\
         {image: '$REGISTRY/default/hello:1', env: [{name: TARGET, value: fn}]}]}}}\n",
    );
    place.sh("kubectl wait --for=condition=Ready ksvc/fn --timeout=60s");
    let ask = format!(
        "curl -sS --max-time 5 -w ' %{{http_code}}' -H 'Host: fn.np-functions.example.com' http://{}/ | xargs",
        CLUSTER.address("gateway")
    );
    place.until(&ask, "hello fn 200");
    place.apply(&policy("shut", "podSelector: {}"));
    place.until_that(&ask, |text| !text.contains("hello"));
    place.apply(&policy("open", "podSelector: {}, ingress: [{}]"));
    place.until(&ask, "hello fn 200");
}

#[test]
fn every_node_holds_its_own_pods_to_them() {
    let program: &'static Program = Box::leak(Box::new(Program::start()));
    program.push("hello");
    program.push("fetch-http");
    let agent = Agent::join(program, "edge", &NO_CONTAINERS);
    program.until_value("node/edge", "{.status.conditions[?(@.type=='Ready')].status}", "True");
    let place = Place::new(program, "np-nodes");
    let on = |node: &str| format!("--overrides='{{\"spec\":{{\"nodeName\":\"{node}\"}}}}'");
    let far = run(&place, "far", "hello", &format!("--env TARGET=far {}", on("edge")));
    let near = run(&place, "near", "fetch-http", &on("node-a"));
    let other = run(&place, "other", "fetch-http", &on("edge"));
    let far = format!("http://{far}:8080/");
    open(&place, &through(&near, &far), "far");
    let from = "ingress: [{from: [{podSelector: {matchLabels: {run: near}}}]}]";
    place.apply(&policy("near-only", &format!("podSelector: {{matchLabels: {{run: far}}}}, {from}")));
    shut(&place, &far);
    shut(&place, &through(&other, &far));
    open(&place, &through(&near, &far), "far");
    drop(agent);
    let _ = Command::new("kill").arg(program.id().to_string()).status();
}
