//! What containers of pods are given: configuration, secrets, and volumes of every kind that a node has.
//! Skipped, with a word, where containers cannot be run.

use std::{path::Path, process::Command};

use wasmk_tests::{
    node::{Node, container, fetch, pod, together},
    program::Program,
};

fn mount(name: &str, at: &str) -> String {
    format!(", volumeMounts: [{{name: {name}, mountPath: {at}}}]")
}

fn volume(name: &str, source: &str) -> String {
    format!("volumes: [{{name: {name}, {source}}}], ")
}

#[test]
fn configuration_reaches_containers() {
    let Some(node) = Node::start() else { return };
    together(
        &node.program,
        &[
            mounted_maps_follow_and_variables_stay,
            secrets_are_in_memory_only,
            a_port_comes_from_a_map,
            a_program_reads_its_map_from_the_api,
        ],
    );
}

fn mounted_maps_follow_and_variables_stay(p: &Program) {
    p.kubectl(&["create", "configmap", "moving", "--from-literal=key=before"]);
    let env = format!(
        "{}, env: [{{name: KEY, valueFrom: {{configMapKeyRef: {{name: moving, key: key}}}}}}]",
        mount("v", "/conf")
    );
    let spec = volume("v", "configMap: {name: moving}");
    p.apply(&pod("following", &spec, &[container("main", "sleep 600", &env)]));
    p.until_row("following", "1/1 Running");
    assert_eq!(p.within("following", "cat /conf/key; echo; echo $KEY"), "before\nbefore\n");
    p.kubectl(&["patch", "configmap", "moving", "-p", r#"{"data": {"key": "after"}}"#]);
    p.until("the file follows", |p| p.within("following", "cat /conf/key"), |text| text == "after");
    assert_eq!(p.within("following", "tr '\\0' '\\n' </proc/1/environ | grep ^KEY"), "KEY=before\n");
    assert_eq!(p.value("pod/following", "{.status.containerStatuses[0].restartCount}"), "0");
    p.kubectl(&["delete", "pod", "following", "--now"]);
}

fn secrets_are_in_memory_only(p: &Program) {
    let secret = "very-secret-words-of-this-test";
    p.kubectl(&["create", "secret", "generic", "hidden", &format!("--from-literal=key={secret}")]);
    let env = format!(
        "{}, env: [{{name: KEY, valueFrom: {{secretKeyRef: {{name: hidden, key: key}}}}}}]",
        mount("v", "/secret")
    );
    p.apply(&pod(
        "keeper",
        &volume("v", "secret: {secretName: hidden}"),
        &[container("main", "sleep 600", &env)],
    ));
    p.until_row("keeper", "1/1 Running");
    assert_eq!(p.within("keeper", "cat /secret/key; echo; echo $KEY"), format!("{secret}\n{secret}\n"));
    assert_eq!(p.within("keeper", "awk '$2 == \"/secret\" {print $3}' /proc/mounts"), "tmpfs\n");
    assert!(p.kubectl_refused(&["exec", "keeper", "--", "touch", "/secret/x"], None).contains("Read-only"));
    let node = format!("{}/node", p.data_dir());
    let found = Command::new("grep").args(["-rlF", secret, &node]).output().expect("grep runs");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "nothing of it is on the node's disk");
    p.kubectl(&["delete", "pod", "keeper", "--now"]);
}

fn a_port_comes_from_a_map(p: &Program) {
    p.kubectl(&["create", "configmap", "registry", "--from-literal=http.addr=:80"]);
    let env =
        ", env: [{name: REGISTRY_HTTP_ADDR, valueFrom: {configMapKeyRef: {name: registry, key: http.addr}}}]";
    let line = "mkdir -p /www/v2; echo {} >/www/v2/index.html; httpd -f -p ${REGISTRY_HTTP_ADDR#:} -h /www";
    p.apply(&pod("registry", "", &[container("main", line, env)]));
    p.until_row("registry", "1/1 Running");
    let ip = p.value("pod/registry", "{.status.podIP}");
    p.until("it answers on port 80", |_| fetch(&format!("http://{ip}/v2/")), |text| text == "{}\n");
    p.kubectl(&["delete", "pod", "registry", "--now"]);
}

fn a_program_reads_its_map_from_the_api(p: &Program) {
    p.kubectl(&["create", "serviceaccount", "app"]);
    p.kubectl(&["create", "configmap", "of-app", "--from-literal=colour=blue"]);
    p.kubectl(&[
        "create",
        "role",
        "app",
        "--verb=get,update,patch",
        "--resource=configmaps",
        "--resource-name=of-app",
    ]);
    p.kubectl(&["create", "rolebinding", "app", "--role=app", "--serviceaccount=default:app"]);
    let tokens = "/var/run/secrets/kubernetes.io/serviceaccount";
    p.apply(&pod("asking", "serviceAccountName: app, ", &[container("main", "sleep 600", "")]));
    p.until_row("asking", "1/1 Running");
    // It reaches the API by name; what it asks with its token and authority is asked here, for busybox speaks
    // no TLS that is still taken.
    p.within("asking", "nc -w 5 kubernetes.default.svc 443 </dev/null");
    let read = |file: &str| p.within("asking", &format!("cat {tokens}/{file}"));
    let (token, namespace) = (read("token"), read("namespace"));
    let authority = p.scratch().join("asking-ca.crt");
    std::fs::write(&authority, read("ca.crt")).expect("a file");
    let ask = |name: &str| {
        let url = format!("https://{}/api/v1/namespaces/{namespace}/configmaps/{name}", p.address("api"));
        let header = format!("Authorization: Bearer {token}");
        let out = Command::new("curl")
            .args(["-sS", "--max-time", "10", "--cacert"])
            .arg(&authority)
            .args(["-H", &header, &url])
            .output()
            .expect("curl runs");
        String::from_utf8_lossy(&out.stdout).replace([' ', '\n'], "")
    };
    let map = ask("of-app");
    assert!(map.contains(r#""colour":"blue""#), "{map}");
    assert!(ask("kube-root-ca.crt").contains(r#""code":403"#), "another map is not its to read");
    // Whoever may write one stores state in it: a lock, a release.
    let as_app = "--as=system:serviceaccount:default:app";
    p.kubectl(&["patch", "configmap", "of-app", "-p", r#"{"data": {"holder": "app-0"}}"#, as_app]);
    assert_eq!(p.value("configmap/of-app", "{.data.holder}"), "app-0");
    let refused = p.kubectl_refused(
        &["patch", "configmap", "kube-root-ca.crt", "-p", r#"{"data": {"x": "y"}}"#, as_app],
        None,
    );
    assert!(refused.contains("forbidden"), "{refused}");
    p.kubectl(&["delete", "pod", "asking", "--now"]);
}

#[test]
fn volumes_reach_containers() {
    let Some(node) = Node::start() else { return };
    together(
        &node.program,
        &[
            replicas_share_a_claim,
            state_survives_every_pod,
            one_template_takes_any_storage,
            mounts_are_passed_on,
            old_drivers_are_named,
        ],
    );
}

fn claim(name: &str, mode: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [{mode}]{more}, \
         resources: {{requests: {{storage: 1Mi}}}}}}\n---\n"
    )
}

fn replicas_share_a_claim(p: &Program) {
    p.apply(&claim("shared", "ReadWriteMany", ""));
    let each = container("main", "echo $(hostname) >>/v/names; sleep 600", &mount("v", "/v"));
    p.apply(&format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: sharing}}\nspec: {{replicas: 3, selector: {{matchLabels: {{app: sharing}}}}, \
         template: {{metadata: {{labels: {{app: sharing}}}}, spec: {{{}terminationGracePeriodSeconds: 0, containers: [{each}]}}}}}}\n",
        volume("v", "persistentVolumeClaim: {claimName: shared}")
    ));
    p.kubectl(&["rollout", "status", "deployment/sharing", "--timeout=60s"]);
    let names = |p: &Program| p.kubectl(&["exec", "deployment/sharing", "--", "cat", "/v/names"]);
    p.until("each has written", names, |text| text.lines().count() == 3);
    // A command finds a pod of the deployment by itself.
    assert_eq!(p.wasmk(&["exec", "deploy/sharing", "--", "cat", "/v/names"]), names(p));
    assert_eq!(p.value("pvc/shared", "{.status.accessModes[0]}"), "ReadWriteMany");
    p.kubectl(&["delete", "deployment", "sharing"]);
}

fn state_survives_every_pod(p: &Program) {
    let main = container("main", "echo run >>/data/runs; sleep 600", &mount("data", "/data"));
    p.apply(&format!(
        "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: keeping}}\nspec: {{replicas: 2, serviceName: keeping, podManagementPolicy: Parallel, \
         selector: {{matchLabels: {{app: keeping}}}}, template: {{metadata: {{labels: {{app: keeping}}}}, spec: {{terminationGracePeriodSeconds: 0, \
         containers: [{main}]}}}}, volumeClaimTemplates: [{{metadata: {{name: data}}, spec: {{accessModes: [ReadWriteOnce], \
         resources: {{requests: {{storage: 1Mi}}}}}}}}]}}\n"
    ));
    let runs = |pod: &'static str| {
        move |p: &Program| {
            let out = p.kubectl_output(&["exec", pod, "--", "cat", "/data/runs"], None);
            String::from_utf8_lossy(&out.stdout).lines().count()
        }
    };
    for expect in 1..=3 {
        for pod in ["keeping-0", "keeping-1"] {
            p.until(&format!("run {expect} of {pod}"), runs(pod), |n| *n == expect);
        }
        match expect {
            1 => drop(p.kubectl(&["delete", "pod", "-l", "app=keeping"])),
            2 => drop(p.kubectl(&["set", "env", "statefulset/keeping", "ROUND=3"])),
            _ => {}
        }
    }
    // Every pod has a claim of its own, which stays when there are fewer pods, and when there is no set.
    let claims = |p: &Program| {
        let all = p.kubectl(&["get", "pvc", "-l", "app=keeping", "-o", "name"]);
        all.lines().map(|name| name.replace("persistentvolumeclaim/", "")).collect::<Vec<_>>().join(" ")
    };
    let pods = |p: &Program| p.kubectl(&["get", "pods", "-l", "app=keeping", "-o", "name"]);
    assert_eq!(claims(p), "data-keeping-0 data-keeping-1");
    p.kubectl(&["scale", "statefulset", "keeping", "--replicas=1"]);
    p.until("one pod", pods, |names| names == "pod/keeping-0\n");
    assert_eq!(claims(p), "data-keeping-0 data-keeping-1");
    p.kubectl(&["delete", "statefulset", "keeping"]);
    p.until("no pod", pods, |names| names.is_empty());
    assert_eq!(claims(p), "data-keeping-0 data-keeping-1");
}

/// Only the claim's class differs: a directory made for it, one that was there, or the node's default.
fn one_template_takes_any_storage(p: &Program) {
    let dir = p.scratch().join("by-hand");
    std::fs::create_dir(&dir).expect("a directory");
    p.apply(&format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: by-hand}}\nspec: {{capacity: {{storage: 1Gi}}, accessModes: [ReadWriteOnce], \
         storageClassName: by-hand, hostPath: {{path: {}}}}}\n---\n\
         apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: made}}\nprovisioner: wasmk.dev/local-path\nparameters: {{repl: '1', priority_io: high}}\n",
        dir.display()
    ));
    for (name, class) in [
        ("of-hand", ", storageClassName: by-hand"),
        ("of-class", ", storageClassName: made"),
        ("of-default", ""),
    ] {
        p.apply(&claim(name, "ReadWriteOnce", class));
        let spec = format!(
            "restartPolicy: Never, {}",
            volume("v", &format!("persistentVolumeClaim: {{claimName: {name}}}"))
        );
        p.apply(&pod(
            name,
            &spec,
            &[container("main", "echo kept >/v/file; cat /v/file", &mount("v", "/v"))],
        ));
        p.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
        assert_eq!(p.kubectl(&["logs", name]), "kept\n");
    }
    assert_eq!(std::fs::read_to_string(dir.join("file")).expect("what it wrote"), "kept\n");
    p.kubectl(&["delete", "pod", "of-hand", "of-class", "of-default"]);
}

