//! The same command lines given to kubectl and to wasmk, with the same outcome.

use std::sync::LazyLock;

use wasmk_tests::{
    place::{Place, Running},
    program::Program,
};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program.push("command");
    program.push("command-module");
    program
});

/// Two namespaces: one for kubectl, one for wasmk.
struct Pair {
    kubectl: Place,
    wasmk: Place,
}

impl Pair {
    fn new(name: &str) -> Self {
        let place = |client: &str| Place::new(&CLUSTER, &format!("{name}-{client}"));
        Self { kubectl: place("kubectl"), wasmk: place("wasmk") }
    }

    /// Runs the script for its effect, once with each client as `k`.
    fn run(&self, script: &str) {
        for (place, client) in [(&self.kubectl, "kubectl"), (&self.wasmk, "wasmk")] {
            place.sh(&with(client, script));
        }
    }

    /// Runs the script with each client as `k`; both must print the expected.
    fn check(&self, script: &str, expected: &str) {
        for (place, client) in [(&self.kubectl, "kubectl"), (&self.wasmk, "wasmk")] {
            assert_eq!(place.sh(&with(client, script)), expected, "{client}: {script}");
        }
    }

    /// Runs the script with each client as `k`; both must fail and say that.
    fn refused(&self, script: &str, expected: &str) {
        for (place, client) in [(&self.kubectl, "kubectl"), (&self.wasmk, "wasmk")] {
            let said = place.fails(&with(client, script));
            assert!(said.contains(expected), "{client}: {script}\n{said}");
        }
    }

    /// Runs the script with each client as `k`; both must print the same, which is returned.
    fn same(&self, script: &str) -> String {
        let [kubectl, wasmk] = [(&self.kubectl, "kubectl"), (&self.wasmk, "wasmk")]
            .map(|(place, client)| place.sh(&with(client, script)).replace(&format!("-{client}"), ""));
        assert_eq!(kubectl, wasmk, "{script}");
        kubectl
    }
}

fn with(client: &str, script: &str) -> String {
    format!("k() {{ {client} \"$@\"; }}; {script}")
}

