//! How the API treats objects, by kubectl and by plain requests.

use std::sync::LazyLock;

use wasmk_tests::{
    place::{Place, Running},
    program::Program,
};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("command");
    program
});

#[test]
fn every_object_has_its_path_and_the_api_lists_them() {
    let place = Place::new(&CLUSTER, "paths");
    place.sh("kubectl create cm mine");
    let pod = place.sh(
        "kubectl get --raw /api/v1/namespaces/paths/configmaps/mine | jq -r '.kind + \" \" + .metadata.name'",
    );
    assert_eq!(pod, "ConfigMap mine");
    let paths = place.sh("kubectl get --raw / | jq -r '.paths[]'");
    for path in
        ["/api", "/api/v1", "/apis", "/apis/apps/v1", "/healthz", "/metrics", "/openapi/v2", "/version"]
    {
        assert!(paths.lines().any(|l| l == path), "{path} in {paths}");
    }
    assert_eq!(place.sh("kubectl get --raw /healthz"), "ok");
    assert!(
        place
            .sh("kubectl get --raw /metrics")
            .contains("apiserver_request_total{verb=\"CREATE\",resource=\"configmaps\",code=\"201\"}")
    );
    assert_eq!(place.sh("kubectl get --raw /apis | jq -r '.groups[] | select(.name == \"autoscaling\") | .versions[].version' | xargs"), "v2 v1");
    // What was written in one version is read in another.
    place.sh(
        "kubectl create deployment web --image none && kubectl autoscale deploy web --max=3 --cpu-percent=70",
    );
    for (version, path) in [
        ("v1", ".spec.targetCPUUtilizationPercentage"),
        ("v2", ".spec.metrics[0].resource.target.averageUtilization"),
    ] {
        let raw = format!(
            "kubectl get --raw /apis/autoscaling/{version}/namespaces/paths/horizontalpodautoscalers/web | jq '{path}'"
        );
        assert_eq!(place.sh(&raw), "70", "{version}");
    }
}

#[test]
fn every_kind_is_served_by_all_its_names() {
    let place = Place::new(&CLUSTER, "kinds");
    let names = "csr cm ds deploy ep ev hpa ing limits ns no pvc pv po pdb rs rc quota sa svc sts cj job sc crd netpol \
                 roles rolebindings clusterroles clusterrolebindings secrets volumeattachments endpointslices leases \
                 priorityclasses runtimeclasses ingressclasses csidrivers csinodes podtemplates controllerrevisions \
                 mutatingwebhookconfigurations validatingwebhookconfigurations apiservices";
    let failed = place.sh(&format!(
        "for name in {names}; do kubectl get $name >/dev/null 2>said || echo $name: $(cat said); done"
    ));
    assert_eq!(failed, "");
    for (script, scoped) in [
        (
            "--namespaced=false",
            "nodes namespaces persistentvolumes clusterroles certificatesigningrequests storageclasses",
        ),
        ("--namespaced=true", "pods services roles"),
    ] {
        let listed = place.sh(&format!("kubectl api-resources {script} -o name"));
        for name in scoped.split(' ') {
            assert!(listed.lines().any(|l| l.split('.').next() == Some(name)), "{name} in {listed}");
        }
    }
    assert_eq!(place.sh("kubectl get ns default kube-system kube-public kube-node-lease --no-headers | awk '{print $2}' | sort -u"), "Active");
    assert_eq!(place.sh("kubectl get svc -o yaml | tail -3 | head -1"), "kind: List");
    assert_eq!(
        place.sh(
            "kubectl get --raw /api/v1/namespaces/kinds/services | jq -r '.kind + \" \" + (.items | type)'"
        ),
        "ServiceList array"
    );
}

