//! What the documentation promises to have.

use std::collections::BTreeMap;

use wasmk_tests::program::{Program, repository};

/// What may be said of another system.
const ANSWERS: [&str; 4] = ["built in", "works with", "replaced", "not there"];

/// Systems that users know from elsewhere.
const KNOWN: &str = "AKS, Alertmanager, Ambassador, Anthos, Apache, Brigade, Calico, Ceph, Cinder, CNI, CNI-Genie, CNM, Consul, \
    containerd, CoreDNS, CRI-O, CSI, Docker Compose, Docker Desktop, Docker Engine, Docker Swarm, EKS, Elasticsearch, Envoy, etcd, \
    Fission, Flannel, Fluentd, frakti, GKE, GlusterFS, Google Cloud Run, HAProxy, Heapster, Helm 3, Hipache, IBM Cloud, iSCSI, \
    Istio, Jaeger, k3d, k3s, Keystone, Kibana, kind, Knative Serving, kops, kube-aws, kube-proxy, kube-router, kubeadm, Kubeless, \
    Kubernetes Dashboard, kubespawn, Kubespray, kubectx, kubicorn, Linkerd, lxd, Mesos, Minikube, Multus, NFS, NGINX, nip.io, \
    Nomad, Notary, Open vSwitch, OpenFaaS, OpenShift, OpenTracing, OpenWhisk, Portworx, Prometheus, Rancher, rkt, Rook, \
    Service catalog, Spinnaker, Stackdriver, stern, StorageOS, Stork, Tarmak, Tectonic, Tiller, Traefik, TUF, Typhoon, Vault, \
    Vertical Pod Autoscaler, Vitess, Weave Net, Zookeeper";

/// Each system of the table, with the answer and how.
fn table(text: &str) -> BTreeMap<String, (String, String)> {
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| System ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [systems, answer, how] = cells[..] else { panic!("not three cells: {line}") };
        assert!(ANSWERS.contains(&answer) && !how.is_empty(), "{line}");
        for system in systems.split(", ") {
            let before =
                all.insert(system.trim_end_matches(" as ingress").into(), (answer.into(), how.into()));
            assert!(before.is_none(), "{system} is there twice");
        }
    }
    all
}

#[test]
fn every_system_that_users_know_has_an_answer() {
    let read = |name: &str| std::fs::read_to_string(repository().join(name)).expect("a document");
    assert!(read("README.md").contains("(docs/ecosystem.md)"), "the README leads there");
    let table = table(&read("docs/ecosystem.md"));
    let missing: Vec<&str> = KNOWN.split(", ").filter(|name| !table.contains_key(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for (system, answer, how) in [
        ("CNM", "not there", "CNI only"),
        ("rkt", "not there", "any runtime with a CRI socket"),
        ("Docker Engine", "replaced", "containerd"),
        ("Heapster", "replaced", "metrics.k8s.io"),
        ("Keystone", "works with", "--authentication-token-webhook-config-file"),
        ("Docker Compose", "not there", "kubectl scale"),
        ("Service catalog", "works with", "APIService"),
        ("CoreDNS", "built in", "kube-dns"),
        ("Kubespray", "works with", "wasmk agent --server URL --token TOKEN"),
        ("Nomad", "not there", "only CNI networks and OCI images"),
    ] {
        let (said, why) = &table[system];
        assert!(said == answer && why.contains(how), "{system}: {said}, {why}");
    }
}

#[test]
fn older_behaviour_is_offered_or_listed() {
    let read = |name: &str| std::fs::read_to_string(repository().join(name)).expect("a document");
    assert!(read("README.md").contains("(docs/older-versions.md)"), "the README leads there");
    let text = read("docs/older-versions.md");
    let program = Program::start_with(&["--no-node"]);
    // Each version that is called removed is, and the answer says what the document says.
    let rows: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | "))
        .filter(|(version, _)| version.split_once('/').is_some_and(|(_, v)| v.starts_with('v')))
        .collect();
    assert!(rows.len() > 20, "{rows:?}");
    for (version, now) in rows {
        let said = program.kubectl_refused(&["get", "--raw", &format!("/apis/{version}/any")], None);
        assert!(said.contains(&format!("{version} is no longer served; use {now})")), "{version}: {said}");
    }
    // What wasmk is said to take, it takes.
    let run = |line: &str| program.wasmk(&line.split(' ').collect::<Vec<_>>());
    for (line, made) in [
        ("run a --image=i --replicas=2 --dry-run -o name", "deployment.apps/a"),
        ("run a --image=i --generator=deployment/apps.v1 --dry-run -o name", "deployment.apps/a"),
        ("run a --image=i --dry-run -o name", "pod/a"),
        ("run a --image=i --restart=OnFailure --dry-run -o name", "job.batch/a"),
        ("run a --image=i --schedule=@daily --dry-run -o name", "cronjob.batch/a"),
        ("run a --image=i --port=80 --hostport=8001 --serviceaccount=b --dry-run=client -o name", "pod/a"),
        ("get namespace default -a --export -o name", "namespace/default"),
    ] {
        assert_eq!(run(line).trim(), made, "{line}");
    }
    assert!(program.kubectl(&["get", "componentstatuses", "-o", "name"]).contains("componentstatus"));
    assert_eq!(program.value("namespace/default", "{.metadata.selfLink}"), "");
}