#[test]
fn objects_are_made_from_flags() {
    let pair = Pair::new("make");
    for place in [&pair.kubectl, &pair.wasmk] {
        place.write("app.conf", "colour=red\nsize=2\n");
        place.write("config.d/one", "1");
        place.write("config.d/two", "2");
    }
    let data = |name: &str| format!("k get cm {name} -o json | jq -c .data");
    for (script, said, shown) in [
        (
            "k create configmap literal --from-literal=key1=value1 --from-literal=key2=value2",
            "literal",
            r#"{"key1":"value1","key2":"value2"}"#,
        ),
        ("k create cm file --from-file=app.conf", "file", r#"{"app.conf":"colour=red\nsize=2\n"}"#),
        ("k create cm renamed --from-file=other=app.conf", "renamed", r#"{"other":"colour=red\nsize=2\n"}"#),
        ("k create cm folder --from-file=config.d/", "folder", r#"{"one":"1","two":"2"}"#),
        ("k create cm env --from-env-file=app.conf", "env", r#"{"colour":"red","size":"2"}"#),
    ] {
        pair.check(script, &format!("configmap/{said} created"));
        pair.check(&data(said), shown);
    }
    pair.check("k create secret generic file --from-file=app.conf", "secret/file created");
    pair.check(
        "k get secret file -o json | jq -r '.data[\"app.conf\"]' | base64 -d | xargs",
        "colour=red size=2",
    );
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        let said = place
            .sh(&format!("{client} create ns made-by-{client} && {client} get ns made-by-{client} -o name"));
        assert_eq!(said, format!("namespace/made-by-{client} created\nnamespace/made-by-{client}"));
    }
    pair.check(
        "k create secret generic my-password --from-literal=password=mysqlpassword",
        "secret/my-password created",
    );
    pair.check("k get secret my-password --no-headers | awk '{print $1, $2, $3}'", "my-password Opaque 1");
    pair.check("k get secret my-password -o json | jq -r .data.password | base64 -d", "mysqlpassword");
    for client in [&pair.kubectl, &pair.wasmk] {
        let shown = client.sh(if std::ptr::eq(client, &pair.wasmk) {
            "wasmk describe secret my-password"
        } else {
            "kubectl describe secret my-password"
        });
        assert!(shown.contains("password:  13 bytes") && !shown.contains("bXlzcW"), "{shown}");
    }
    pair.check("k create serviceaccount viewer", "serviceaccount/viewer created");
    pair.check(
        "k create rolebinding viewercanview --clusterrole=view --serviceaccount=default:viewer",
        "rolebinding.rbac.authorization.k8s.io/viewercanview created",
    );
    pair.same("k get rolebinding viewercanview -o json | jq -cS '[.roleRef, .subjects]'");
    pair.same("k create rolebinding joe --clusterrole=admin --user=users:joe --dry-run=client -o json | jq -cS '[.kind, .roleRef, .subjects]'");
    pair.refused("k get rolebinding joe", "\"joe\" not found");
    pair.same("k create rolebinding devs --role=pod-reader --group=dev --dry-run=client -o json | jq -cS '[.roleRef, .subjects]'");
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        let create =
            format!("{client} create clusterrolebinding by-{client} --clusterrole=view --user=jane-{client}");
        let said = format!("clusterrolebinding.rbac.authorization.k8s.io/by-{client} created");
        assert_eq!(place.sh(&create), said);
        assert_eq!(place.sh(&format!("{client} auth can-i list pods -A --as jane-{client}")), "yes");
    }
    pair.same("k create role pod-reader --verb=get,list --resource=pods,pods/log,deployments.apps && k get role pod-reader -o json | jq -c .rules");
    pair.check(
        "k create token viewer | cut -d. -f2 | tr _- /+ | base64 -d 2>/dev/null | jq -r .sub | cut -d: -f4",
        "viewer",
    );
    pair.same("k create job once --image=busybox && k get job once -o json | jq -cS '.spec.template.spec.containers[0] | [.name, .image]'");
    pair.same("k create cronjob tick --image=busybox --schedule='*/5 * * * *' && k get cronjob tick -o json | jq -cS '[.spec.schedule, .spec.jobTemplate.spec.template.spec.restartPolicy]'");
    pair.same("k create service nodeport np --tcp=80:8080 && k get svc np -o json | jq -cS '[.spec.type, .spec.selector, .spec.ports[0].targetPort]'");
    pair.same("k create service externalname db --external-name=db.example.com && k get svc db -o jsonpath='{.spec.externalName}'");
    pair.refused("k create cm literal --from-literal=a=b", "configmaps \"literal\" already exists");
    pair.refused("k create cm bad --from-literal=a", "expected key=value");
}

#[test]
fn workloads_are_made_exposed_scaled_and_changed() {
    let pair = Pair::new("work");
    pair.check(
        "k create deployment web --image $REGISTRY/default/hello:1 --replicas=2",
        "deployment.apps/web created",
    );
    pair.same("k get deploy web -o json | jq -cS '[.spec.selector, .spec.template.metadata.labels, .spec.template.spec.containers[0].name]'");
    pair.run("k rollout status deploy/web --timeout=60s | tail -1 | grep 'deployment \"web\" successfully rolled out'");
    pair.check("k expose deploy/web --port 8888 --target-port 8080", "service/web exposed");
    pair.same("k get svc web -o json | jq -cS '[.spec.selector, .spec.ports[0].port, .spec.ports[0].targetPort, .spec.type]'");
    pair.check("k expose deployment web --name node --type=NodePort --port 80 && k get svc node -o jsonpath='{.spec.type}'", "service/node exposed\nNodePort");
    for (of, name) in [("$(k get rs -o name)", "of-set"), ("svc/web", "of-service")] {
        let script = format!(
            "k expose {of} --name {name} --port 81 && k get svc {name} -o json | jq -cS '[.spec.selector.app, .spec.ports[0].port]'"
        );
        pair.check(&script, &format!("service/{name} exposed\n[\"web\",81]"));
    }
    pair.check("k expose deploy/web --name none --port 80 --cluster-ip=None && k get svc none -o jsonpath='{.spec.clusterIP}'", "service/none exposed\nNone");
    pair.same("k expose deploy/web --name out --port 80 --external-ip=192.0.2.4 && k get svc out -o jsonpath='{.spec.externalIPs}'");
    pair.refused(
        "k expose deploy/web --name portless",
        "couldn't find port via --port flag or introspection",
    );
    pair.check("k scale deploy/web --replicas 3", "deployment.apps/web scaled");
    pair.check(
        "k scale --replicas=1 deployment web && k get deploy web -o jsonpath='{.spec.replicas}'",
        "deployment.apps/web scaled\n1",
    );
    pair.check(
        "k autoscale deploy web --min=2 --max=5 --cpu-percent=80",
        "horizontalpodautoscaler.autoscaling/web autoscaled",
    );
    pair.same("k get hpa web -o json | jq -cS '[.spec.minReplicas, .spec.maxReplicas, .spec.scaleTargetRef, .spec.metrics]'");
    pair.run("k delete hpa web");

    pair.check(
        "k set image deploy web hello=$REGISTRY/default/missing:2",
        "deployment.apps/web image updated",
    );
    pair.refused("k set image deploy web nothing=x", "unable to find container named \"nothing\"");
    pair.refused("k rollout status deploy/web --timeout=1s", "timed out waiting for the condition");
    pair.same("k rollout history deploy web");
    pair.run("k rollout history deploy web --revision=1 | grep default/hello:1");
    pair.check("k rollout undo deploy web", "deployment.apps/web rolled back");
    pair.run("k rollout status deploy/web --timeout=60s");
    pair.run(
        "k get deploy web -o jsonpath='{.spec.template.spec.containers[0].image}' | grep default/hello:1",
    );
    pair.check("k rollout undo deploy web --to-revision=2", "deployment.apps/web rolled back");
    pair.run(
        "k get deploy web -o jsonpath='{.spec.template.spec.containers[0].image}' | grep default/missing:2",
    );
    // What is undone is the revision of that template, as soon as it is counted.
    pair.run("until k rollout history deploy web | grep -q '^4 '; do sleep 0.1; done");
    pair.check("k rollout undo deploy web", "deployment.apps/web rolled back");
    pair.run("k rollout status deploy/web --timeout=60s");
    pair.check("k rollout pause deploy web", "deployment.apps/web paused");
    pair.check("k set env deploy/web COLOUR=blue", "deployment.apps/web env updated");
    pair.check("k get rs -o name | wc -l", "2");
    pair.check("k rollout resume deploy web", "deployment.apps/web resumed");
    pair.run("k rollout status deploy/web --timeout=60s");
    pair.check("k get deploy web -o jsonpath='{.spec.template.spec.containers[0].env[0].value}'", "blue");
    pair.check("k rollout restart deploy web", "deployment.apps/web restarted");
    pair.run("k rollout status deploy/web --timeout=60s");
    pair.refused(
        "k rollout undo deploy web --to-revision=99",
        "unable to find specified revision 99 in history",
    );
    // What is dumped, with its status and all that the system fills in, is changed and applied. Somebody may write
    // to it in between: then once more.
    pair.run(
        "for n in 1 2 3 4 5; do k get deploy web -o yaml | sed 's/^  replicas: [0-9]*$/  replicas: 4/' > web.yaml; \
         grep -q '^status:' web.yaml; k apply -f web.yaml && break; done",
    );
    pair.check("k get deploy web -o jsonpath='{.spec.replicas}'", "4");
}

#[test]
fn objects_are_printed_in_every_form() {
    let pair = Pair::new("print");
    for place in [&pair.kubectl, &pair.wasmk] {
        place.apply(
            "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: {tier: one, app: a}}\nspec: {selector: {app: a}, ports: [{port: 80}]}\n---\n\
             apiVersion: v1\nkind: Service\nmetadata: {name: b, labels: {tier: two}}\nspec: {clusterIP: None, selector: {app: b}, ports: [{port: 81, name: http}, {port: 82, name: more, protocol: UDP}]}\n",
        );
    }
    for script in [
        "k get svc b | awk '{print $1, $2, $3, $4, $5}'",
        "k get svc/b --no-headers | awk '{print $1, $2, $3, $4, $5}'",
        "k get svc b -o wide | awk '{print $1, $5, $7}'",
        "k get svc -o name",
        "k get service,cm -o name | grep -v root-ca",
        "k get svc -l tier=one -o name",
        "k get svc -l 'tier in (one,two),app!=a' -o name",
        "k get svc -l tier=one -l tier=two -o name",
        "k get roles -A | awk 'NR == 1 {print $1, $2, $3}'",
        "k get svc --field-selector metadata.name=b -o name",
        "k get svc b -o jsonpath='{.spec.ports[0].port}'",
        "k get svc -o jsonpath='{range .items[*]}{.metadata.name}={.spec.ports[*].port}{\"\\n\"}{end}'",
        "k get svc b -o jsonpath --template='{.spec.ports[?(@.name==\"more\")].protocol}'",
        "k get svc b -o go-template --template '{{ .spec.clusterIP }}'",
        "k get svc -o custom-columns=NAME:metadata.name,LABELS:metadata.labels,PORTS:.spec.ports[*].port,NONE:.spec.nothing",
        "k get svc --sort-by=.metadata.name -o name",
        "k get svc --show-labels | awk '{print $1, $NF}'",
        "k get svc b -o yaml | grep -v 'uid:\\|resourceVersion:\\|creationTimestamp:\\|last-applied\\|{\"apiVersion\"\\|namespace:'",
        "k get svc b -o json | jq -cS '[.kind, .apiVersion, .spec.ports]'",
        "k get svc -o json | jq -cS '[.kind, (.items | length)]'",
        "k get pods 2>&1",
        "k get endpoint 2>&1 || true",
        "k get svc nothing 2>&1 || true",
        "k get svc nothing --ignore-not-found",
        "k get ns default --no-headers | awk '{print $1, $2}'",
        "k get no -o name; k get node -o name; k get nodes -o name",
        "k get svc -A -l tier=two | awk 'NR == 1 {print $1, $2}'",
        "k api-versions | grep -c apps/v1",
        "k explain svc.spec.ports.port | grep -qi '<integer>' && echo yes",
        "k config current-context",
        "k auth can-i create pods; k auth can-i list nodes --as some-user || echo $?",
        "k auth can-i '*' services; k auth can-i get pods/name; k auth can-i get /healthz --as some-user; k auth can-i get /other --as some-user || true",
        "k auth whoami | head -3",
        "k get --raw /healthz",
        "k version -o json | jq -r .serverVersion.gitVersion",
        "k cluster-info | head -1 | sed 's/\\x1b\\[[0-9;]*m//g'",
        "k get svc --as nobody 2>&1 | cut -c1-150 || true",
    ] {
        let printed = pair.same(script);
        assert!(!printed.is_empty() || script.contains("ignore-not-found"), "{script}");
    }
    pair.check("k get roles -A | awk 'NR == 1 {print $1, $2, $3}'", "NAMESPACE NAME CREATED");
    pair.check("k get svc -l tier=one -l tier=two -o name", "service/b");
    let nobody = "k --server=https://127.0.0.1:1";
    pair.check(&format!("{nobody} version --client | head -1 | cut -d: -f1"), "Client Version");
    pair.run(&format!("! {nobody} version >/dev/null 2>&1"));
    let exported = pair.wasmk.sh("wasmk get svc/b -o yaml --export");
    for gone in ["uid:", "resourceVersion:", "creationTimestamp:", "namespace:", "status:"] {
        assert!(!exported.contains(gone), "{gone} in {exported}");
    }
    assert!(pair.wasmk.sh("wasmk get svc -a -o name").contains("service/a"));
}

#[test]
fn labels_annotations_and_fields_are_changed() {
    let pair = Pair::new("change");
    pair.run("k create cm a && k create cm b");
    pair.check("k label cm a color=red", "configmap/a labeled");
    pair.refused("k label cm a color=blue", "already has a value (red), and --overwrite is false");
    pair.check(
        "k label cm --all color=blue --overwrite && k get cm -l color=blue -o name",
        &[
            "configmap/a labeled",
            "configmap/b labeled",
            "configmap/kube-root-ca.crt labeled",
            "configmap/a",
            "configmap/b",
            "configmap/kube-root-ca.crt",
        ]
        .join("\n"),
    );
    pair.check("k label cm -l color=blue --overwrite color=green | wc -l", "3");
    pair.run("k label cm a stays=here");
    pair.check("k label cm a color-", "configmap/a unlabeled");
    pair.check("k get cm a --show-labels --no-headers | awk '{print $NF}'", "stays=here");
    pair.run("k label cm a stays-");
    pair.check("k get cm a --show-labels --no-headers | awk '{print $NF}'", "<none>");
    pair.check("k annotate cm a note=first", "configmap/a annotated");
    pair.check("k annotate cm a note=second --overwrite", "configmap/a annotated");
    pair.run("k describe cm a | grep 'note: second'");
    pair.check(
        "k annotate cm a note- && k get cm a -o json | jq .metadata.annotations",
        "configmap/a annotated\nnull",
    );
    pair.check("k patch cm a -p 'data: {x: \"1\"}'", "configmap/a patched");
    pair.check("k patch cm a -p '{\"data\": {\"x\": \"1\"}}'", "configmap/a patched (no change)");
    pair.check("k patch cm a --type=json -p '[{\"op\": \"add\", \"path\": \"/data/y\", \"value\": \"2\"}]' && k get cm a -o json | jq -c .data", "configmap/a patched\n{\"x\":\"1\",\"y\":\"2\"}");
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        let patch = format!(
            "{client} get cm a b -o name | xargs -n 1 {client} patch -p '{{\"metadata\": {{\"annotations\": {{\"each\": \"1\"}}}}}}'"
        );
        assert_eq!(place.sh(&patch), "configmap/a patched\nconfigmap/b patched");
        assert_eq!(place.value("cm/b", "{.metadata.annotations.each}"), "1");
        place.write("editor", "sed -i 's/x: .1./x: edited/' \"$1\"\n");
        // Writes a key that none may be called first, and mends it when it is told so.
        place.write(
            "clumsy",
            "if [ -e tried ]; then grep '^#' \"$1\" > told; sed -i -E 's/^  [^ ]?x x[^ ]?: .*/  x: mended/' \"$1\"\n\
             else touch tried; sed -i 's/^  x: .*/  \"x x\": wrong/' \"$1\"; fi\n",
        );
    }
    pair.check(
        "EDITOR='sh editor' k edit cm a; k get cm a -o jsonpath='{.data.x}'",
        "configmap/a edited\nedited",
    );
    pair.check("EDITOR=true k edit cm a 2>&1", "Edit cancelled, no changes made.");
    pair.run("EDITOR='sh clumsy' k edit cm a && grep -q 'data\\[x x\\]' told");
    pair.check("k get cm a -o jsonpath='{.data.x}'", "mended");
    // What was dumped is changed and applied without further ado.
    pair.check("k get cm b -o yaml > b.yaml && echo 'data: {z: \"3\"}' >> b.yaml && k replace -f b.yaml && k get cm b -o jsonpath='{.data.z}'", "configmap/b replaced\n3");
    pair.run("k delete cm b && echo 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}' | k create -f -");
    pair.refused(
        "echo 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}' | k create -f -",
        "already exists",
    );
    pair.check("k delete cm -l color=blue", "No resources found");
    pair.check("k delete cm a c | sort", "configmap \"a\" deleted\nconfigmap \"c\" deleted");
}

#[test]
fn pods_are_run_watched_and_waited_for() {
    let pair = Pair::new("run");
    pair.check("k run web --image=$REGISTRY/default/hello:1 --port=80", "pod/web created");
    pair.same("k get pod web -o json | jq -cS '[.metadata.labels, .spec.containers[0].name, .spec.containers[0].ports]'");
    pair.check(
        "k expose pod web && k get svc web -o json | jq -cS '[.spec.selector, .spec.ports[0].port]'",
        "service/web exposed\n[{\"run\":\"web\"},80]",
    );
    pair.run("k describe pod web | grep -q 'Image: .*/default/hello:1'");
    pair.check("k wait --for=condition=Ready pod/web --timeout=60s", "pod/web condition met");
    pair.check("k get pod web --no-headers | awk '{print $1, $2, $3, $4}'", "web 1/1 Running 0");
    pair.check(
        "k run printer --image=$REGISTRY/default/command:1 --restart=Never -- print hello",
        "pod/printer created",
    );
    pair.check(
        "k wait --for=jsonpath='{.status.phase}'=Succeeded pod/printer --timeout=60s",
        "pod/printer condition met",
    );
    pair.check("k logs printer --tail=1", "done");
    pair.check("k logs printer | head -1", "args [\"print\", \"hello\"]");
    pair.check(
        "k run printer-2 --image=$REGISTRY/default/command:1 --restart=Never --labels run=printer -- print 2",
        "pod/printer-2 created",
    );
    pair.run("k wait --for=jsonpath='{.status.phase}'=Succeeded pod/printer-2 --timeout=60s");
    pair.check("k logs -l run=printer --tail=1", "done\ndone");
    pair.check("k logs printer --timestamps --tail=1 | grep -c '^20[0-9-]*T[0-9:.]*Z done'", "1");
    pair.check("k logs printer --since=1h | tail -1", "done");
    pair.check("k logs printer --since-time=2099-01-01T00:00:00Z", "");
    pair.check("k logs printer --since-time=2020-01-01T00:00:00Z | tail -1", "done");
    for place in [&pair.kubectl, &pair.wasmk] {
        place.apply(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: ticker}\nspec: {selector: {matchLabels: {app: ticker}}, template: {metadata: {labels: {app: ticker}}, \
             spec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: $REGISTRY/default/command:1, args: [tick, '100']}]}}}\n",
        );
    }
    pair.run("k wait --for=condition=Available deploy/ticker --timeout=60s");
    pair.run("until k logs deploy/ticker | grep -q tick; do sleep 0.1; done");
    pair.check("k logs deploy/ticker | head -1; k logs $(k get rs -o name) | head -1", "tick 1\ntick 1");
    pair.run("k delete deploy ticker");
    pair.check(
        "k create job once --image=$REGISTRY/default/command:1 -- command print once",
        "job.batch/once created",
    );
    pair.run("k wait --for=condition=complete job/once --timeout=60s");
    pair.check(
        "k logs job/once | head -1; k get pods -l job-name=once -o name | wc -l",
        "args [\"print\", \"once\"]\n1",
    );
    pair.check("k run probe --rm -i -q --restart=Never --image=$REGISTRY/default/command:1 -- print attached 2>/dev/null | grep -c 'print'", "1");
    pair.refused("k get pod probe", "pods \"probe\" not found");
    // Only a WASI 0.1 module can tell more than success and failure.
    let bad = "k run bad --rm -i -q --restart=Never --image=$REGISTRY/default/command-module:1 -- exit 3";
    pair.check(&format!("{bad} >/dev/null 2>&1; echo $?"), "3");
    pair.refused("k get pod bad", "pods \"bad\" not found");
    pair.refused(
        "k wait --for=condition=Other pod/web --timeout=1s",
        "timed out waiting for the condition on pods/web",
    );
    pair.refused("k exec web -- ls", "is WebAssembly");
    pair.check(
        "k delete pod web printer --now 2>/dev/null | sort",
        "pod \"printer\" deleted\npod \"web\" deleted",
    );
    pair.run("k delete job once");

    // What only older clients had.
    let place = &pair.wasmk;
    let said = place
        .sh("wasmk run old --image=$REGISTRY/default/hello:1 --replicas=2 --port=80 --hostport=8001 2>&1");
    assert!(said.contains("--generator=deployment/apps.v1 is DEPRECATED"), "{said}");
    assert_eq!(place.value("deploy/old", "{.spec.template.metadata.labels.run}"), "old");
    place.until("kubectl get pods -l run=old -o name | wc -l", "2");
    assert_eq!(
        place.value("deploy/old", "{.spec.replicas} {.spec.template.spec.containers[0].ports[0].hostPort}"),
        "2 8001"
    );
    place.sh(
        "wasmk run once --image=x --restart=OnFailure && wasmk run tick --image=x --schedule='*/5 * * * *'",
    );
    assert_eq!(place.sh("kubectl get job,cronjob -o name"), "job.batch/once\ncronjob.batch/tick");
    place.sh("kubectl create sa viewer && wasmk run as --image=x --serviceaccount=viewer --dry-run -o yaml > as.yaml");
    assert!(place.sh("cat as.yaml").contains("serviceAccountName: viewer"));
    let refused = place.fails("wasmk exec old ls");
    assert!(refused.contains("pods \"old\" not found"), "{refused}");
    place.sh("kubectl scale deploy/old --replicas=1 && wasmk delete deploy old --cascade=false");
    assert_eq!(place.sh("kubectl get rs -o name | wc -l"), "1");
}