#[test]
fn the_system_fills_in_what_is_its_own() {
    let place = Place::new(&CLUSTER, "filled");
    place.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {schedulerName: nobody, containers: [{name: c, image: x}]}\nstatus: {phase: Failed}\n");
    let facts = place.sh("kubectl get pod a -o json | jq -c '[.status.phase, .spec.restartPolicy, .spec.containers[0].imagePullPolicy, .spec.serviceAccountName, .spec.terminationGracePeriodSeconds, (.metadata.uid | length)]'");
    assert_eq!(facts, r#"["Pending","Always","Always","default",30,36]"#);
    let revision = "kubectl get pod a -o jsonpath='{.metadata.resourceVersion}'";
    let before = place.sh(revision);
    place.sh("kubectl annotate pod a note=free-form");
    assert_ne!(place.sh(revision), before);
    assert!(place.sh("kubectl describe pod a").contains("note: free-form"));
    assert!(place.value("pod/a", "{.metadata.creationTimestamp}").ends_with('Z'));
    // A change of status by way of the object is no change; by way of its own path it is.
    place.sh(
        "kubectl get pod a -o json | jq '.status.phase = \"Running\"' > a.json && kubectl replace -f a.json",
    );
    assert_eq!(place.value("pod/a", "{.status.phase}"), "Pending");
    place.sh("kubectl patch pod a --subresource=status -p '{\"status\": {\"phase\": \"Running\"}}'");
    assert_eq!(place.value("pod/a", "{.status.phase}"), "Running");
    let json = place.sh("kubectl get pod a -o json | jq -S .spec");
    let yaml = place.sh("kubectl get pod a -o yaml > a.yaml && kubectl create --dry-run=client -f a.yaml -o json | jq -S .spec");
    assert_eq!(json, yaml);
}

#[test]
fn what_is_wrong_is_named() {
    let place = Place::new(&CLUSTER, "wrong");
    for (text, expected) in [
        ("kind: ConfigMap\nmetadata: {name: a}\n", "apiVersion not set"),
        ("apiVersion: v1\nmetadata: {name: a}\n", "kind not set"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {labels: {a: b}}\n", "resource name may not be empty"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: -b}}\n",
            "metadata.labels: Invalid value: \"-b\"",
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {'a!b': c}}\n",
            "metadata.labels: Invalid value: \"a!b\"",
        ),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {x: yes}}\n", "bool"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: x, env: [{name: A, value: 80}]}]}\n",
            "env",
        ),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\ndata: {key: '%%%'}\n", "illegal base64 data"),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: Not_Valid}\n", "metadata.name: Invalid value"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: none}\n",
            "namespaces \"none\" not found",
        ),
        (
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: a}\nspec: {rules: [{host: cheddar.A.B.nip.io}]}\n",
            "spec.rules[0].host: Invalid value: \"cheddar.A.B.nip.io\"",
        ),
    ] {
        let said = place.refuses(text);
        assert!(said.contains(expected), "{text}: {said}");
    }
    place.sh("kubectl create cm twice");
    assert_eq!(
        place.fails("kubectl create cm twice").trim(),
        "error: failed to create configmap: configmaps \"twice\" already exists"
    );
    place.sh("kubectl create secret generic twice && kubectl create cm twice -n default");
    place.sh("kubectl delete cm twice -n default");
    let uid = place.fails("kubectl get cm twice -o json | jq '.metadata.uid = \"other\" | del(.metadata.resourceVersion)' > t.json && kubectl replace -f t.json");
    assert!(uid.contains("Conflict") || uid.contains("the UID in the precondition"), "{uid}");
}

#[test]
fn patches_change_what_they_name() {
    let place = Place::new(&CLUSTER, "patches");
    place.sh("kubectl create deployment two --image a --image b");
    place.sh("kubectl patch deploy two -p 'spec: {template: {spec: {containers: [{name: b, image: c}]}}}'");
    assert_eq!(place.value("deploy/two", "{.spec.template.spec.containers[*].image}"), "a c");
    place.sh("kubectl patch deploy two --type=merge -p '{\"spec\": {\"minReadySeconds\": 3}}'");
    place.sh("kubectl patch deploy two --type=json -p '[{\"op\": \"replace\", \"path\": \"/spec/replicas\", \"value\": 0}]'");
    assert_eq!(place.value("deploy/two", "{.spec.minReadySeconds} {.spec.replicas}"), "3 0");
    place.sh("kubectl get --raw /apis/apps/v1/namespaces/patches/deployments/two/scale | jq '.spec.replicas = 2 | del(.metadata.resourceVersion)' > scale.json");
    place.sh("kubectl replace --raw /apis/apps/v1/namespaces/patches/deployments/two/scale -f scale.json");
    assert_eq!(place.value("deploy/two", "{.spec.replicas}"), "2");
    // Edited, and the world follows without another word.
    place.until("kubectl get pods -l app=two -o name | wc -l", "2");
}

