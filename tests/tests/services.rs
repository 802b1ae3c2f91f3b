//! Services and their endpoints, reached from this machine as from a node.

use std::sync::LazyLock;

use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program.push("fetch-http");
    program.push("echo-http");
    program
});

/// Pods that say hello with their own name.
fn web(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n      - name: main\n        image: $REGISTRY/default/hello:1\n        \
         env: [{{name: TARGET, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]\n        \
         ports: [{{name: http, containerPort: 8080}}]\n"
    )
}

fn started(place: &Place, name: &str, replicas: u32) {
    place.apply(&web(name, replicas));
    place.sh(&format!("kubectl rollout status deploy/{name} --timeout=60s"));
}

/// Distinct answers of so many requests.
fn answers(address: &str, requests: u32) -> String {
    format!("for i in $(seq {requests}); do curl -sS --max-time 5 http://{address}/; done | sort -u")
}

fn endpoints(name: &str) -> String {
    format!(
        "kubectl get endpoints {name} -o json | jq -r '[.subsets[]?.addresses[]?.ip] | sort | join(\" \")'"
    )
}

#[test]
fn an_exposed_deployment_is_reached_and_shares_its_load() {
    let place = Place::new(&CLUSTER, "exposed");
    started(&place, "httpenv", 3);
    place.sh("kubectl expose deploy/httpenv --port 8888 --target-port http");
    let columns = place.sh("kubectl get svc httpenv | xargs");
    assert!(
        columns.starts_with("NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE httpenv ClusterIP 127.43."),
        "{columns}"
    );
    let ip = place.sh("kubectl get svc httpenv -o go-template --template '{{ .spec.clusterIP }}'");
    let names = place.until_that(&answers(&format!("{ip}:8888"), 9), |text| text.lines().count() == 3);
    assert!(names.lines().all(|l| l.starts_with("hello httpenv-")), "{names}");

    // The endpoints are the ready pods, by address, with the pods' port.
    let pods =
        "kubectl get pods -l app=httpenv -o json | jq -r '[.items[].status.podIP] | sort | join(\" \")'";
    assert_eq!(place.sh(&endpoints("httpenv")), place.sh(pods));
    assert_eq!(place.value("endpoints/httpenv", "{.subsets[0].ports[0].port}"), "8080");
    let shown = place.sh("kubectl describe service httpenv");
    for line in [
        "Selector:",
        "app=httpenv",
        "Type:",
        "ClusterIP",
        "IP:",
        "Port:",
        "8888/TCP",
        "TargetPort:",
        "http/TCP",
        "Endpoints:",
    ] {
        assert!(shown.contains(line), "{line} in {shown}");
    }
    let unknown = place.fails("kubectl get endpoint");
    assert_eq!(unknown.trim(), "error: the server doesn't have a resource type \"endpoint\"");

    // They follow the pods as these come and go; the table shows the first few.
    place.sh("kubectl scale deploy/httpenv --replicas=5");
    place.until(&format!("{} | wc -w", endpoints("httpenv")), "5");
    assert!(place.sh("kubectl get endpoints httpenv").contains("+ 2 more..."));
    assert_eq!(
        place.sh("kubectl describe endpoints httpenv | grep ' Addresses:' | tr ',' '\\n' | wc -l"),
        "5"
    );
    place.sh("kubectl scale deploy/httpenv --replicas=1");
    place.until(&format!("{} | wc -w", endpoints("httpenv")), "1");
    place.until(&format!("{} | wc -l", answers(&format!("{ip}:8888"), 4)), "1");
}

#[test]
fn an_address_is_kept_for_life() {
    let place = Place::new(&CLUSTER, "kept");
    place.sh("kubectl create service clusterip redis --tcp=6379");
    let ip = place.value("svc/redis", "{.spec.clusterIP}");
    let refused = place.fails("kubectl patch svc redis -p '{\"spec\": {\"clusterIP\": \"127.43.9.9\"}}'");
    assert!(refused.contains("spec.clusterIPs") && refused.contains("Invalid value"), "{refused}");
    place.sh("kubectl patch svc redis -p '{\"spec\": {\"ports\": [{\"port\": 6379, \"targetPort\": 1}]}}'");
    assert_eq!(place.value("svc/redis", "{.spec.clusterIP}"), ip);
    assert_eq!(place.value("svc/redis", "{.spec.type}"), "ClusterIP");

    let other = Place::new(&CLUSTER, "kept-too");
    other.sh("kubectl create service clusterip redis --tcp=6379");
    assert_ne!(other.value("svc/redis", "{.spec.clusterIP}"), ip);

    let without = "apiVersion: v1\nkind: Service\nmetadata: {name: none}\nspec: {selector: {app: x}}\n";
    assert!(place.refuses(without).contains("spec.ports: Required value"));
}

#[test]
fn node_ports_are_given_chosen_and_refused() {
    let place = Place::new(&CLUSTER, "node-ports");
    started(&place, "web", 2);
    place.sh("kubectl expose deploy/web --type=NodePort --port=80 --target-port=8080");
    let port: u16 = place.value("svc/web", "{.spec.ports[0].nodePort}").parse().unwrap();
    assert!((30000..=32767).contains(&port), "{port}");
    assert!(place.sh("kubectl get svc web").contains(&format!("80:{port}/TCP")));
    assert!(place.sh("kubectl describe svc/web").contains(&format!("{port}/TCP")));
    let names = place.until_that(&answers(&format!("127.0.0.1:{port}"), 6), |text| text.lines().count() == 2);
    assert!(names.contains("hello web-"), "{names}");
    // A proxy outside the cluster needs no more than that, and the address of the service answers as well.
    let ip = place.value("svc/web", "{.spec.clusterIP}");
    place.sh(&format!("curl -sS --max-time 5 http://{ip}/"));

    place.sh("kubectl create service nodeport chosen --tcp=80:8080 --node-port=31234");
    assert_eq!(place.value("svc/chosen", "{.spec.ports[0].nodePort}"), "31234");
    let taken = place.fails("kubectl create service nodeport again --tcp=80:8080 --node-port=31234");
    assert!(taken.contains("provided port is already allocated"), "{taken}");
    let outside = place.fails("kubectl create service nodeport outside --tcp=80:8080 --node-port=80");
    assert!(outside.contains("The range of valid ports is 30000-32767"), "{outside}");
}

#[test]
fn an_external_address_leads_to_the_pods() {
    let place = Place::new(&CLUSTER, "external");
    started(&place, "web", 2);
    // Its own in each run, so that runs side by side do not meet.
    let range: u8 =
        CLUSTER.service_prefix().split('.').nth(2).and_then(|n| n.parse().ok()).expect("a number");
    for (n, client) in [(1, "kubectl"), (2, "wasmk")] {
        let address = format!("127.99.{range}.{n}");
        place.sh(&format!("{client} expose deploy/web --name by-{client} --port=8100 --target-port=8080 --external-ip={address}"));
        let service = format!("svc/by-{client}");
        assert_eq!(place.value(&service, "{.spec.externalIPs}"), format!("[\"{address}\"]"));
        assert_eq!(place.sh(&format!("kubectl get {service} --no-headers | awk '{{print $4}}'")), address);
        place.until_that(&answers(&format!("{address}:8100"), 6), |text| text.lines().count() == 2);
    }
}

#[test]
fn several_ports_are_told_apart_by_name() {
    let place = Place::new(&CLUSTER, "ports");
    started(&place, "web", 1);
    place.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: many}\nspec:\n  selector: {app: web}\n  ports:\n  \
         - {name: one, port: 15020, targetPort: 8080}\n  - {name: two, port: 8443, targetPort: http}\n  \
         - {name: dns, port: 53, protocol: UDP}\n  - {name: dns-tcp, port: 53, protocol: TCP}\n",
    );
    assert!(place.sh("kubectl get svc many").contains("15020/TCP,8443/TCP,53/UDP,53/TCP"));
    let ip = place.value("svc/many", "{.spec.clusterIP}");
    for port in [15020, 8443] {
        place.until_that(&format!("curl -sS --max-time 5 http://{ip}:{port}/"), |t| {
            t.starts_with("hello web-")
        });
    }
    let named =
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 1}, {port: 2}]}\n";
    assert!(place.refuses(named).contains("spec.ports[0].name: Required value"));
}