#[test]
fn contexts_and_clusters_are_kept_in_the_kubeconfig() {
    let pair = Pair::new("contexts");
    // A file of one's choice, which does not know the cluster's authority; and the usual one of the home directory.
    pair.run("sed '/certificate-authority-data/d' config > bare");
    pair.refused("k --kubeconfig bare get ns default", "certificate");
    pair.check("k --kubeconfig bare --insecure-skip-tls-verify get ns default -o name", "namespace/default");
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        let usual = format!("env -u KUBECONFIG {client} get ns default -o name");
        place.fails(&usual);
        assert_eq!(
            place.sh(&format!("mkdir -p .kube && cp config .kube/config && {usual}")),
            "namespace/default"
        );
    }
    pair.same("k config view | grep -v server | head -20");
    pair.check("k config view | grep -c 'DATA+OMITTED'", "3");
    pair.run("k config view --raw -o json | jq -r '.users[0].user[\"client-certificate-data\"]' | base64 -d | openssl x509 -noout -subject | grep 'O *= *system:masters.*CN *= *kubernetes-admin'");
    pair.check(
        "k config set-context blue --namespace=blue --cluster=wasmk --user=wasmk",
        "Context \"blue\" created.",
    );
    pair.same("k config get-contexts | sed 's/  */ /g; s/ $//'");
    pair.check(
        "k config use-context blue && k config current-context",
        "Switched to context \"blue\".\nblue",
    );
    pair.check("k get pods 2>&1", "No resources found in blue namespace.");
    pair.check("k config set-context --current --namespace=foo", "Context \"blue\" modified.");
    pair.check("k config view --minify -o json | jq -r '.contexts[].name'", "blue");
    pair.check("k --context wasmk config view --minify -o json | jq -r '.contexts[].name'", "wasmk");
    pair.refused("k --user nobody get ns", "auth info \"nobody\" does not exist");
    pair.refused("k --cluster none get ns", "no server found for cluster \"none\"");
    pair.check(
        "k config set-cluster other --server=https://127.0.0.1:1 && k config view -o json | jq -r '.clusters[] | select(.name == \"other\").cluster.server'",
        "Cluster \"other\" set.\nhttps://127.0.0.1:1",
    );
    pair.run("k --cluster other get ns 2>&1 | grep -q refused");
    pair.refused("k config use-context nothing", "no context exists with the name: \"nothing\"");
    pair.check(
        "k config use-context wasmk >/dev/null; k config set-cluster wasmk --insecure-skip-tls-verify=true",
        "Cluster \"wasmk\" set.",
    );
    pair.check("k get ns default -o name", "namespace/default");
    pair.check("k --server=https://127.0.0.1:1 get ns 2>&1 | grep -q refused && echo yes", "yes");
    pair.run("k --insecure-skip-tls-verify --server=$API get ns default");
    let place = &pair.wasmk;
    assert_eq!(place.sh("wasmk ns"), "contexts-wasmk");
    assert_eq!(
        place.sh("wasmk ns default && wasmk ns"),
        "Context \"wasmk\" is now in namespace \"default\".\ndefault"
    );
    assert_eq!(
        place.sh("wasmk ns - && wasmk ns"),
        "Context \"wasmk\" is now in namespace \"contexts-wasmk\".\ncontexts-wasmk"
    );
    assert!(place.fails("wasmk ns nothing").contains("namespaces \"nothing\" not found"));
    assert_eq!(
        place.sh("wasmk ctx blue && wasmk ctx - && wasmk config current-context"),
        "Switched to context \"blue\".\nSwitched to context \"wasmk\".\nwasmk"
    );
}