#[test]
fn selectors_of_objects_select() {
    let place = Place::new(&CLUSTER, "selectors");
    place.apply(
        "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: alpaca}\nspec:\n  replicas: 1\n  selector:\n    matchLabels: {app: alpaca}\n    \
         matchExpressions: [{key: ver, operator: In, values: ['2', '3']}]\n  template:\n    metadata: {labels: {app: alpaca, ver: '2'}}\n    \
         spec: {schedulerName: nobody, containers: [{name: c, image: x}]}\n",
    );
    place.until("kubectl get pods -o name | wc -l", "1");
    place.sh("kubectl run other --image x --labels app=alpaca,ver=9 --overrides='{\"spec\": {\"schedulerName\": \"nobody\"}}'");
    // By the time that the set has one more of its own, it has left the other alone.
    place.sh("kubectl scale rs/alpaca --replicas=2");
    place.until("kubectl get pods -o name | wc -l", "3");
    assert_eq!(place.value("pod/other", "{.metadata.ownerReferences}"), "");
    place.sh("kubectl scale rs/alpaca --replicas=1");
    place.until("kubectl get pods -o name | wc -l", "2");
    assert_eq!(place.sh("kubectl get pods -l 'ver notin (9)' -o name | wc -l"), "1");
    assert_eq!(place.sh("kubectl get pods -l app=alpaca,ver!=2 -o name"), "pod/other");
    assert_eq!(place.sh("kubectl delete pods -l ver=9"), "pod \"other\" deleted");
}

#[test]
fn collections_go_at_once_and_only_those() {
    let place = Place::new(&CLUSTER, "collections");
    place.sh("for n in 1 2 3; do kubectl create cm m$n; done; kubectl label cm m1 m2 go=yes; kubectl create secret generic stays");
    place.sh("kubectl delete cm -l go=yes");
    assert_eq!(
        place.sh("kubectl get cm,secret -o name | grep -v root-ca | xargs"),
        "configmap/m3 secret/stays"
    );
    place.sh("kubectl delete secret --all");
    assert_eq!(place.sh("kubectl get cm,secret -o name | grep -v root-ca | xargs"), "configmap/m3");
}

#[test]
fn a_deleted_pod_is_seen_to_end() {
    let place = Place::new(&CLUSTER, "ending");
    place.sh("kubectl run slow --image $REGISTRY/default/command:1 --restart=Never -- sleep 600000");
    place.until_value("pod/slow", "{.status.phase}", "Running");
    // A finalizer keeps what would be gone too soon to be looked at.
    place.sh("kubectl patch pod slow -p '{\"metadata\": {\"finalizers\": [\"example.com/look\"]}}'");
    place.sh("kubectl delete pod slow --wait=false --grace-period=1");
    assert!(!place.value("pod/slow", "{.metadata.deletionTimestamp}").is_empty());
    let row = place.sh("kubectl get pod slow --no-headers");
    assert!(row.contains("Terminating") || row.contains("Error") || row.contains("Completed"), "{row}");
    place.sh("kubectl patch pod slow --type=merge -p '{\"metadata\": {\"finalizers\": null}}'");
    place.until("kubectl get pod slow -o name --ignore-not-found", "");
}

#[test]
fn watches_begin_with_what_is_there_and_span_namespaces() {
    let place = Place::new(&CLUSTER, "watching");
    let other = Place::new(&CLUSTER, "watching-too");
    place.sh("kubectl create cm first && kubectl label cm first seen=yes");
    other.sh("kubectl create cm second && kubectl label cm second seen=yes");
    let watch = "kubectl get --raw '/api/v1/configmaps?watch=true&labelSelector=seen' | \
                 jq --unbuffered -r '.type + \" \" + .object.metadata.namespace + \"/\" + .object.metadata.name' > seen";
    let _watch = Running::start(place.command("bash").args(["-c", watch]));
    place.until("sort seen", "ADDED watching-too/second\nADDED watching/first");
    other.sh("kubectl patch cm second -p '{\"data\": {\"a\": \"b\"}}' && kubectl delete cm second");
    place.until("tail -n +3 seen", "MODIFIED watching-too/second\nDELETED watching-too/second");
}