fn sh(line: &str) -> bool {
    Command::new("sh").args(["-c", line]).status().is_ok_and(|s| s.success())
}

/// A mount made in a privileged container is there on the node and in other pods that ask for it.
fn mounts_are_passed_on(p: &Program) {
    let dir = p.scratch().join("passed-on");
    std::fs::create_dir(&dir).expect("a directory");
    let at = dir.display();
    assert!(sh(&format!("mount --bind {at} {at} && mount --make-rshared {at}")), "a shared mount");
    let source = volume("v", &format!("hostPath: {{path: {at}}}"));
    let with = |way: &str, more: &str| {
        format!(", volumeMounts: [{{name: v, mountPath: /v, mountPropagation: {way}}}]{more}")
    };
    let privileged = ", securityContext: {privileged: true}";
    p.apply(&pod("seeing", &source, &[container("main", "sleep 600", &with("HostToContainer", ""))]));
    p.apply(&pod("blind", &source, &[container("main", "sleep 600", &with("None", ""))]));
    p.until_row("seeing", "1/1 Running");
    p.until_row("blind", "1/1 Running");
    let line = "mkdir /v/in && mount -t tmpfs none /v/in && echo mounted >/v/in/file && sleep 600";
    p.apply(&pod("mounting", &source, &[container("main", line, &with("Bidirectional", privileged))]));
    let file = dir.join("in/file");
    p.until("the node has it", |_| Path::new(&file).exists(), |there| *there);
    assert_eq!(p.within("seeing", "cat /v/in/file"), "mounted\n");
    assert_eq!(p.within("blind", "cat /v/in/file 2>/dev/null || echo nothing"), "nothing\n");
    p.kubectl(&["delete", "pod", "seeing", "blind", "mounting", "--now"]);
    assert!(sh(&format!("umount -R {at}")));
    // Who is not privileged may not pass mounts on.
    let refused = pod("plain", &source, &[container("main", "true", &with("Bidirectional", ""))]);
    let out = p.kubectl_output(&["apply", "-f", "-"], Some(&refused));
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("Bidirectional"),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn old_drivers_are_named(p: &Program) {
    p.apply(&pod(
        "flexible",
        &volume("v", "flexVolume: {driver: example.com/disk}"),
        &[container("main", "true", &mount("v", "/v"))],
    ));
    p.until_event("flexible", "superseded by CSI drivers");
    p.until_row("flexible", "0/1 ContainerCreating");
    p.kubectl(&["delete", "pod", "flexible", "--now"]);
}