#[test]
fn the_api_is_served_on_this_machine() {
    let pair = Pair::new("proxies");
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        let script = format!(
            "{client} proxy --port=0 > port & until [ -s port ]; do sleep 0.05; done; \
             at=$(grep -o '127.0.0.1:[0-9]*' port); \
             curl -sS $at/healthz; echo; curl -sS $at/ | jq -r '.paths[0]'; \
             curl -sS $at/api/v1/namespaces/default | jq -r .status.phase; \
             curl -sS -X POST -H 'Content-Type: application/json' -d '{{\"metadata\": {{\"name\": \"made\"}}}}' \
               $at/api/v1/namespaces/proxies-{client}/configmaps | jq -r .metadata.name; \
             curl -sS -o /dev/null -w '%{{http_code}}\\n' -H 'Host: evil.example' $at/; kill %1; \
             {client} proxy --port=0 --address=127.0.0.2 --accept-hosts='^evil[.]example$' > port2 & until [ -s port2 ]; do sleep 0.05; done; \
             at=$(grep -o '127.0.0.2:[0-9]*' port2); \
             for host in evil.example localhost; do curl -sS -o /dev/null -w '%{{http_code}}\\n' -H \"Host: $host\" $at/; done; kill %%"
        );
        let said = place.sh(&script);
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[0], "ok");
        assert!(lines[1].starts_with('/'), "{said}");
        assert_eq!(lines[2..], ["Active", "made", "403", "200", "403"], "{client}: {said}");
    }
}