#[test]
fn everybody_may_read_where_the_cluster_is() {
    let place = Place::new(&CLUSTER, "public");
    let ask = |path: &str| place.sh(&format!("curl -sSk -o /dev/null -w '%{{http_code}}' $API{path}"));
    assert_eq!(ask("/api/v1/namespaces/kube-public/configmaps/cluster-info"), "200");
    assert_eq!(ask("/api/v1/namespaces/kube-public/configmaps"), "403");
    assert_eq!(ask("/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt"), "403");
    let config = place
        .sh("curl -sSk $API/api/v1/namespaces/kube-public/configmaps/cluster-info | jq -r .data.kubeconfig");
    assert!(config.contains("certificate-authority-data") && config.contains("server: https://"), "{config}");

    // The server's certificate has every name it is called by.
    let names = place.sh("openssl s_client -connect ${API#https://} </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName");
    let ip = place.sh("kubectl get svc kubernetes -n default -o jsonpath='{.spec.clusterIP}'");
    for name in [
        "DNS:kubernetes,",
        "DNS:kubernetes.default,",
        "DNS:kubernetes.default.svc,",
        "DNS:kubernetes.default.svc.cluster.local",
        &format!("IP Address:{ip}"),
        "IP Address:127.0.0.1",
    ] {
        assert!(names.contains(name), "{name} in {names}");
    }
    // A kubeconfig is all that another machine needs, and a client without the authority refuses the server.
    place.sh("mkdir elsewhere && cp config elsewhere/");
    for client in ["kubectl", "wasmk"] {
        let said = place.sh(&format!(
            "export KUBECONFIG=$PWD/elsewhere/config HOME=$PWD/elsewhere; cd elsewhere; \
             {client} config set-cluster wasmk --server=https://localhost:${{API##*:}} >/dev/null; \
             {client} cluster-info | head -1 | grep -c https://localhost:; \
             {client} run far --image=$REGISTRY/default/command:1 --restart=Never -- print far; \
             {client} wait --for=jsonpath='{{.status.phase}}'=Succeeded pod/far --timeout=60s; \
             {client} logs far --tail=1; {client} delete pod far"
        ));
        assert_eq!(said, "1\npod/far created\npod/far condition met\ndone\npod \"far\" deleted", "{client}");
    }
    assert!(place.fails("curl -sS $API/healthz").contains("certificate"));
}

