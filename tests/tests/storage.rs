//! Volumes, claims and classes.

use std::sync::LazyLock;

use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(|| {
    let program = Program::start();
    program.push("command");
    program
});

fn volume(name: &str, size: &str, class: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {name}}}\nspec:\n  capacity: {{storage: {size}}}\n  \
         accessModes: [ReadWriteOnce]\n  storageClassName: {class}\n  hostPath: {{path: /tmp/{name}}}\n{more}---\n"
    )
}

fn claim(name: &str, size: &str, class: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], \
         storageClassName: {class}, resources: {{requests: {{storage: {size}}}}}}}\n---\n"
    )
}

#[test]
fn a_claim_takes_the_smallest_volume_that_is_large_enough() {
    let place = Place::new(&CLUSTER, "claims");
    place.apply(
        &(volume("small", "500Mi", "by-hand", "")
            + &volume("middle", "2Gi", "by-hand", "")
            + &volume("large", "10Gi", "by-hand", "")
            + &volume("foreign", "1Gi", "other-class", "")),
    );
    place.until_value("pv/middle", "{.status.phase}", "Available");
    assert_eq!(
        place.sh("kubectl get pv middle --no-headers | awk '{print $2, $3, $4, $5}'"),
        "2Gi RWO Retain Available"
    );
    place.apply(&claim("mine", "1Gi", "by-hand"));
    place.until_value("pvc/mine", "{.status.phase}", "Bound");
    assert_eq!(place.value("pvc/mine", "{.spec.volumeName}"), "middle");
    assert_eq!(place.value("pv/middle", "{.spec.claimRef.namespace}/{.spec.claimRef.name}"), "claims/mine");
    place.apply(&claim("huge", "1Ti", "by-hand"));
    place.until_value("pvc/huge", "{.status.phase}", "Pending");
    place.until_that("kubectl describe pvc huge", |t| {
        t.contains("ProvisioningFailed") || t.contains("FailedBinding")
    });
    // Given back, a volume is kept for whoever looks after it.
    place.sh("kubectl delete pvc mine");
    place.until_value("pv/middle", "{.status.phase}", "Released");
}

#[test]
fn a_class_makes_volumes_and_takes_them_away() {
    let place = Place::new(&CLUSTER, "classes");
    place.apply(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: quick}\nprovisioner: wasmk.dev/local-path\nparameters: {repl: '2'}\n---\n\
         apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: theirs}\nprovisioner: example.com/disk\n",
    );
    assert_eq!(
        place.sh("kubectl get sc quick --no-headers | awk '{print $1, $2, $3, $4}'"),
        "quick wasmk.dev/local-path Delete Immediate"
    );
    place.apply(&claim("made", "1Gi", "quick"));
    place.until_value("pvc/made", "{.status.phase}", "Bound");
    let made = place.value("pvc/made", "{.spec.volumeName}");
    assert_eq!(
        place.value(
            &format!("pv/{made}"),
            "{.spec.storageClassName} {.spec.persistentVolumeReclaimPolicy} {.spec.capacity.storage}"
        ),
        "quick Delete 1Gi"
    );
    place.sh("kubectl delete pvc made");
    place.until(&format!("kubectl get pv {made} -o name --ignore-not-found"), "");
    // Another's class is another's work.
    place.apply(&claim("foreign", "1Gi", "theirs"));
    place.until_that("kubectl describe pvc foreign", |t| t.contains("example.com/disk"));
    assert_eq!(place.value("pvc/foreign", "{.status.phase}"), "Pending");
}

#[test]
fn the_default_class_serves_claims_without_one() {
    let program: &'static Program = Box::leak(Box::new(Program::start_with(&["--no-node"])));
    let place = Place::new(program, "defaults");
    place.sh("kubectl get sc -o name | xargs -r kubectl delete");
    place.apply("apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: portworx-replicated, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}\nprovisioner: wasmk.dev/local-path\n");
    assert!(place.sh("kubectl get sc").contains("portworx-replicated (default)"));
    place.apply(&claim("plain", "1Gi", "x").replace("storageClassName: x, ", ""));
    assert_eq!(place.value("pvc/plain", "{.spec.storageClassName}"), "portworx-replicated");
}

/// A pod of two containers of the command guest, with a volume at a place of its own in each.
fn pair(name: &str, first: &str, second: &str, volume: &str) -> String {
    let container = |name: &str, args: &str, path: &str| {
        format!(
            "  - name: {name}\n    image: $REGISTRY/default/command:1\n    args: {args}\n    volumeMounts: [{{name: www, mountPath: {path}}}]\n"
        )
    };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: OnFailure\n  volumes: [{{name: www{volume}}}]\n  containers:\n{}{}",
        container("writer", first, "/www"),
        container("reader", second, "/usr/share/html")
    )
}