#[test]
fn certificates_are_approved() {
    let pair = Pair::new("csr");
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        place.sh(&format!("openssl req -newkey rsa:2048 -nodes -keyout {client}.key -out {client}.csr -subj '/CN=users:{client}/O=cool-people' 2>/dev/null"));
        let request = place.sh(&format!("base64 -w0 {client}.csr"));
        place.apply(&format!(
            "apiVersion: certificates.k8s.io/v1\nkind: CertificateSigningRequest\nmetadata: {{name: {client}}}\nspec:\n  \
             request: {request}\n  signerName: kubernetes.io/kube-apiserver-client\n  usages: [client auth]\n"
        ));
        let said = place.sh(&format!("{client} certificate approve {client}"));
        assert_eq!(said, format!("certificatesigningrequest.certificates.k8s.io/{client} approved"));
        place.until_that(&format!("kubectl get csr {client} --no-headers"), |row| {
            row.contains("Approved,Issued")
        });
        place.sh(&format!(
            "kubectl get csr {client} -o jsonpath='{{.status.certificate}}' | base64 -d > {client}.crt"
        ));
        place.sh(&format!("kubectl create rolebinding {client} --clusterrole=view --user=users:{client}"));
        let who = place.sh(&format!(
            "kubectl get cm -n default kube-root-ca.crt -o json | jq -r '.data[\"ca.crt\"]' > ca.crt; \
             curl -sS --cacert ca.crt --cert {client}.crt --key {client}.key $API/api/v1/namespaces/csr-{client}/pods | jq -r .kind; \
             curl -sS --cacert ca.crt --cert {client}.crt --key {client}.key $API/api/v1/namespaces/default/pods | jq -r .message"
        ));
        assert!(
            who.starts_with("PodList\n")
                && who.contains(&format!("User \"users:{client}\" cannot list resource")),
            "{who}"
        );
    }
}