const COUNTDOWNS: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: countdowns.stable.dwk}
spec:
  group: stable.dwk
  scope: Namespaced
  names: {kind: Countdown, plural: countdowns, singular: countdown, shortNames: [cd]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              length: {type: integer, description: How many steps there are}
              delay: {type: integer}
              image: {type: string}
    additionalPrinterColumns:
    - {name: Length, type: integer, jsonPath: .spec.length}
    - {name: Delay, type: integer, jsonPath: .spec.delay}
";

/// Waits for a definition. kubectl refuses to wait for one that has no conditions yet, so it is asked again.
fn established(place: &Place, name: &str) {
    let wait = format!("kubectl wait --for=condition=Established crd/{name} --timeout=30s");
    place.until_that(&wait, |said| said.contains("condition met"));
}

#[test]
fn a_kind_of_ones_own_is_like_the_others() {
    let place = Place::new(&CLUSTER, "countdowns");
    place.apply(COUNTDOWNS);
    established(&place, "countdowns.stable.dwk");
    let doomsday = "apiVersion: stable.dwk/v1\nkind: Countdown\nmetadata: {name: doomsday}\nspec: {length: 20, delay: 1200, image: x}\n";
    assert_eq!(place.apply(doomsday), "countdown.stable.dwk/doomsday created");
    assert_eq!(place.sh("kubectl get cd | xargs"), "NAME LENGTH DELAY doomsday 20 1200");
    for name in ["cd", "countdown", "countdowns", "countdowns.stable.dwk"] {
        assert_eq!(place.sh(&format!("kubectl get {name} -o name")), "countdown.stable.dwk/doomsday");
    }
    assert!(
        place
            .refuses(&doomsday.replace("20", "abc"))
            .contains("spec.length: Invalid value: \"string\": spec.length in body must be of type integer")
    );
    assert!(place.refuses(&doomsday.replace("image", "imgae")).contains("unknown field \"spec.imgae\""));
    place.until_that("kubectl explain cd.spec.length", |text| text.contains("How many steps there are"));
    let path = "/apis/stable.dwk/v1/namespaces/countdowns/countdowns";
    let watch = format!(
        "kubectl get --raw '{path}?watch=true' | jq --unbuffered -r '.type + \" \" + (.object.spec.length | tostring)' > seen"
    );
    let _watch = Running::start(place.command("bash").args(["-c", &watch]));
    place.until("cat seen", "ADDED 20");
    place.sh("kubectl patch cd doomsday --type=merge -p '{\"spec\": {\"length\": 3}}'");
    assert_eq!(place.sh(&format!("kubectl get --raw {path}/doomsday | jq .spec.length")), "3");
    place.sh(&format!("kubectl get --raw {path}/doomsday | jq '.spec.length = 2' > d.json && kubectl replace --raw {path}/doomsday -f d.json"));
    assert_eq!(place.value("cd/doomsday", "{.spec.length}"), "2");

    // Rights of its own, by group and name.
    place.sh("kubectl create role counter --verb=get,list --resource=countdowns.stable.dwk && kubectl create rolebinding counter --role=counter --user=jane");
    assert_eq!(
        place.sh("kubectl auth can-i list cd --as jane; kubectl auth can-i delete cd --as jane || true"),
        "yes\nno"
    );
    place.sh(&format!("kubectl delete --raw {path}/doomsday"));
    place.until("cat seen", "ADDED 20\nMODIFIED 3\nMODIFIED 2\nDELETED 2");
    let missing = place.fails(&format!("kubectl get --raw {}", path.replace("v1/", "v2/")));
    assert!(missing.contains("the server could not find the requested resource"), "{missing}");

    let misnamed = COUNTDOWNS.replace("countdowns.stable.dwk}", "countdown.stable.dwk}");
    assert!(place.refuses(&misnamed).contains("must be spec.names.plural+\".\"+spec.group"));
    let unstored = COUNTDOWNS
        .replace("storage: true", "storage: false")
        .replace("countdowns", "others")
        .replace("Countdown", "Other");
    assert!(place.refuses(&unstored).contains("must have exactly one version marked as storage version"));
}

#[test]
fn a_kind_may_be_the_whole_clusters() {
    let place = Place::new(&CLUSTER, "whole");
    let text = COUNTDOWNS
        .replace("Namespaced", "Cluster")
        .replace("countdown", "epoch")
        .replace("Countdown", "Epoch")
        .replace("[cd]", "[eo]");
    place.apply(&text);
    established(&place, "epochs.stable.dwk");
    place.apply("apiVersion: stable.dwk/v1\nkind: Epoch\nmetadata: {name: first}\nspec: {length: 1}\n");
    assert_eq!(place.sh("kubectl get --raw /apis/stable.dwk/v1/epochs/first | jq -c '[.metadata.name, .metadata.namespace]'"), r#"["first",null]"#);
    place.fails("kubectl get --raw /apis/stable.dwk/v1/namespaces/whole/epochs/first");
}

#[test]
fn a_namespace_forbids_privileged_pods() {
    let place = Place::new(&CLUSTER, "guarded");
    place.sh("kubectl label ns guarded pod-security.kubernetes.io/enforce=baseline");
    let pod = |more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{schedulerName: nobody, containers: [{{name: c, image: x{more}}}]}}\n"
        )
    };
    let said = place.refuses(&pod(", securityContext: {privileged: true}"));
    assert!(said.contains("violates PodSecurity \"baseline:latest\": privileged"), "{said}");
    place.apply(&pod(""));
    assert!(place.fails("kubectl get psp").contains("the server doesn't have a resource type \"psp\""));
}

#[test]
fn removed_versions_name_the_one_to_use() {
    let place = Place::new(&CLUSTER, "legacy");
    for (version, kind, now) in [
        ("extensions/v1beta1", "Deployment", "apps/v1"),
        ("extensions/v1beta1", "DaemonSet", "apps/v1"),
        ("extensions/v1beta1", "ReplicaSet", "apps/v1"),
        ("extensions/v1beta1", "Ingress", "networking.k8s.io/v1"),
        ("apps/v1beta2", "StatefulSet", "apps/v1"),
        ("batch/v1beta1", "CronJob", "batch/v1"),
        ("policy/v1beta1", "PodDisruptionBudget", "policy/v1"),
        ("rbac.authorization.k8s.io/v1alpha1", "ClusterRole", "rbac.authorization.k8s.io/v1"),
        ("rbac.authorization.k8s.io/v1beta1", "RoleBinding", "rbac.authorization.k8s.io/v1"),
        ("storage.k8s.io/v1beta1", "StorageClass", "storage.k8s.io/v1"),
    ] {
        let manifest = format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: old}}}}");
        let out = place.output(&format!("echo '{manifest}' | wasmk apply -f -"));
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            !out.status.success() && said.contains(&format!("use apiVersion {now}\n")),
            "{version} {kind}: {said}"
        );
        // Who asks the API itself is told so, too.
        let raw = place.output(&format!("kubectl get --raw /apis/{version}/namespaces/legacy/any"));
        let said = String::from_utf8_lossy(&raw.stderr).into_owned();
        let group = now.split('/').next().unwrap_or("");
        assert!(said.contains("no longer served; use") && said.contains(group), "{version}: {said}");
    }
}