#[test]
fn a_service_without_a_selector_goes_where_its_endpoints_say() {
    let place = Place::new(&CLUSTER, "by-hand");
    place.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: numbers-api}\nspec: {ports: [{port: 80}]}\n---\n\
         apiVersion: v1\nkind: Endpoints\nmetadata: {name: numbers-api}\nsubsets: [{addresses: [{ip: 192.168.123.234}], ports: [{port: 80}]}]\n",
    );
    assert!(place.sh("kubectl get endpoints numbers-api").contains("192.168.123.234:80"));

    // To where they say, be it a pod or not.
    place.sh("kubectl run web --image $REGISTRY/default/hello:1 --port 8080");
    place.sh("kubectl wait --for=condition=Ready pod/web --timeout=60s");
    let pod = place.value("pod/web", "{.status.podIP}");
    place.apply(&format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: numbers-api}}\nsubsets: [{{addresses: [{{ip: {pod}}}], ports: [{{port: 8080}}]}}]\n"
    ));
    let ip = place.value("svc/numbers-api", "{.spec.clusterIP}");
    place.until(&format!("curl -sS --max-time 5 http://{ip}/"), "hello world");
}

#[test]
fn headless_and_external_services_have_no_address() {
    let place = Place::new(&CLUSTER, "headless");
    started(&place, "web", 2);
    place.sh("kubectl expose deploy/web --port 8080 --cluster-ip=None");
    assert_eq!(place.value("svc/web", "{.spec.clusterIP}"), "None");
    place.until(&format!("{} | wc -w", endpoints("web")), "2");
    place.sh("kubectl create service externalname numbers-api --external-name raw.githubusercontent.com");
    let row = place.sh("kubectl get svc numbers-api --no-headers | xargs");
    assert!(row.starts_with("numbers-api ExternalName <none> raw.githubusercontent.com <none>"), "{row}");
    assert_eq!(place.value("svc/numbers-api", "{.spec.clusterIP}"), "");
}

