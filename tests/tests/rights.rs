//! The cluster's own parts have the rights they need: whatever they do for users, nothing of it is refused.

use std::collections::BTreeSet;

use serde_json::Value;
use wasmk_tests::program::Program;

const AUDIT: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules: [{level: Metadata, userGroups: ['system:authenticated']}]
";

/// Something for every controller to do.
const WORK: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: IMAGE
        args: [sleep, '600000']
        resources: {requests: {cpu: 10m, memory: 8Mi}}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 1
  selector: {app: old}
  template:
    metadata: {labels: {app: old}}
    spec: {containers: [{name: main, image: IMAGE, args: [sleep, '600000']}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: everywhere}
spec:
  selector: {matchLabels: {app: everywhere}}
  template:
    metadata: {labels: {app: everywhere}}
    spec: {containers: [{name: main, image: IMAGE, args: [sleep, '600000']}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 1
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers: [{name: main, image: IMAGE, args: [sleep, '600000'], volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  ttlSecondsAfterFinished: 1
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: IMAGE, args: [print, x]}]}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: minutely}
spec:
  schedule: '* * * * *'
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: main, image: IMAGE, args: [print, x]}]}}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 90}}}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8099}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: outside}
subsets: [{addresses: [{ip: 192.0.2.1}], ports: [{port: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: much}
spec: {hard: {pods: '50', configmaps: '50'}}
---
apiVersion: v1
kind: Secret
metadata: {name: legacy, annotations: {kubernetes.io/service-account.name: default}}
type: kubernetes.io/service-account-token
---
apiVersion: v1
kind: ConfigMap
metadata: {name: owned-by-nobody, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: none, uid: 00000000-0000-4000-8000-000000000000}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: sum-of-parts}
aggregationRule: {clusterRoleSelectors: [{matchLabels: {part: 'yes'}}]}
rules: []
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: fn}
spec: {template: {spec: {containers: [{image: FUNCTION}]}}}
";

/// What the log has of refusals to parts of the cluster: who, what, and on what.
fn refusals(log: &std::path::Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(log).expect("an audit log");
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let refused = events.filter(|e| {
        let user = e["user"]["username"].as_str().unwrap_or("");
        let code = e["responseStatus"]["code"].as_i64();
        // What a controller makes up for meanwhile has no place any more where all goes.
        let leaving =
            e["responseStatus"]["message"].as_str().is_some_and(|m| m.contains("is being terminated"));
        user.starts_with("system:")
            && user != "system:anonymous"
            && matches!(code, Some(401 | 403))
            && !leaving
    });
    refused
        .map(|e| {
            let of = &e["objectRef"];
            format!("{} {} {} {}", e["user"]["username"], e["verb"], of["resource"], of["subresource"])
        })
        .collect()
}

#[test]
fn nothing_of_the_clusters_own_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (policy, log) = (dir.path().join("policy.yaml"), dir.path().join("audit.log"));
    std::fs::write(&policy, AUDIT).expect("a policy file");
    let flags = ["--audit-policy-file", policy.to_str().unwrap(), "--audit-log-path", log.to_str().unwrap()];
    let flags: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let cluster = Program::start_in(dir, &flags);
    let (image, function) = (cluster.push("command"), cluster.push("hello-http"));
    cluster.kubectl(&["create", "namespace", "work"]);
    let text = WORK.replace("IMAGE", &image).replace("FUNCTION", &function);
    let applied = cluster.kubectl_output(&["apply", "-n", "work", "-f", "-"], Some(&text));
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    let value = |object: &str, path: &str| {
        let path = format!("jsonpath={path}");
        let out = cluster.kubectl_output(&["get", "-n", "work", object, "-o", &path], None);
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    for (object, path, expected) in [
        ("deployment/web", "{.status.availableReplicas}", "2"),
        ("rc/old", "{.status.readyReplicas}", "1"),
        ("daemonset/everywhere", "{.status.numberReady}", "1"),
        ("statefulset/db", "{.status.readyReplicas}", "1"),
        ("pvc/data-db-0", "{.status.phase}", "Bound"),
        ("pdb/web", "{.status.currentHealthy}", "2"),
        ("quota/much", "{.status.hard.pods}", "50"),
        ("ksvc/fn", "{.status.conditions[?(@.type==\"Ready\")].status}", "True"),
        // Gone by the time that they live after their end, and by nobody owning them.
        ("job/once", "{.metadata.name}", ""),
        ("configmap/owned-by-nobody", "{.metadata.name}", ""),
    ] {
        cluster.until(&format!("{object} {path}"), |_| value(object, path), |said| said == expected);
    }
    cluster.until("a token", |_| value("secret/legacy", "{.data.token}"), |token| !token.is_empty());
    cluster.kubectl(&["scale", "-n", "work", "deployment/web", "--replicas=1"]);
    cluster.kubectl(&["set", "env", "-n", "work", "deployment/web", "A=b"]);
    cluster.kubectl(&["rollout", "status", "-n", "work", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["delete", "namespace", "work", "--timeout=60s"]);
    let refused = refusals(&cluster.scratch().join("audit.log"));
    assert!(refused.is_empty(), "{refused:#?}");
    // The administrator reads the same file by the API.
    let listed = cluster.kubectl(&["get", "--raw", "/logs/"]);
    assert!(listed.contains("audit.log"), "{listed}");
    assert!(cluster.kubectl(&["get", "--raw", "/logs/audit.log"]).contains("\"auditID\""));
    assert!(
        cluster
            .kubectl_refused(&["get", "--raw", "/logs/audit.log", "--as=ann"], None)
            .contains("(Forbidden)")
    );
}