#[test]
fn the_control_plane_says_how_it_is() {
    let place = Place::new(&CLUSTER, "parts");
    let healthy =
        |_: &Program| place.sh("kubectl get cs --no-headers 2>/dev/null | awk '{print $1, $2}' | sort");
    let all = "controller-manager Healthy\netcd-0 Healthy\nscheduler Healthy";
    CLUSTER.until("health", healthy, |said| said == all);
}

/// Every line is what kubectl does, by curl with the same certificate.
#[test]
fn whatever_kubectl_does_can_be_asked_of_the_api() {
    let place = Place::new(&CLUSTER, "plain");
    place.sh(
        "for part in certificate-authority:clusters[0].cluster client-certificate:users[0].user client-key:users[0].user; do
           name=${part%%:*}; where=${part#*:}
           kubectl config view --raw --minify -o jsonpath={.$where.$name-data} | base64 -d > $name.pem
         done",
    );
    let ask = |method: &str, path: &str, kind: &str, body: &str| {
        let text = place.sh(&format!(
            "curl -sS --cacert certificate-authority.pem --cert client-certificate.pem --key client-key.pem \
             -X {method} -H 'Content-Type: application/{kind}' \"$API{path}\" {}",
            if body.is_empty() { String::new() } else { format!("-d '{body}'") }
        ));
        // Of a watch, the first event.
        let mut answers = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        answers.next().and_then(Result::ok).unwrap_or_else(|| panic!("{method} {path}: {text}"))
    };
    let sets = "/apis/apps/v1/namespaces/plain/deployments";
    let web = r#"{"metadata":{"name":"web","labels":{"app":"web"}},"spec":{"replicas":0,"selector":{"matchLabels":{"app":"web"}},
        "template":{"metadata":{"labels":{"app":"web"}},"spec":{"containers":[{"name":"main","image":"none"}]}}}}"#;
    assert_eq!(ask("POST", sets, "json", web)["metadata"]["name"], "web");
    let one = format!("{sets}/web");
    assert_eq!(ask("GET", &one, "json", "")["kind"], "Deployment");
    assert_eq!(
        ask("GET", &format!("{sets}?labelSelector=app%3Dweb"), "json", "")["items"][0]["metadata"]["name"],
        "web"
    );
    let scaled = ask("PATCH", &format!("{one}/scale"), "merge-patch+json", r#"{"spec":{"replicas":2}}"#);
    assert_eq!(scaled["spec"]["replicas"], 2);
    let image = r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","image":"other"}]}}}}"#;
    let patched = ask("PATCH", &one, "strategic-merge-patch+json", image);
    assert_eq!(patched["spec"]["template"]["spec"]["containers"][0]["image"], "other");
    let labels = r#"[{"op":"add","path":"/metadata/labels/tier","value":"front"}]"#;
    assert_eq!(ask("PATCH", &one, "json-patch+json", labels)["metadata"]["labels"]["tier"], "front");
    let applied = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"v"}}"#;
    let map = "/api/v1/namespaces/plain/configmaps/a?fieldManager=curl";
    assert_eq!(ask("PATCH", map, "apply-patch+yaml", applied)["data"]["k"], "v");
    let review = r#"{"spec":{"resourceAttributes":{"namespace":"plain","verb":"list","resource":"pods"}}}"#;
    let may = ask("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "json", review);
    assert_eq!(may["status"]["allowed"], true);
    let token = ask("POST", "/api/v1/namespaces/plain/serviceaccounts/default/token", "json", "{}");
    assert!(token["status"]["token"].is_string(), "{token}");
    let seen = ask(
        "GET",
        &format!("{sets}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Dweb"),
        "json",
        "",
    );
    assert_eq!((&seen["type"], &seen["object"]["metadata"]["name"]), (&"ADDED".into(), &"web".into()));
    assert_eq!(ask("DELETE", &one, "json", r#"{"propagationPolicy":"Background"}"#)["status"], "Success");
    assert_eq!(ask("GET", &one, "json", "")["code"], 404);
}

#[test]
fn a_quota_limits_what_pods_ask_for_and_how_many_objects_there_are() {
    let place = Place::new(&CLUSTER, "quota");
    let known = |quota: &str| {
        place.until_value(
            &format!("quota/{quota}"),
            "{.status.hard}",
            &place.value(&format!("quota/{quota}"), "{.spec.hard}"),
        );
    };
    place.sh(
        "kubectl create quota asked --hard=requests.cpu=1,requests.memory=1Gi,limits.cpu=2,limits.memory=2Gi",
    );
    known("asked");
    let pod = |name: &str, resources: [&str; 4]| {
        let [cpu, memory, most_cpu, most_memory] = resources;
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{schedulerName: nobody, containers: [{{name: c, image: x, \
             resources: {{requests: {{cpu: {cpu}, memory: {memory}}}, limits: {{cpu: {most_cpu}, memory: {most_memory}}}}}}}]}}\n"
        );
        place.write("pod.yaml", &text);
        let out = place.output("kubectl create -f pod.yaml");
        String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
    };
    assert_eq!(pod("first", ["500m", "512Mi", "1", "1Gi"]), "pod/first created\n");
    for (name, resources, over) in [
        (
            "cpu",
            ["600m", "1Mi", "1", "1Mi"],
            "requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1",
        ),
        (
            "memory",
            ["1m", "600Mi", "1m", "600Mi"],
            "requested: requests.memory=600Mi, used: requests.memory=512Mi, limited: requests.memory=1Gi",
        ),
        (
            "most-cpu",
            ["1m", "1Mi", "1500m", "1Mi"],
            "requested: limits.cpu=1500m, used: limits.cpu=1, limited: limits.cpu=2",
        ),
        (
            "most-memory",
            ["1m", "1Mi", "1m", "1500Mi"],
            "requested: limits.memory=1500Mi, used: limits.memory=1Gi, limited: limits.memory=2Gi",
        ),
    ] {
        let said = pod(name, resources);
        assert!(said.contains(&format!("exceeded quota: asked, {over}")), "{name}: {said}");
    }
    assert!(place.fails("kubectl run none --image x").contains("must specify limits.cpu"));

    place.sh("kubectl create quota counted --hard=services=1,secrets=1,replicationcontrollers=1");
    known("counted");
    let controller = "printf 'apiVersion: v1\nkind: ReplicationController\nmetadata: {generateName: c-}\nspec: {replicas: 0, selector: {a: b}, \
                      template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: x}]}}}\n' | kubectl create -f -";
    for (kind, create) in [
        ("services", "kubectl create service clusterip s-$(date +%N) --tcp=80"),
        ("secrets", "kubectl create secret generic s-$(date +%N)"),
        ("replicationcontrollers", controller),
    ] {
        place.sh(create);
        let said = place.fails(create);
        let over = format!("exceeded quota: counted, requested: {kind}=1, used: {kind}=1, limited: {kind}=1");
        assert!(said.contains(&over), "{kind}: {said}");
    }
}

#[test]
fn a_quota_limits_storage() {
    let place = Place::new(&CLUSTER, "storage-quota");
    place.sh("kubectl create quota disks --hard=requests.storage=5Gi,persistentvolumeclaims=2");
    let claim = |name: &str, size: &str| {
        let text = format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  storageClassName: none\n  \
             accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: {size}}}}}\n"
        );
        place.write("claim.yaml", &text);
        let out = place.output("kubectl create -f claim.yaml");
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let known = |_: &Program| place.sh("kubectl get quota disks -o jsonpath={.status.hard}");
    CLUSTER.until("the quota's status", known, |said| said.contains("5Gi"));
    assert!(claim("one", "3Gi").0);
    let (made, said) = claim("large", "3Gi");
    assert!(!made && said.contains("exceeded quota: disks, requested: requests.storage=3Gi, used: requests.storage=3Gi, limited: requests.storage=5Gi"), "{said}");
    assert!(claim("two", "1Gi").0);
    let (made, said) = claim("three", "1Gi");
    assert!(
        !made
            && said.contains(
                "persistentvolumeclaims=1, used: persistentvolumeclaims=2, limited: persistentvolumeclaims=2"
            ),
        "{said}"
    );
}