#[test]
fn many_logs_are_read_as_one() {
    let place = Place::new(&CLUSTER, "many-logs");
    let run = |name: &str, word: &str| {
        place.sh(&format!("kubectl run {name} --image $REGISTRY/default/command:1 --restart=Never --labels run={name} -- print {word}"));
        place.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
    };
    run("rng-1", "first");
    run("other", "unwanted");
    let follow = |query: &str, file: &str| {
        Running::start(place.command("bash").args(["-c", &format!("exec wasmk stern {query} > {file}")]))
    };
    let _one = follow("rng", "by-name");
    let _two = follow("-l run --tail 1 -t", "by-label");
    let _three = follow("--all-namespaces 'rng-[0-9]' --tail 1", "everywhere");
    // From another namespace: all, or that one.
    let elsewhere = Place::new(&CLUSTER, "many-logs-elsewhere");
    let abroad = |query: &str, file: &str| {
        Running::start(elsewhere.command("bash").args(["-c", &format!("exec wasmk stern {query} > {file}")]))
    };
    let _four = abroad("--all-namespaces '^rng-[0-9]' --tail 1", "all");
    let _five = abroad("-n many-logs '^rng-[0-9]' --tail 1", "one");
    place.until("grep -c 'rng-1 rng-1 args \\[\"print\", \"first\"\\]' by-name", "1");
    // One that comes later joins by itself, one that is not asked for stays out.
    run("rng-2", "second");
    place.until("grep -c 'rng-2 rng-2 args \\[\"print\", \"second\"\\]' by-name", "1");
    assert_eq!(place.output("grep other by-name").status.code(), Some(1));
    place.until("grep -Ec '^(rng-1|rng-2|other) (rng-1|rng-2|other) 20[0-9-]*T[0-9:.]*Z done$' by-label; wc -l < by-label", "3\n3");
    place.until("sort everywhere", "many-logs rng-1 rng-1 done\nmany-logs rng-2 rng-2 done");
    elsewhere.until("sort all", "many-logs rng-1 rng-1 done\nmany-logs rng-2 rng-2 done");
    elsewhere.until("sort one", "rng-1 rng-1 done\nrng-2 rng-2 done");
    assert_eq!(place.sh("wasmk stern other --no-follow --tail 1"), "other other done");
    assert!(place.fails("wasmk stern '('").contains("is not a regular expression"));
}