#[test]
fn containers_share_a_volume() {
    let place = Place::new(&CLUSTER, "shared");
    // A volume without a kind is an empty directory; the reader fails until the writer has written, and is started again.
    place.apply(&pair("www", "[write, /www/page, welcome]", "[read, /usr/share/html/page]", ""));
    place.until_value("pod/www", "{.status.phase}", "Succeeded");
    assert_eq!(place.sh("kubectl logs www -c reader"), "welcome");
    assert_eq!(place.value("pod/www", "{.spec.volumes[0].emptyDir}"), "{}");
    assert!(place.sh("kubectl get pod www --no-headers").contains("0/2"));
    // The volume goes with its pod.
    let uid = place.value("pod/www", "{.metadata.uid}");
    let page = format!("find {}/node -path '*{uid}*' -name page | wc -l", CLUSTER.data_dir());
    assert_eq!(place.sh(&page), "1");
    place.sh("kubectl delete pod www");
    place.until(&page.replace("-name page", ""), "0");

    // Of several containers the first is meant when none is named.
    place.apply(&pair("talking", "[print, first]", "[print, second]", ""));
    place.until_value("pod/talking", "{.status.phase}", "Succeeded");
    for (container, said) in [("", "first"), ("-c writer", "first"), ("-c reader", "second")] {
        for client in ["kubectl", "wasmk"] {
            let log = place.sh(&format!("{client} logs talking {container} | head -1"));
            assert_eq!(log, format!("args [\"print\", \"{said}\"]"), "{client} {container}");
        }
    }
}

#[test]
fn a_directory_of_the_node_outlives_the_pod() {
    let place = Place::new(&CLUSTER, "host-path");
    let dir = place.dir().join("kept");
    std::fs::create_dir(&dir).unwrap();
    let volume = format!(", hostPath: {{path: {}, type: Directory}}", dir.display());
    place.apply(&pair("first", "[write, /www/page, kept]", "[read, /usr/share/html/page]", &volume));
    place.until_value("pod/first", "{.status.phase}", "Succeeded");
    place.sh("kubectl delete pod first");
    assert_eq!(std::fs::read_to_string(dir.join("page")).unwrap(), "kept");
    place.apply(&pair("second", "[read, /www/page]", "[read, /usr/share/html/page]", &volume));
    place.until_value("pod/second", "{.status.phase}", "Succeeded");
    assert_eq!(place.sh("kubectl logs second -c writer"), "kept");
}

#[test]
fn a_volume_is_mounted_at_several_places() {
    let place = Place::new(&CLUSTER, "twice");
    let text = pair("twice", "[write, /second/page, welcome]", "[read, /usr/share/html/page]", "");
    place.apply(&text.replace("mountPath: /www}", "mountPath: /www}, {name: www, mountPath: /second}"));
    place.until_value("pod/twice", "{.status.phase}", "Succeeded");
    assert_eq!(place.sh("kubectl logs twice -c reader"), "welcome");
    // A place may be for reading only.
    let text = pair("fixed", "[write, /second/page, welcome]", "[print]", "").replace("OnFailure", "Never");
    place.apply(
        &text
            .replace("mountPath: /www}", "mountPath: /www}, {name: www, mountPath: /second, readOnly: true}"),
    );
    place.until_value("pod/fixed", "{.status.phase}", "Failed");
    assert!(place.sh("kubectl logs fixed -c writer").contains("error:"));
}

#[test]
fn what_no_driver_serves_is_taken_and_waits() {
    let place = Place::new(&CLUSTER, "foreign");
    for (name, source) in [
        ("azure", "azureDisk: {diskName: d, diskURI: /d}"),
        ("azure-file", "azureFile: {secretName: s, shareName: f}"),
        ("cinder", "cinder: {volumeID: v}"),
        ("vsphere", "vsphereVolume: {volumePath: '[d] v'}"),
        ("fc", "fc: {targetWWNs: ['50060e801049cfd1'], lun: 0}"),
        ("gce", "gcePersistentDisk: {pdName: d}"),
        ("aws", "awsElasticBlockStore: {volumeID: v}"),
        ("nfs", "nfs: {server: 10.0.0.1, path: /}"),
        ("iscsi", "iscsi: {targetPortal: '10.0.0.1:3260', iqn: 'iqn.2001-04.com.example:storage', lun: 0}"),
    ] {
        let text = pair(name, "[read, /www/x]", "[read, /usr/share/html/x]", &format!(", {source}"));
        place.apply(&text);
        let kind = source.split(':').next().unwrap_or("");
        let why =
            format!("volumes of kind {kind} are not available on this node; use a claim of a storage class");
        place.until_that(&format!("kubectl get events --field-selector involvedObject.name={name} -o json | jq -r '.items[] | select(.type == \"Warning\") | .message'"), |t| t.contains(&why));
        place.until_that(&format!("kubectl get pod {name} --no-headers"), |row| {
            row.contains("ContainerCreating") || row.contains("CreateContainer")
        });
    }
}