#[test]
fn only_ready_pods_get_requests() {
    let place = Place::new(&CLUSTER, "ready");
    let never = "        readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1}\n";
    place.apply(&(web("slow", 1) + never));
    place.sh("kubectl expose deploy/slow --port 80 --target-port 8080");
    place.until_value("pods", "{.items[0].status.phase}", "Running");
    place.until_that("kubectl get pods --no-headers", |row| row.contains("0/1") && row.contains("Running"));
    assert_eq!(place.sh(&endpoints("slow")), "");
    place.until_value("endpoints/slow", "{.subsets[0].notReadyAddresses[0].targetRef.kind}", "Pod");
    place.sh("kubectl patch deploy slow --type=json -p '[{\"op\": \"remove\", \"path\": \"/spec/template/spec/containers/0/readinessProbe\"}]'");
    place.until(&format!("{} | wc -w", endpoints("slow")), "1");
    // A pod that is to go gets nothing from then on.
    let pod = place.sh("kubectl get pods -o name | head -1");
    place.sh("kubectl scale deploy/slow --replicas=0");
    place.until(&endpoints("slow"), "");
    place.until(&format!("kubectl get {pod} -o name --ignore-not-found"), "");
}

#[test]
fn a_client_stays_with_its_pod_when_that_is_asked_for() {
    let place = Place::new(&CLUSTER, "sticky");
    started(&place, "web", 3);
    place.sh("kubectl expose deploy/web --port 80 --target-port 8080 --session-affinity=ClientIP");
    let ip = place.value("svc/web", "{.spec.clusterIP}");
    place.until(&format!("{} | wc -w", endpoints("web")), "3");
    place.until_that(&answers(&ip, 1), |t| t.starts_with("hello web-"));
    assert_eq!(place.sh(&answers(&ip, 12)).lines().count(), 1);
}

