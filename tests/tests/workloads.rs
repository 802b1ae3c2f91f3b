//! What keeps pods running: replica sets, deployments, daemon sets, stateful sets, jobs, budgets.

use std::{
    io::Write,
    net::TcpStream,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("hello");
    program.push("command");
    program
});

/// A workload of the function that says hello, with labels `app` and `tier`.
fn workload(kind: &str, name: &str, more: &str) -> String {
    let (version, selector) = match kind {
        "ReplicationController" => ("v1", format!("selector: {{app: {name}}}")),
        _ => ("apps/v1", format!("selector: {{matchLabels: {{app: {name}}}}}")),
    };
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  {selector}\n{more}  template:\n    \
         metadata: {{labels: {{app: {name}, tier: front}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      \
         containers: [{{name: main, image: $REGISTRY/default/hello:1, ports: [{{containerPort: 8080}}]}}]\n"
    )
}

/// Prints how many pods there are of that name that are not on their way out.
fn living(app: &str) -> String {
    format!(
        "kubectl get pods -l app={app} -o json | jq '[.items[] | select(.metadata.deletionTimestamp == null)] | length'"
    )
}

/// Names of those pods.
fn names(app: &str) -> String {
    format!(
        "kubectl get pods -l app={app} -o json | jq -r '.items[] | select(.metadata.deletionTimestamp == null) | .metadata.name'"
    )
}

fn keeps_its_number(kind: &str, short: &str) {
    let place = Place::new(&CLUSTER, &format!("keeps-{short}"));
    // A pod that was there before is taken over.
    place.sh("kubectl run early --image $REGISTRY/default/hello:1 --labels app=web,tier=front");
    place.until_value("pod/early", "{.status.phase}", "Running");
    place.apply(&workload(kind, "web", "  replicas: 3\n"));
    place.until_value(&format!("{short}/web"), "{.status.readyReplicas}", "3");
    place.until(&living("web"), "3");
    assert_eq!(place.value("pod/early", "{.metadata.ownerReferences[0].kind}"), kind);
    let columns = place.sh(&format!("kubectl get {short} web | head -1 | xargs"));
    assert_eq!(columns, "NAME DESIRED CURRENT READY AGE");

    // One too few is made up for, one too many goes.
    place.sh("kubectl delete pod early");
    place.until_value(&format!("{short}/web"), "{.status.readyReplicas}", "3");
    assert!(!place.sh(&names("web")).contains("early"));
    place.sh("kubectl run extra --image $REGISTRY/default/hello:1 --labels app=web,tier=front");
    place.until(&living("web"), "3");

    // A pod that is labelled away lives on without an owner and is replaced; labelled back it is one too many.
    let pod = place.sh(&format!("{} | head -1", names("web")));
    place.sh(&format!("kubectl label pod {pod} app=apart --overwrite"));
    place.until(&living("web"), "3");
    place.until_value(&format!("pod/{pod}"), "{.metadata.ownerReferences}", "");
    assert_eq!(place.value(&format!("pod/{pod}"), "{.status.phase}"), "Running");
    place.sh(&format!("kubectl label pod {pod} app=web --overwrite"));
    place.until(&format!("{} | wc -l", names("web")), "3");

    place.sh(&format!("kubectl scale {short}/web --replicas=1"));
    place.until(&living("web"), "1");

    // Without its controller a pod lives on, if that is asked for.
    place.sh(&format!("kubectl delete {short} web --cascade=orphan"));
    let pod = place.sh(&names("web"));
    place.until_value(&format!("pod/{pod}"), "{.metadata.ownerReferences}", "");
    assert_eq!(place.value(&format!("pod/{pod}"), "{.status.phase}"), "Running");
}

#[test]
fn a_replica_set_keeps_its_number() {
    keeps_its_number("ReplicaSet", "rs");
}

#[test]
fn a_replication_controller_keeps_its_number() {
    keeps_its_number("ReplicationController", "rc");
    let place = Place::new(&CLUSTER, "equality");
    let text =
        workload("ReplicationController", "web", "").replace("{app: web}\n", "{matchExpressions: []}\n");
    assert!(place.refuses(&text).contains("spec.selector"));
}

#[test]
fn a_deployment_has_its_defaults_and_its_pods_their_names() {
    let place = Place::new(&CLUSTER, "defaults");
    place.apply(&workload("Deployment", "web", ""));
    place.sh("kubectl rollout status deploy/web --timeout=60s");
    let columns = place.sh("kubectl get deploy web | xargs -n 5 | head -1");
    assert_eq!(columns, "NAME READY UP-TO-DATE AVAILABLE AGE");
    let strategy = place
        .sh("kubectl get deploy web -o json | jq -c '{n: .spec.replicas} + .spec.strategy.rollingUpdate'");
    assert_eq!(strategy, r#"{"n":1,"maxSurge":"25%","maxUnavailable":"25%"}"#);

    let hash = place.value("rs", "{.items[0].metadata.labels.pod-template-hash}");
    assert_eq!(place.sh("kubectl get rs -o name"), format!("replicaset.apps/web-{hash}"));
    assert_eq!(place.value("rs", "{.items[0].spec.selector.matchLabels.pod-template-hash}"), hash);
    let pod = place.sh(&names("web"));
    let suffix = pod.strip_prefix(&format!("web-{hash}-")).expect("the set's name comes first");
    assert_eq!(suffix.len(), 5, "{pod}");

    // The set is the deployment's: its number comes back.
    place.sh(&format!("kubectl scale rs/web-{hash} --replicas=4"));
    place.until_value("rs", "{.items[0].spec.replicas}", "1");
    place.until(&living("web"), "1");

    // It asks for more from now on: new pods do.
    place.sh("kubectl set resources deploy/web --requests=memory=16Mi && kubectl rollout status deploy/web --timeout=60s");
    let asked =
        "kubectl get pods -l app=web -o jsonpath='{.items[*].spec.containers[0].resources.requests.memory}'";
    place.until(asked, "16Mi");
}

#[test]
fn a_deployment_and_a_daemon_set_share_name_labels_and_service() {
    let place = Place::new(&CLUSTER, "same-name");
    place.apply(&workload("Deployment", "rng", ""));
    place.apply(&workload("DaemonSet", "rng", ""));
    place.sh("kubectl expose deploy/rng --port 80 --target-port 8080");
    place
        .sh("kubectl rollout status deploy/rng --timeout=60s && kubectl rollout status ds/rng --timeout=60s");
    place.until("kubectl get endpoints rng -o json | jq '.subsets[0].addresses | length'", "2");
    let all = place.sh("kubectl get all -o name");
    for name in ["deployment.apps/rng", "daemonset.apps/rng", "service/rng", "replicaset.apps/rng-"] {
        assert!(all.contains(name), "{name} in {all}");
    }
    assert_eq!(all.matches("pod/rng-").count(), 2, "{all}");
    let columns = place.sh("kubectl get ds rng | head -1 | xargs");
    assert_eq!(columns, "NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE");
    // A service takes pods of every owner, and of none.
    place.apply(&workload("StatefulSet", "kept", ""));
    place.sh("kubectl run bare --image $REGISTRY/default/hello:1 --labels app=bare,tier=front");
    place.sh("kubectl create service clusterip all --tcp=80:8080 && kubectl set selector svc all tier=front");
    place.until("kubectl get endpoints all -o json | jq '.subsets[0].addresses | length'", "4");
    place.sh("kubectl delete sts/kept pod/bare");

    let daemon = place.sh("kubectl get pods -l controller-revision-hash -o name");
    place.sh("kubectl delete deployment rng");
    place.until("kubectl get pods -l app=rng -o name", &daemon);
    assert_eq!(place.value("ds/rng", "{.status.numberReady}"), "1");
    place.sh("kubectl delete ds rng");
    place.until("kubectl get pods -l app=rng -o name", "");
}

#[test]
fn a_bad_rollout_stops_and_is_undone() {
    let place = Place::new(&CLUSTER, "rollouts");
    place.apply(&workload("Deployment", "worker", "  replicas: 10\n"));
    place.sh("kubectl expose deploy/worker --port 8000 --target-port 8080");
    place.sh("kubectl rollout status deploy/worker --timeout=60s");
    assert!(place.sh("kubectl rollout history deploy worker").contains("1         <none>"));

    place.sh("kubectl set image deploy worker main=$REGISTRY/default/nothing:v0.3");
    place.sh("kubectl annotate deploy worker kubernetes.io/change-cause='try v0.3'");
    let counts =
        "kubectl get rs -o json | jq -c '[.items[] | [.status.replicas, .status.readyReplicas // 0]] | sort'";
    place.until(counts, "[[5,0],[8,8]]");
    place.until_that("kubectl get pods", |t| t.contains("ImagePullBackOff") || t.contains("ErrImagePull"));
    let said = place.fails("kubectl rollout status deploy worker --timeout=1s >&2");
    assert!(said.contains("5 out of 10 new replicas have been updated"), "{said}");
    let service = place.value("svc/worker", "{.spec.clusterIP}");
    assert_eq!(place.sh(&format!("curl -sS --max-time 5 http://{service}:8000/")), "hello world");
    assert_eq!(place.sh("kubectl get pods --no-headers | wc -l"), "13");
    let shown = place.sh("kubectl describe deploy worker");
    assert!(shown.contains("MinimumReplicasAvailable") && shown.contains("ReplicaSetUpdated"), "{shown}");
    assert_eq!(place.value("deploy/worker", "{.status.unavailableReplicas}"), "5");
    let shown = place.sh("kubectl describe rs | tr -s ' '");
    assert!(shown.contains("Pods Status: 0 Running / 5 Waiting / 0 Succeeded / 0 Failed"), "{shown}");
    place.until_that("kubectl describe pods | tr -s ' '", |text| {
        text.matches("Reason: ImagePullBackOff").count() == 5 && text.matches(" Ready False").count() == 5
    });

    let history = place.sh("kubectl rollout history deploy worker");
    assert!(history.contains("2         try v0.3"), "{history}");
    let second = place.sh("kubectl rollout history deploy worker --revision=2");
    assert!(second.contains("nothing:v0.3") && second.contains("pod-template-hash="), "{second}");

    place.sh("kubectl rollout undo deploy worker && kubectl rollout status deploy worker --timeout=60s");
    place.until(&living("worker"), "10");
    // The set of before is used again, the other kept at zero.
    place.until(counts, "[[0,0],[10,10]]");
    assert_eq!(
        place.value("deploy/worker", "{.metadata.annotations.deployment\\.kubernetes\\.io/revision}"),
        "3"
    );
}

#[test]
fn a_rollout_pauses_and_takes_the_steps_that_are_allowed() {
    let place = Place::new(&CLUSTER, "steps");
    place.apply(&workload("Deployment", "web", "  replicas: 2\n  minReadySeconds: 2\n"));
    place.sh("kubectl rollout status deploy/web --timeout=60s");
    place.sh("kubectl rollout pause deployment web && kubectl set env deployment web COLOUR=blue");
    place.until_value("deploy/web", "{.status.observedGeneration}", "3");
    assert_eq!(place.sh("kubectl get rs -o name | wc -l"), "1");
    place.sh("kubectl patch deployment web -p 'spec: {strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}}'");

    // Every state on the way is within the bounds: never fewer than two available, never more than three in all.
    let watch = "timeout 40 kubectl get deploy web -w -o json | \
                 jq --unbuffered -c '[.status.availableReplicas, .status.replicas, .status.updatedReplicas]' > seen & \
                 echo $! > watcher; sleep 0.2; kubectl rollout resume deployment web; \
                 kubectl rollout status deploy/web --timeout=60s; kill %1";
    place.sh(watch);
    let seen = std::fs::read_to_string(place.dir().join("seen")).unwrap();
    assert!(seen.lines().count() > 2, "{seen}");
    for line in seen.lines() {
        let [available, all, _]: [Option<u32>; 3] = serde_json::from_str(line).unwrap();
        assert!(available >= Some(2) && all <= Some(3), "{seen}");
    }
    assert_eq!(place.sh("kubectl get rs -o name | wc -l"), "2");
    assert!(place.sh("kubectl set env deploy/web --list").contains("COLOUR=blue"));
}

#[test]
fn a_rollout_without_progress_is_told_so() {
    let place = Place::new(&CLUSTER, "deadline");
    let text =
        workload("Deployment", "web", "  progressDeadlineSeconds: 1\n").replace("hello:1", "missing:1");
    place.apply(&text);
    let said = place.fails("kubectl rollout status deploy/web --timeout=60s");
    assert!(said.contains("exceeded its progress deadline"), "{said}");
    let path = "{.status.conditions[?(@.type==\"Progressing\")].reason}";
    assert_eq!(place.value("deploy/web", path), "ProgressDeadlineExceeded");

    // The image appears, and everything goes on by itself.
    let guest = wasmk_tests::program::guest("hello");
    place.sh(&format!("wasmk push {} default/missing:1", guest.display()));
    place.until_value("deploy/web", "{.status.readyReplicas}", "1");
}

#[test]
fn two_deployments_share_a_service_and_its_selector_chooses() {
    let place = Place::new(&CLUSTER, "canary");
    for colour in ["blue", "green"] {
        let env = format!("containers: [{{env: [{{name: TARGET, value: {colour}}}], ");
        let text = workload("Deployment", colour, "")
            .replace("tier: front", &format!("tier: front, colour: {colour}"));
        place.apply(&text.replace("containers: [{", &env));
    }
    place.sh(
        "kubectl create service clusterip web --tcp=8000:8080 && kubectl set selector svc web tier=front",
    );
    place.until("kubectl get endpoints web -o json | jq '.subsets[0].addresses | length'", "2");
    let address = place.value("svc/web", "{.spec.clusterIP}");
    let ask = format!(
        "for i in 1 2 3 4 5 6; do curl -sS --max-time 5 http://{address}:8000/; done | sort -u | xargs"
    );
    place.until(&ask, "hello blue hello green");
    place.sh("kubectl patch svc web -p 'spec: {selector: {colour: green}}'");
    place.until(&ask, "hello green");
}

#[test]
fn a_daemon_set_follows_labels_and_updates() {
    let place = Place::new(&CLUSTER, "daemons");
    let text = workload("DaemonSet", "fast", "")
        .replace("      containers", "      nodeSelector: {disk: ssd}\n      containers");
    place.apply(&text);
    place.until_value("ds/fast", "{.status.desiredNumberScheduled}", "0");
    place.sh("kubectl label node node-a disk=ssd");
    place.until_value("ds/fast", "{.status.numberReady}", "1");
    let pod = place.sh(&names("fast"));
    assert_eq!(pod.strip_prefix("fast-").map(str::len), Some(5), "{pod}");

    let first = place.value(&format!("pod/{pod}"), "{.metadata.labels.controller-revision-hash}");
    place.sh("kubectl set env ds/fast COLOUR=blue && kubectl rollout status ds/fast --timeout=60s");
    let history = place.sh("kubectl rollout history ds/fast");
    assert!(history.contains("1         <none>") && history.contains("2         <none>"), "{history}");
    place.until(&living("fast"), "1");
    place.sh("kubectl rollout undo ds/fast && kubectl rollout status ds/fast --timeout=60s");
    place.until(
        &format!("kubectl get pods -l app=fast,controller-revision-hash={first} -o name | wc -l"),
        "1",
    );

    // Left to the user: nothing changes until a pod is deleted.
    place.sh("kubectl patch ds fast -p 'spec: {updateStrategy: {type: OnDelete, rollingUpdate: null}}'");
    let old = place.sh(&names("fast"));
    place.sh("kubectl set env ds/fast COLOUR=red");
    place.until_value("ds/fast", "{.status.updatedNumberScheduled}", "");
    assert_eq!(place.sh(&names("fast")), old);
    place.sh(&format!("kubectl delete pod {old}"));
    place.until_value("ds/fast", "{.status.updatedNumberScheduled}", "1");
    let refused =
        place.fails(r#"kubectl patch ds fast -p '{"spec": {"selector": {"matchLabels": {"new": "x"}}}}'"#);
    assert!(refused.contains("field is immutable"), "{refused}");

    place.sh("kubectl label node node-a disk-");
    place.until(&living("fast"), "0");
}

#[test]
fn a_stateful_set_keeps_order_and_names() {
    let place = Place::new(&CLUSTER, "stateful");
    place.sh("kubectl create service clusterip db --clusterip=None");
    place.apply(&workload("StatefulSet", "db", "  serviceName: db\n  replicas: 3\n"));
    place.sh("kubectl rollout status sts/db --timeout=60s");
    assert_eq!(place.sh(&names("db")), "db-0\ndb-1\ndb-2");
    let starts = place.sh("kubectl get pods -l app=db --sort-by=.metadata.creationTimestamp -o name | xargs");
    assert_eq!(starts, "pod/db-0 pod/db-1 pod/db-2");
    assert_eq!(place.value("pod/db-1", "{.spec.hostname}.{.spec.subdomain}"), "db-1.db");

    let pod = place.value("pod/db-1", "{.metadata.uid}");
    place.sh("kubectl set env sts/db COLOUR=blue && kubectl rollout status sts/db --timeout=60s");
    place.until_that("kubectl get pod db-1 -o jsonpath='{.metadata.uid}'", |uid| {
        !uid.is_empty() && uid != pod
    });
    assert!(place.sh("kubectl rollout history sts/db").contains("2         <none>"));

    place.sh("kubectl scale sts/db --replicas=1");
    place.until(&names("db"), "db-0");
    place.sh("kubectl delete sts db");
    place.until(&living("db"), "0");
}

/// A job of the command guest.
fn job(name: &str, args: &str, more: &str) -> String {
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n{more}  template:\n    spec:\n      \
         restartPolicy: Never\n      containers: [{{name: main, image: $REGISTRY/default/command:1, args: {args}}}]\n"
    )
}

#[test]
fn a_job_is_seen_to_its_end_and_kept() {
    let place = Place::new(&CLUSTER, "jobs");
    let watch = "timeout 60 kubectl get --raw '/apis/batch/v1/jobs?watch=true' | \
                 jq --unbuffered -r 'select(.object.metadata.namespace == \"jobs\") | .type + \" \" + (.object.status.succeeded // 0 | tostring)' > seen & \
                 kubectl create -f job.yaml; kubectl wait --for=condition=complete job/oneshot --timeout=60s; \
                 for i in $(seq 100); do grep -q 'MODIFIED 1' seen && break; sleep 0.1; done; kill %1";
    let registry = CLUSTER.address("registry").to_string();
    place.write("job.yaml", &job("oneshot", "[print, done]", "").replace("$REGISTRY", &registry));
    place.sh(watch);
    let seen = std::fs::read_to_string(place.dir().join("seen")).unwrap();
    assert!(seen.starts_with("ADDED 0") && seen.contains("MODIFIED 1"), "{seen}");

    assert_eq!(place.sh("kubectl get jobs --no-headers | awk '{print $2, $3}'"), "Complete 1/1");
    let pod = place.sh("kubectl get pods -l job-name=oneshot -o name");
    assert!(place.sh("kubectl get pods -l job-name=oneshot --no-headers").contains("Completed"));
    assert!(place.sh(&format!("kubectl logs {pod}")).contains("done"));
    // A plain DELETE takes the job alone.
    place.sh("kubectl proxy --port=0 > port & echo $! > proxy; until [ -s port ]; do sleep 0.05; done; \
              curl -sS -X DELETE http://$(grep -o '127[0-9.:]*' port)/apis/batch/v1/namespaces/jobs/jobs/oneshot; kill $(cat proxy)");
    place.until_that("kubectl get jobs -o name", str::is_empty);
    place.until_value(&pod, "{.metadata.ownerReferences}", "");
    assert_eq!(place.value(&pod, "{.status.phase}"), "Succeeded");
}

#[test]
fn a_job_retries_and_gives_up() {
    let place = Place::new(&CLUSTER, "retries");
    place.apply(&job("failing", "[exit, '1']", "  backoffLimit: 1\n"));
    place.sh("kubectl wait --for=condition=failed job/failing --timeout=90s");
    assert_eq!(place.value("job/failing", "{.status.failed}"), "2");
    assert!(
        place
            .value("job/failing", "{.status.conditions[?(@.type==\"Failed\")].reason}")
            .contains("BackoffLimitExceeded")
    );
}

#[test]
fn jobs_run_side_by_side_or_drain_a_queue() {
    let place = Place::new(&CLUSTER, "parallel");
    place.apply(&job("many", "[sleep, '100']", "  completions: 10\n  parallelism: 5\n"));
    place.apply(&job("queue", "[sleep, '100']", "  parallelism: 3\n"));
    place.sh("kubectl wait --for=condition=complete job/many job/queue --timeout=60s");
    assert_eq!(place.value("job/many", "{.status.succeeded}"), "10");
    assert_eq!(place.sh("kubectl get pods -l job-name=queue -o name | wc -l"), "3");
    assert_eq!(place.value("job/queue", "{.spec.completions}"), "");
}

#[test]
fn a_cron_job_is_made_suspended_and_started_by_hand() {
    let place = Place::new(&CLUSTER, "cron");
    place.sh("kubectl create cronjob tick --image $REGISTRY/default/command:1 --schedule='*/5 * * * *' -- print tick");
    assert_eq!(
        place.sh("kubectl get cronjob tick --no-headers | awk '{print $1, $2, $3, $4, $5, $6}'"),
        "tick */5 * * * *"
    );
    place.sh("kubectl create job now --from=cronjob/tick");
    place.until_value("job/now", "{.spec.template.spec.containers[0].command}", r#"["print","tick"]"#);
    let wrong = place.fails("kubectl create cronjob wrong --image x --schedule='61 * * * *'");
    assert!(wrong.contains("spec.schedule: Invalid value"), "{wrong}");
}

#[test]
fn a_budget_holds_back_an_eviction() {
    let place = Place::new(&CLUSTER, "budgets");
    place.apply(&workload("Deployment", "web", "  replicas: 2\n"));
    place.sh("kubectl create pdb web --selector=app=web --min-available=2");
    place.sh("kubectl rollout status deploy/web --timeout=60s");
    place.until_value("pdb/web", "{.status.currentHealthy}", "2");
    let pod = place.sh(&format!("{} | head -1", names("web")));
    let eviction = format!(
        r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{pod}","namespace":"budgets"}}}}"#
    );
    place.write("eviction.json", &eviction);
    let evict =
        format!("kubectl create --raw /api/v1/namespaces/budgets/pods/{pod}/eviction -f eviction.json");
    assert!(place.fails(&evict).contains("violate the pod's disruption budget"));
    place.sh("kubectl patch pdb web -p '{\"spec\": {\"minAvailable\": 1}}'");
    place.until_value("pdb/web", "{.status.disruptionsAllowed}", "1");
    place.sh(&evict);
    place.until(&format!("kubectl get pod {pod} -o name --ignore-not-found"), "");
}

#[test]
fn an_autoscaler_without_figures_changes_nothing() {
    let place = Place::new(&CLUSTER, "hpa");
    place.apply(&workload("Deployment", "web", "  replicas: 3\n"));
    place.sh("kubectl autoscale deploy web --min=2 --max=5 --cpu-percent=80");
    place.until_that("kubectl get hpa web --no-headers", |row| row.contains("cpu: <unknown>/80%"));
    place.until_value("hpa/web", "{.status.conditions[?(@.type==\"ScalingActive\")].status}", "False");
    assert_eq!(place.value("deploy/web", "{.spec.replicas}"), "3");
    // A manifest that does not say a number leaves the one that is there alone.
    place.apply(&workload("Deployment", "other", ""));
    place.sh("kubectl autoscale deploy other --min=2 --max=5 --cpu-percent=80");
    place.sh("kubectl scale deploy/other --replicas=4");
    place.apply(&workload("Deployment", "other", "  revisionHistoryLimit: 3\n"));
    assert_eq!(place.value("deploy/other", "{.spec.replicas}"), "4");
}

#[test]
fn an_autoscaler_follows_the_load() {
    let place = Place::new(&CLUSTER, "load");
    let small = workload("ReplicaSet", "kuard", "  replicas: 1\n")
        .replace("ports: [", "resources: {requests: {cpu: 1m}}, ports: [");
    place.apply(&small);
    place.sh("kubectl expose rs kuard --port 8080");
    place.sh("kubectl autoscale rs kuard --min=2 --max=5 --cpu-percent=80");
    // Down as soon as there is nothing to do, not after the usual five minutes.
    place.sh(
        r#"kubectl patch hpa kuard --type merge -p '{"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}}'"#,
    );
    place.until_value("rs/kuard", "{.spec.replicas}", "2");
    let address = format!("{}:8080", place.value("service/kuard", "{.spec.clusterIP}"));
    let stop = Arc::new(AtomicBool::new(false));
    let (watched, target) = (stop.clone(), address.clone());
    let load = std::thread::spawn(move || {
        while !watched.load(Ordering::Relaxed) {
            let Ok(mut stream) = TcpStream::connect(&target) else { continue };
            // Whatever comes back: what counts is the work it was.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: kuard\r\nConnection: close\r\n\r\n");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    // Looks at the figures and at the pods are a quarter of a minute apart.
    let replicas = |wanted: &str| {
        let out = place.output(&format!(
            "kubectl wait rs/kuard --for=jsonpath='{{.spec.replicas}}'={wanted} --timeout=150s"
        ));
        assert!(out.status.success(), "{}", place.sh("kubectl describe hpa kuard"));
    };
    replicas("5");
    place.until_that("kubectl get hpa kuard --no-headers", |row| {
        row.contains("%/80%") && !row.contains("unknown")
    });
    stop.store(true, Ordering::Relaxed);
    load.join().expect("the load to end");
    replicas("2");
    let events = place.sh(
        "kubectl get events --field-selector involvedObject.name=kuard -o jsonpath='{.items[*].message}'",
    );
    assert!(events.contains("New size: 5") && events.contains("New size: 2"), "{events}");
}

#[test]
fn a_daemon_set_with_another_selector_begins_beside_the_old_pods() {
    let place = Place::new(&CLUSTER, "rng");
    let text = workload("DaemonSet", "rng", "");
    place.apply(&text);
    place.until_value("ds/rng", "{.status.numberReady}", "1");
    let old = place.sh(&names("rng"));
    let refused = place
        .fails(r#"kubectl patch ds rng -p '{"spec": {"selector": {"matchLabels": {"active": "yes"}}}}'"#);
    assert!(refused.contains("field is immutable"), "{refused}");

    place.sh("kubectl delete ds rng --cascade=orphan");
    place.until(&format!("kubectl get pod {old} -o jsonpath='{{.metadata.ownerReferences}}'"), "");
    let other = text
        .replace("matchLabels: {app: rng}", "matchLabels: {app: rng, active: 'yes'}")
        .replace("labels: {app: rng, tier: front}", "labels: {app: rng, active: 'yes', tier: front}");
    place.apply(&other);
    place.until_value("ds/rng", "{.status.numberReady}", "1");
    place.until("kubectl get pods -l app=rng,active=yes --no-headers | wc -l", "1");
    place.until(&living("rng"), "2");
    assert_eq!(
        place.value(&format!("pod/{old}"), "{.metadata.deletionTimestamp}"),
        "",
        "nobody's, and left alone"
    );
    // Given the label, the old pod is taken over, and is one too many.
    place.sh(&format!("kubectl label pod {old} active=yes"));
    place.until(&living("rng"), "1");
}

#[test]
fn bootstrap_tokens_sign_what_is_public_and_run_out() {
    let place = Place::new(&CLUSTER, "signing");
    let token = place.sh("wasmk token create -q");
    let (id, secret) = token.split_once('.').expect("a token of two parts");
    // What follows is the digest of the cluster's authority.
    let secret = secret.split('@').next().unwrap_or(secret);
    let signature = format!(
        "kubectl get cm -n kube-public cluster-info -o json | jq -r '.data[\"jws-kubeconfig-{id}\"] // empty'"
    );
    let signed = place.until_that(&signature, |text| !text.is_empty());
    let (header, mac) = signed.split_once("..").expect("a signature without its content");
    // What a joining machine does: check the content by the token's own secret.
    let checked = place.sh(&format!(
        "content=$(kubectl get cm -n kube-public cluster-info -o json | jq -j .data.kubeconfig | base64 -w0 | tr '+/' '-_' | tr -d =)\n\
         printf %s \"{header}.$content\" | openssl dgst -sha256 -hmac {secret} -binary | base64 -w0 | tr '+/' '-_' | tr -d ="
    ));
    assert_eq!(checked, mac);
    let past = "MjAyMC0wMS0wMVQwMDowMDowMFo="; // 2020-01-01T00:00:00Z
    place.sh(&format!(
        r#"kubectl patch secret -n kube-system bootstrap-token-{id} -p '{{"data": {{"expiration": "{past}"}}}}'"#
    ));
    place.until(
        &format!("kubectl get secret -n kube-system bootstrap-token-{id} --ignore-not-found -o name"),
        "",
    );
    place.until(&signature, "");
}

#[test]
fn templates_must_fit_their_selectors() {
    let place = Place::new(&CLUSTER, "misfits");
    for kind in ["Deployment", "ReplicaSet", "DaemonSet", "StatefulSet"] {
        let text = workload(kind, "web", "").replace("labels: {app: web", "labels: {app: other");
        let said = place.refuses(&text);
        assert!(said.contains("`selector` does not match template `labels`"), "{kind}: {said}");
    }
    let said = place.refuses(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: web}\nspec:\n  manualSelector: true\n  selector: {matchLabels: {app: web}}\n  \
         template:\n    metadata: {labels: {app: other}}\n    spec: {restartPolicy: Never, containers: [{name: c, image: x}]}\n",
    );
    assert!(said.contains("`selector` does not match template `labels`"), "{said}");
    let said = place.refuses(&workload("DaemonSet", "web", "  replicas: 1\n"));
    assert!(said.contains(r#"unknown field "spec.replicas""#), "{said}");
    let text = workload("DaemonSet", "web", "  replicas: 1\n").replace("$REGISTRY", "r");
    place.write("loose.yaml", &text);
    assert_eq!(place.sh("kubectl apply -f loose.yaml --validate=false"), "daemonset.apps/web created");
    assert_eq!(place.value("ds/web", "{.spec.replicas}"), "");
}