/// Pushes an artifact whose layers are a file with a name and an archive.
fn push_artifact(place: &Place, tag: &str, greeting: &str) {
    place.sh(&format!(
        r#"set -e; url=http://{registry}/v2/default/data; mkdir -p art/deep; printf '{greeting}' >art/greeting; printf more >art/deep/more
        tar -C art -czf art.tgz deep; printf '{{}}' >empty
        blob() {{ digest=sha256:$(sha256sum $2 | cut -d' ' -f1); at=$(curl -sSfi -X POST $url/blobs/uploads/ | tr -d '\r' | sed -n 's/^[Ll]ocation: //p');
          case $at in /*) at=http://{registry}$at;; esac; case $at in *\?*) at="$at&";; *) at="$at?";; esac
          curl -sSf -X PUT --data-binary @$2 -H 'Content-Type: application/octet-stream' "${{at}}digest=$digest" >&2;
          printf '{{"mediaType": "%s", "digest": "%s", "size": %s, "annotations": %s}}' $1 $digest $(stat -c %s $2) "$3"; }}
        none='{{}}'; title='{{"org.opencontainers.image.title": "greeting"}}'
        printf '{{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": %s, "layers": [%s, %s]}}'           "$(blob application/vnd.oci.empty.v1+json empty "$none")" "$(blob text/plain art/greeting "$title")"           "$(blob application/vnd.oci.image.layer.v1.tar+gzip art.tgz "$none")" >manifest
        curl -sSf -X PUT --data-binary @manifest -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' $url/manifests/{tag}"#,
        registry = CLUSTER.address("registry"),
    ));
}

#[test]
fn an_image_is_a_volume() {
    let place = Place::new(&CLUSTER, "image-volumes");
    push_artifact(&place, "1", "hello");
    let image = |tag: &str, policy: &str| {
        format!(", image: {{reference: '{}/default/data:{tag}'{policy}}}", CLUSTER.address("registry"))
    };
    place.apply(&pair("read", "[read, /www/greeting]", "[read, /usr/share/html/deep/more]", &image("1", "")));
    place.until_value("pod/read", "{.status.phase}", "Succeeded");
    assert_eq!(place.value("pod/read", "{.spec.volumes[0].image.pullPolicy}"), "IfNotPresent");
    assert_eq!(
        (place.sh("kubectl logs read -c writer"), place.sh("kubectl logs read -c reader")),
        ("hello".into(), "more".into())
    );
    place.until_that("kubectl get events -o jsonpath='{.items[*].message}'", |t| {
        t.contains("Successfully pulled image") && t.contains("default/data:1")
    });

    // Nobody writes to it, and a part of it is as good.
    let text =
        pair("write", "[write, /www/greeting, changed]", "[read, /usr/share/html/more]", &image("1", ""))
            .replace("mountPath: /usr/share/html}", "mountPath: /usr/share/html, subPath: deep}")
            .replace("OnFailure", "Never");
    place.apply(&text);
    place.until_value("pod/write", "{.status.phase}", "Failed");
    assert!(place.sh("kubectl logs write -c writer").contains("error:"));
    assert_eq!(place.sh("kubectl logs write -c reader"), "more");

    // A tag that was moved is looked at again only by who asks for it.
    push_artifact(&place, "1", "again");
    for (name, policy, expect) in [("stays", "", "hello"), ("asks", ", pullPolicy: Always", "again")] {
        place.apply(&pair(
            name,
            "[read, /www/greeting]",
            "[read, /usr/share/html/greeting]",
            &image("1", policy),
        ));
        place.until_value(&format!("pod/{name}"), "{.status.phase}", "Succeeded");
        assert_eq!(place.sh(&format!("kubectl logs {name} -c writer")), expect, "{name}");
    }
    for (name, tag, policy, reason) in [
        ("absent", "none", "", "ErrImagePull"),
        ("never", "none", ", pullPolicy: Never", "ErrImageNeverPull"),
    ] {
        place.apply(&pair(
            name,
            "[read, /www/greeting]",
            "[read, /usr/share/html/greeting]",
            &image(tag, policy),
        ));
        place.until_that(
            &format!("kubectl get pod {name} -o jsonpath='{{.status.containerStatuses[*].state.waiting}}'"),
            |t| t.contains(reason) || t.contains("ImagePullBackOff") && t.contains("default/data:none"),
        );
    }
}