#[test]
fn a_balanced_service_has_an_address_that_answers() {
    let place = Place::new(&CLUSTER, "balanced");
    started(&place, "web", 1);
    place.sh(
        "kubectl expose deploy/web --name numbers-web --type=LoadBalancer --port 8099 --target-port 8080",
    );
    let path = "{.status.loadBalancer.ingress[0].ip}";
    let address =
        place.until_that(&format!("kubectl get svc numbers-web -o jsonpath='{path}'"), |t| !t.is_empty());
    let row = place.sh("kubectl get svc numbers-web --no-headers | xargs");
    assert!(
        row.contains("LoadBalancer 127.43.") && row.contains(&address) && row.contains("8099:3"),
        "{row}"
    );
    assert_eq!(row.split(' ').nth(3), Some(&*address), "the column of external addresses: {row}");
    let node_port = place.value("svc/numbers-web", "{.spec.ports[0].nodePort}");
    for at in [format!("{address}:8099"), format!("127.0.0.1:{node_port}")] {
        place.until_that(&format!("curl -sS --max-time 5 http://{at}/"), |t| t.starts_with("hello web-"));
    }

    // A class of one's own is somebody else's to serve.
    place.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: theirs}\nspec: {type: LoadBalancer, loadBalancerClass: example.com/lb, ports: [{port: 80}]}\n",
    );
    assert!(place.sh("kubectl get svc theirs").contains("<pending>"));
    place.sh(r#"kubectl patch svc theirs --subresource=status -p '{"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}}'"#);
    place.until("kubectl get svc theirs --no-headers | awk '{print $4}'", "192.0.2.7");
}