#[test]
fn manifests_come_from_the_web() {
    let pair = Pair::new("web");
    for (place, client) in [(&pair.kubectl, "kubectl"), (&pair.wasmk, "wasmk")] {
        place.write("site/one.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: plain}\n");
        place.write("site/two.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: sealed}\n");
        place.write(
            "serve.py",
            "import functools, http.server, ssl, sys\n\
             site = functools.partial(http.server.SimpleHTTPRequestHandler, directory='site')\n\
             server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), site)\n\
             if sys.argv[1:]:\n    \
                 context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n    \
                 context.load_cert_chain('site.crt', 'site.key')\n    \
                 server.socket = context.wrap_socket(server.socket, server_side=True)\n\
             print(server.server_port, flush=True)\n\
             server.serve_forever()\n",
        );
        place.sh(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout site.key -out site.crt -days 2 -subj /CN=site \
                  -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE 2>/dev/null",
        );
        let _plain = Running::start(place.command("bash").args(["-c", "exec python3 serve.py > plain"]));
        let _sealed =
            Running::start(place.command("bash").args(["-c", "exec python3 serve.py tls > sealed"]));
        let port = |file: &str| place.until_that(&format!("cat {file}"), |text| !text.is_empty());
        let (plain, sealed) =
            (format!("http://127.0.0.1:{}", port("plain")), format!("https://127.0.0.1:{}", port("sealed")));
        let apply = |more: &str, url: &str| format!("{more} {client} apply -f {url}");
        assert_eq!(place.sh(&apply("", &format!("{plain}/one.yaml"))), "configmap/plain created");
        // Whoever serves it has to be known.
        let stranger = place.fails(&apply("", &format!("{sealed}/two.yaml")));
        assert!(stranger.contains("certificate"), "{client}: {stranger}");
        let known = place.sh(&apply("SSL_CERT_FILE=$PWD/site.crt", &format!("{sealed}/two.yaml")));
        assert_eq!(known, "configmap/sealed created", "{client}");
        let missing = place.fails(&apply("", &format!("{plain}/none.yaml")));
        let why = format!("unable to read URL \"{plain}/none.yaml\"");
        assert!(missing.contains(&why) && missing.contains("status code=404"), "{client}: {missing}");
        let verbs = format!(
            "{client} get -f {plain}/one.yaml -o name; {client} delete -f {plain}/one.yaml; {client} create -f {plain}/one.yaml"
        );
        assert_eq!(
            place.sh(&verbs),
            "configmap/plain\nconfigmap \"plain\" deleted\nconfigmap/plain created",
            "{client}"
        );
    }
}
