//! What programs get from config maps, secrets and the pod itself.

use std::sync::LazyLock;

use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("command");
    program
});

/// A pod that does what `args` say; `container` and `spec` are more lines of either.
fn pod(name: &str, args: &str, container: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}, annotations: {{note: here}}}}\nspec:\n  \
         restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n{spec}  containers:\n  - name: main\n    \
         image: $REGISTRY/default/command:1\n    args: {args}\n{container}"
    )
}

/// What the pod printed when it had ended.
fn printed(place: &Place, name: &str) -> String {
    place.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
    place.sh(&format!("kubectl logs {name}"))
}

#[test]
fn maps_are_kept_as_they_were_written() {
    let place = Place::new(&CLUSTER, "maps");
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: customer1}\ndata: {TEXT1: Customer1_Company, TEXT2: Welcomes You, COMPANY: Customer1 Company Technology Pct. Ltd.}\n";
    place.write("customer1-configmap.yaml", text);
    assert_eq!(place.sh("kubectl create -f customer1-configmap.yaml"), "configmap/customer1 created");
    assert_eq!(
        place.sh("kubectl get cm customer1 -o json | jq -c .data"),
        r#"{"COMPANY":"Customer1 Company Technology Pct. Ltd.","TEXT1":"Customer1_Company","TEXT2":"Welcomes You"}"#
    );
    place.sh("openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -subj /CN=x -days 1 2>/dev/null; kubectl create secret tls web --cert=c --key=k");
    assert_eq!(place.sh("kubectl get secret web --no-headers | awk '{print $2, $3}'"), "kubernetes.io/tls 2");
    place.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: my-password}\ntype: Opaque\ndata: {password: bXlzcWxwYXNzd29yZAo=}\n");
    assert_eq!(place.sh("kubectl get secret my-password --no-headers | awk '{print $2, $3}'"), "Opaque 1");
    assert!(place.sh("kubectl describe secret my-password").contains("password:  14 bytes"));
    let bad = "apiVersion: v1\nkind: Secret\nmetadata: {name: bad}\ntype: kubernetes.io/tls\n";
    assert!(place.refuses(bad).contains("data[tls.crt]: Required value"));
    place.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: fixed}\nimmutable: true\ndata: {a: b}\n");
    assert!(
        place
            .fails("kubectl patch cm fixed -p '{\"data\": {\"a\": \"c\"}}'")
            .contains("field is immutable when `immutable` is set")
    );
    // A role may open the one and not the other.
    place.sh("kubectl create role reader --verb=get --resource=configmaps && kubectl create rolebinding reader --role=reader --user=jane");
    assert_eq!(place.sh("kubectl get cm fixed --as jane -o name"), "configmap/fixed");
    assert!(place.fails("kubectl get secret web --as jane").contains("cannot get resource \"secrets\""));
}

#[test]
fn a_missing_key_holds_the_container_until_it_is_there() {
    let place = Place::new(&CLUSTER, "missing");
    let env = "    env: [{name: ADDR, valueFrom: {configMapKeyRef: {name: registry, key: http.addr}}}]\n";
    place.apply(&pod("waiting", "[print]", env, ""));
    place.until_value(
        "pod/waiting",
        "{.status.containerStatuses[0].state.waiting.reason}",
        "CreateContainerConfigError",
    );
    assert!(place.sh("kubectl get pod waiting --no-headers").contains("CreateContainerConfigError"));
    place.sh("kubectl create configmap registry --from-literal=http.addr=0.0.0.0:80");
    assert!(printed(&place, "waiting").contains("ADDR=0.0.0.0:80"));
}