#[test]
fn the_api_is_a_service_too() {
    let place = Place::new(&CLUSTER, "default");
    let ip = place.value("svc/kubernetes", "{.spec.clusterIP}");
    let row = place.sh("kubectl get svc kubernetes --no-headers | xargs");
    assert!(
        row.starts_with(&format!("kubernetes ClusterIP {ip} <none> 443/TCP")) && ip.ends_with(".1"),
        "{row}"
    );
    let slice = place.sh(
        "kubectl get endpointslice kubernetes -o jsonpath='{.endpoints[0].addresses[0]}:{.ports[0].port}'",
    );
    assert!(place.sh("kubectl get endpoints kubernetes --no-headers").contains(&slice), "{slice}");
    assert_eq!(slice.rsplit(':').next().unwrap(), CLUSTER.address("api").port().to_string());
    place.sh("kubectl get cm kube-root-ca.crt -o json | jq -r '.data[\"ca.crt\"]' > ca.crt");
    for (flags, expected) in [("-k", "403"), ("--cacert ca.crt", "403")] {
        let ask =
            format!("curl -sS {flags} --max-time 5 -o body -w '%{{http_code}}' https://{ip}/ && cat body");
        let said = place.until_that(&ask, |t| t.starts_with(expected));
        assert!(said.contains(r#"User \"system:anonymous\" cannot get path \"/\""#), "{said}");
    }
    let token = place.sh("kubectl create token default");
    let ask = format!(
        "curl -sS --cacert ca.crt --max-time 5 -H 'Authorization: Bearer {token}' https://{ip}/api/v1/namespaces/default/pods"
    );
    assert!(place.sh(&ask).contains("system:serviceaccount:default:default"));
}

#[test]
fn functions_reach_services_by_name() {
    let place = Place::new(&CLUSTER, "names");
    started(&place, "api-backend", 1);
    place.sh("kubectl expose deploy/api-backend --port 8000 --target-port 8080");
    let other = Place::new(&CLUSTER, "names-other");
    let by_address = format!("http://{}:8000/", place.value("svc/api-backend", "{.spec.clusterIP}"));
    for (place, urls) in [
        (
            &place,
            &["http://api-backend:8000/", "http://api-backend.names.svc.cluster.local:8000/", &by_address][..],
        ),
        (&other, &["http://api-backend.names:8000/", &by_address][..]),
    ] {
        place.sh("kubectl run fetcher --image $REGISTRY/default/fetch-http:1 --port 8080");
        place.sh("kubectl wait --for=condition=Ready pod/fetcher --timeout=60s");
        let pod = place.value("pod/fetcher", "{.status.podIP}");
        for url in urls {
            place.until_that(&format!("curl -sS --max-time 5 'http://{pod}:8080/?{url}'"), |t| {
                t.starts_with("hello api-backend-")
            });
        }
    }
    let pod = other.value("pod/fetcher", "{.status.podIP}");
    let said = other.sh(&format!("curl -sS --max-time 5 'http://{pod}:8080/?http://api-backend:8000/'"));
    assert!(!said.contains("hello"), "a short name means the pod's own namespace: {said}");
}

#[test]
fn pods_and_services_are_seen_through_the_api() {
    let place = Place::new(&CLUSTER, "through");
    started(&place, "webui", 1);
    place.sh("kubectl expose deploy/webui --port 80 --target-port 8080");
    place.until_that("kubectl get --raw /api/v1/namespaces/through/services/webui/proxy/index.html", |t| {
        t.starts_with("hello webui-")
    });
    let pod = place.sh("kubectl get pods -o name");
    let pod = pod.strip_prefix("pod/").unwrap();
    for path in [
        format!("pods/{pod}/proxy/"),
        format!("pods/{pod}:8080/proxy/x?y=z"),
        "services/http:webui:80/proxy/".into(),
    ] {
        let said = place.sh(&format!("kubectl get --raw '/api/v1/namespaces/through/{path}'"));
        assert_eq!(said, format!("hello {pod}"));
    }
    let missing = place.fails("kubectl get --raw /api/v1/namespaces/through/services/nothing/proxy/");
    assert!(missing.contains("services \"nothing\" not found"), "{missing}");
}

#[test]
fn ranges_of_addresses_and_ports_are_chosen() {
    let flags = ["--no-node", "--service-node-port-range=31000-31001"];
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&flags)));
    let place = Place::new(program, "ranges");
    assert_eq!(
        place.value("svc/kubernetes -n default", "{.spec.clusterIP}"),
        format!("{}1", program.service_prefix())
    );
    place.sh("for n in a b; do kubectl create service nodeport $n --tcp=80; done");
    let ports = place.sh(
        "kubectl get svc a b -o jsonpath='{.items[*].spec.ports[0].nodePort}' | tr ' ' '\\n' | sort | xargs",
    );
    assert_eq!(ports, "31000 31001");
    place.fails("kubectl create service nodeport c --tcp=80");
    let outside = place.fails("kubectl create service nodeport d --tcp=80 --node-port=30001");
    assert!(outside.contains("The range of valid ports is 31000-31001"), "{outside}");
}

#[test]
fn a_rolling_update_is_not_noticed() {
    let place = Place::new(&CLUSTER, "unnoticed");
    let probe = "        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}\n";
    place.apply(&(web("app", 3) + probe));
    place.sh("kubectl rollout status deploy/app --timeout=60s && kubectl expose deploy/app --port 80 --target-port 8080");
    let ip = place.value("svc/app", "{.spec.clusterIP}");
    place.until_that(&answers(&ip, 1), |t| t.starts_with("hello app-"));
    place.sh(&format!(
        "(while [ ! -e stop ]; do curl -sS --max-time 30 http://{ip}/ >>answers 2>>errors; done) & \
         kubectl set env deploy/app COLOUR=blue && kubectl rollout status deploy/app --timeout=60s; touch stop; wait"
    ));
    let errors = std::fs::read_to_string(place.dir().join("errors")).unwrap();
    let answers = std::fs::read_to_string(place.dir().join("answers")).unwrap();
    assert_eq!(errors, "");
    let pods: std::collections::BTreeSet<_> = answers.lines().collect();
    assert!(pods.len() > 3 && pods.iter().all(|l| l.starts_with("hello app-")), "{pods:?}");
}