#[test]
fn a_program_knows_its_pod_and_its_limits() {
    let place = Place::new(&CLUSTER, "downward");
    let env = "    resources: {limits: {memory: 128Mi, cpu: 500m}}\n    env:\n    \
               - {name: NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}\n    \
               - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}\n    \
               - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}\n    \
               - {name: FQDN, value: api.$(NAMESPACE).svc.cluster.local}\n    - {name: FIXED, value: plain}\n";
    place.apply(&pod("self", "[print, $(NAMESPACE)]", env, ""));
    let said = printed(&place, "self");
    let ip = place.value("pod/self", "{.status.podIP}");
    for line in [
        "NAMESPACE=downward",
        "MEMORY=134217728",
        "FQDN=api.downward.svc.cluster.local",
        "FIXED=plain",
        &format!("IP={ip}"),
    ] {
        assert!(said.lines().any(|l| l == line), "{line} in {said}");
    }
    assert!(said.contains(r#"args ["print", "downward"]"#), "{said}");
    assert!(ip.starts_with("127.42."), "{ip}");

    let mount = "    volumeMounts: [{name: self, mountPath: /etc/self}]\n";
    let volume = "  volumes: [{name: self, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, \
                  {path: note, fieldRef: {fieldPath: \"metadata.annotations['note']\"}}]}}]\n";
    place.apply(&pod("labels", "[read, /etc/self/labels]", mount, volume));
    assert_eq!(printed(&place, "labels"), "app=\"labels\"");
    place.apply(&pod("note", "[read, /etc/self/note]", mount, volume));
    assert_eq!(printed(&place, "note"), "here");
}

#[test]
fn secrets_and_accounts_are_files() {
    let place = Place::new(&CLUSTER, "files");
    place.sh("kubectl create secret generic keys --from-literal=key=hidden");
    let mount = "    volumeMounts: [{name: keys, mountPath: /etc/keys, readOnly: true}]\n";
    let volume = "  volumes: [{name: keys, secret: {secretName: keys}}]\n";
    place.apply(&pod("reader", "[read, /etc/keys/key]", mount, volume));
    assert_eq!(printed(&place, "reader"), "hidden");
    // What is mounted to be read cannot be written.
    place.apply(&pod("writer", "[write, /etc/keys/key, other]", mount, volume));
    place.until_value("pod/writer", "{.status.phase}", "Failed");
    assert!(place.sh("kubectl logs writer").contains("error:"));

    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    place.apply(
        &(pod("namespace", &format!("[read, {account}/namespace]"), "", "")
            + "---\n"
            + &pod("token", &format!("[read, {account}/token]"), "", "")),
    );
    assert_eq!(printed(&place, "namespace"), "files");
    printed(&place, "token");
    let claims = "kubectl logs token | cut -d. -f2 | tr _- /+ | base64 -d 2>/dev/null | jq -r";
    assert_eq!(place.sh(&format!("{claims} .sub")), "system:serviceaccount:files:default");
    assert_eq!(place.sh(&format!("{claims} '.\"kubernetes.io\".pod.name'")), "token");
}

#[test]
fn one_image_serves_every_stage() {
    let place = Place::new(&CLUSTER, "stages");
    for stage in ["dev", "prod"] {
        place.sh(&format!("kubectl create configmap {stage} --from-literal=STAGE={stage}"));
        let env = format!("    envFrom: [{{configMapRef: {{name: {stage}}}}}]\n");
        place.apply(&pod(&format!("in-{stage}"), "[print]", &env, ""));
        assert!(printed(&place, &format!("in-{stage}")).contains(&format!("STAGE={stage}\n")));
    }
    let images = place.sh("kubectl get pods -o jsonpath='{.items[*].status.containerStatuses[0].imageID}' | tr ' ' '\\n' | sort -u | wc -l");
    assert_eq!(images, "1");
}

#[test]
fn a_pod_knows_the_services_that_were_there_before_it() {
    let place = Place::new(&CLUSTER, "before");
    place.apply(&pod("early", "[print]", "", ""));
    let early = printed(&place, "early");
    place.sh("kubectl create service clusterip redis-master --tcp=6379");
    let ip = place.value("svc/redis-master", "{.spec.clusterIP}");
    // The node learns of the service a moment after the API.
    let late = |n: u32| {
        place.apply(&pod(&format!("late-{n}"), "[print]", "", ""));
        printed(&place, &format!("late-{n}"))
    };
    let said = (0..10).map(late).find(|said| said.contains("REDIS_MASTER"));
    let said = said.expect("variables of the service");
    for line in [
        format!("REDIS_MASTER_SERVICE_HOST={ip}"),
        "REDIS_MASTER_SERVICE_PORT=6379".into(),
        format!("REDIS_MASTER_PORT=tcp://{ip}:6379"),
        format!("REDIS_MASTER_PORT_6379_TCP=tcp://{ip}:6379"),
        "REDIS_MASTER_PORT_6379_TCP_PORT=6379".into(),
        "REDIS_MASTER_PORT_6379_TCP_PROTO=tcp".into(),
        format!("REDIS_MASTER_PORT_6379_TCP_ADDR={ip}"),
    ] {
        assert!(said.lines().any(|l| l == line), "{line} in {said}");
    }
    assert!(!early.contains("REDIS_MASTER"), "{early}");
}