#[test]
fn ports_are_forwarded_from_here() {
    let place = Place::new(&CLUSTER, "forwarded");
    started(&place, "web", 1);
    place.sh("kubectl expose deploy/web --port 8888 --target-port http");
    for target in ["svc/web :8888", "deploy/web :http", "$(kubectl get pods -o name) :8080"] {
        // Several connections, one after the other, over one forwarding.
        let answers = place.sh(&format!(
            ": >out; wasmk port-forward {target} >>out & forwarding=$!; trap 'kill $forwarding' EXIT; \
             for i in $(seq 100); do port=$(sed -nE 's/^Forwarding from 127.0.0.1:([0-9]+) -> 8080$/\\1/p' out); \
             [ -n \"$port\" ] && break; sleep 0.1; done; \
             for i in 1 2 3; do curl -sS --max-time 5 http://127.0.0.1:$port/ 2>&1; done; grep -c Handling out"
        ));
        let lines: Vec<&str> = answers.lines().collect();
        assert!(
            matches!(lines[..], [a, b, c, "3"] if a.starts_with("hello web-") && a == b && b == c),
            "{answers}"
        );
    }
    // Many at once, with bytes of every sort.
    place.apply(&web("echo", 1).replace("default/hello:1", "default/echo-http:1"));
    place.sh("kubectl rollout status deploy/echo --timeout=60s && kubectl expose deploy/echo --port 80 --target-port http");
    for client in ["kubectl", "wasmk"] {
        let same = place.sh(&format!(
            "head -c 300000 /dev/urandom >bytes; : >out; {client} port-forward svc/echo :80 >>out & forwarding=$!; trap 'kill $forwarding' EXIT; \
             for i in $(seq 100); do port=$(sed -nE 's/^Forwarding from 127.0.0.1:([0-9]+) -> 8080$/\\1/p' out); \
             [ -n \"$port\" ] && break; sleep 0.1; done; \
             pids=; for i in $(seq 20); do curl -sS --max-time 20 --data-binary @bytes http://127.0.0.1:$port/ >back-$i & pids=\"$pids $!\"; done; \
             wait $pids; for i in $(seq 20); do cmp bytes back-$i && echo same; done | wc -l"
        ));
        assert_eq!(same, "20", "{client}");
    }
    let refused = place.fails("wasmk port-forward svc/web 1");
    assert!(refused.contains("Service web does not have a service port 1"), "{refused}");
}

#[test]
fn usage_is_shown_per_node_and_pod() {
    let place = Place::new(&CLUSTER, "used");
    started(&place, "web", 1);
    place.until("wasmk top pods --no-headers | wc -l", "1");
    let pods = place.sh("wasmk top pods --containers");
    let lines: Vec<Vec<&str>> = pods.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"]);
    assert!(lines[1][0].starts_with("web-") && lines[1][1] == "main", "{pods}");
    assert!(lines[1][2].ends_with('m') && lines[1][3].ends_with("Mi"), "{pods}");
    // In kubectl's form, with its figures at about the same time.
    let shape = |text: String| -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().next().unwrap_or("").into()).collect()
    };
    assert_eq!(shape(place.sh("wasmk top nodes")), shape(place.sh("kubectl top nodes")));
    let header = place.sh("wasmk top node | head -1 | xargs");
    assert_eq!(header, "NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)");
}
