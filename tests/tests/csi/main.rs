//! Volumes of storage drivers, from the claim to the mount and back, with a real driver and with clients of
//! the API beside it as drivers have them. Skipped, with a word, where nothing may be mounted.

mod driver;
mod sidecars;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use driver::{Disk, Life, NAME};
use kube::{Client, Config, config::KubeConfigOptions, config::Kubeconfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use wasmk_tests::{
    containerd::Containerd,
    node::{Node, container, pod},
    program::Program,
    required::skip,
};

/// A driver, a cluster and what stands between.
struct Story {
    disk: Arc<Disk>,
    sidecars: Option<Runtime>,
    registry: PathBuf,
    /// The cluster's directory.
    data: String,
    _shared: Shared,
}

/// A directory whose mounts are passed on to containers and back.
struct Shared {
    at: PathBuf,
    _dir: Option<TempDir>,
}

impl Shared {
    /// One of its own; `None`, with a word on standard error, where nothing may be mounted and need not be.
    fn new() -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("csi").tempdir_in("/tmp").expect("a directory in /tmp");
        Self::of(dir.path().into(), Some(dir))
    }

    fn of(at: PathBuf, dir: Option<TempDir>) -> Option<Self> {
        let path = at.display();
        let line = format!("mount --bind {path} {path} && mount --make-rshared {path}");
        let tried = Command::new("sh").args(["-c", &line]).output().expect("sh runs");
        if tried.status.success() {
            return Some(Self { at, _dir: dir });
        }
        skip("mounts", &String::from_utf8_lossy(&tried.stderr));
        None
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Files below may still be open.
        let _ = Command::new("umount").args(["-R", "-l", &self.at.display().to_string()]).output();
    }
}

impl Story {
    /// `None`, with a word on standard error, where nothing may be mounted and need not be.
    fn start(program: &Program) -> Option<(Self, Life)> {
        let shared = Shared::new()?;
        let story = Self::over(program, &shared.at.clone(), shared);
        let life = Life::start(&story.disk, &story.registry);
        Some((story, life))
    }

    /// All but the driver's life.
    fn over(program: &Program, dir: &Path, shared: Shared) -> Self {
        let disk = Disk::new(dir);
        let registry = Path::new(&program.data_dir()).join("node/plugins_registry");
        let mut story = Self { disk, sidecars: None, registry, data: program.data_dir(), _shared: shared };
        story.stand_beside(program);
        program.push("command");
        program.apply(&format!(
            "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {NAME}}}\nspec: {{podInfoOnMount: true, \
             volumeLifecycleModes: [Persistent, Ephemeral]}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: disk-key}}\nstringData: {{key: sesame}}\n---\n\
             apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: directories}}\nprovisioner: {NAME}\n\
             parameters: {{repl: '2', priority_io: high}}\n"
        ));
        story
    }

    /// Starts the clients beside the driver, anew for each life of the cluster.
    fn stand_beside(&mut self, program: &Program) {
        let runtime = Runtime::new().expect("a runtime");
        let config = Kubeconfig::read_from(program.kubeconfig()).expect("a kubeconfig");
        let endpoint: Arc<Path> = self.disk.endpoint().into();
        runtime.spawn(async move {
            let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
            let client = Client::try_from(config.expect("a configuration")).expect("a client");
            sidecars::run(client, endpoint).await;
        });
        if let Some(old) = self.sidecars.replace(runtime) {
            old.shutdown_background();
        }
    }

    /// What the driver was asked about volumes, each call once however often it came.
    fn path(&self) -> Vec<String> {
        let words = |call: String| call.split(' ').next().unwrap_or_default().to_string();
        let mut calls: Vec<String> = self.disk.calls().into_iter().map(words).collect();
        calls.retain(|c| c.contains("Volume"));
        calls.dedup();
        calls
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        // A test that failed leaves mounts, which may not be there when directories are removed.
        for mount in mounts_below(&self.data) {
            let _ = Command::new("umount").args(["-l", &mount]).output();
        }
        if let Some(runtime) = self.sidecars.take() {
            runtime.shutdown_background();
        }
    }
}

fn claim(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{accessModes: [ReadWriteOnce], \
         storageClassName: directories, resources: {{requests: {{storage: 5Mi}}}}}}\n---\n"
    )
}

/// A pod of the command guest with a volume at `/v`.
fn guest(p: &Program, name: &str, args: &str, source: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, terminationGracePeriodSeconds: 1, \
         volumes: [{{name: v, {source}}}], containers: [{{name: main, image: '{}/default/command:1', args: {args}, \
         volumeMounts: [{{name: v, mountPath: /v}}]}}]}}\n---\n",
        p.address("registry")
    )
}

fn claimed(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}}}")
}

fn gone(p: &Program, what: &str) {
    let ask = |p: &Program| p.kubectl(&["get", what, "-o", "name", "--ignore-not-found"]);
    p.until(&format!("{what} is gone"), ask, |text| text.is_empty());
}

/// Where something is mounted below a directory.
fn mounts_below(dir: &str) -> Vec<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    places.filter(|at| at.starts_with(dir)).map(String::from).collect()
}

#[test]
fn a_driver_provisions_attaches_mounts_and_frees_volumes() {
    let p = Program::start();
    let Some((story, _life)) = Story::start(&p) else { return };
    let disk = &story.disk;

    // Registered: who it is was asked, and what it calls this node is written down.
    p.until_value(
        "csinode/node-a",
        "{.spec.drivers[0].name} {.spec.drivers[0].nodeID}",
        &format!("{NAME} machine-7"),
    );
    p.until("it is told so", |_| disk.count("Registered true"), |n| *n == 1);
    for call in ["GetPluginInfo", "GetPluginCapabilities", "Probe", "NodeGetCapabilities", "NodeGetInfo"] {
        assert!(disk.count(call) > 0, "{call}: {:?}", disk.calls());
    }
    assert_eq!(
        p.value("csinode/node-a", "{.spec.drivers[0].topologyKeys[0]} {.spec.drivers[0].allocatable.count}"),
        "topology.example.com/rack 12"
    );
    assert_eq!(p.value("csinode/node-a", "{.metadata.ownerReferences[0].name}"), "node-a");
    p.until_value("node/node-a", "{.metadata.labels.topology\\.example\\.com/rack}", "r1");

    // A claim becomes a volume with the class's parameters, once, although it is asked for twice.
    p.apply(&claim("data"));
    p.until_value("pvc/data", "{.status.phase}", "Bound");
    let volume = p.value("pvc/data", "{.spec.volumeName}");
    assert_eq!(disk.volumes(), std::slice::from_ref(&volume));
    let asked = format!("CreateVolume {volume} {} priority_io=high,repl=2", 5 << 20);
    assert!(disk.count(&asked) >= 2, "{:?}", disk.calls());

    // Two pods use it: attached and staged once, published for each, and what one writes the other reads.
    p.apply(&guest(&p, "first", "[write, /v/note, kept]", &claimed("data")));
    p.apply(&guest(&p, "stays", "[tick, '500']", &claimed("data")));
    p.until_value("pod/first", "{.status.phase}", "Succeeded");
    p.until_row("stays", "1/1 Running");
    assert_eq!(std::fs::read_to_string(disk.volume(&volume).join("note")).expect("the file"), "kept");
    p.apply(&guest(&p, "second", "[read, /v/note]", &claimed("data")));
    p.until_value("pod/second", "{.status.phase}", "Succeeded");
    assert_eq!(p.kubectl(&["logs", "second"]), "kept");
    assert_eq!(disk.count("NodeStageVolume"), 1, "{:?}", disk.calls());
    assert_eq!(disk.count(&format!("NodeStageVolume {volume} disk-of-machine-7 sesame")), 1);
    assert_eq!(disk.count(&format!("NodePublishVolume {volume} stays rw")), 1);
    assert_eq!(p.value("volumeattachments", "{.items[*].status.attached}"), "true");
    p.until_value("node/node-a", "{.status.volumesInUse[0]}", &format!("kubernetes.io/csi/{NAME}^{volume}"));

    // All freed again, in the reverse order, and the volume goes with its claim.
    p.kubectl(&["delete", "pod", "first", "second", "stays"]);
    p.until("it is detached", |_| disk.count("ControllerUnpublishVolume"), |n| *n > 0);
    gone(&p, "volumeattachments");
    // One that is deleted while it is freed is freed again; drivers bear that.
    let freed: BTreeSet<_> =
        disk.calls().into_iter().filter(|c| c.starts_with("NodeUnpublishVolume")).collect();
    assert_eq!((disk.count("NodePublishVolume"), freed.len()), (3, 3));
    assert!(disk.count("NodeUnstageVolume") > 0);
    assert_eq!(std::fs::read_to_string(disk.volume(&volume).join("note")).expect("the file"), "kept");
    p.kubectl(&["delete", "pvc", "data"]);
    gone(&p, "pv");
    assert_eq!(disk.volumes(), [] as [String; 0]);
    assert_eq!(mounts_below(&p.data_dir()), [] as [String; 0]);
    let path = story.path();
    let at = |call: &str| path.iter().position(|c| c == call).unwrap_or_else(|| panic!("{call}: {path:?}"));
    let order = [
        "CreateVolume",
        "ControllerPublishVolume",
        "NodeStageVolume",
        "NodePublishVolume",
        "NodeUnstageVolume",
        "ControllerUnpublishVolume",
        "DeleteVolume",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{path:?}");
}

#[test]
fn lost_answers_and_lives_lose_and_double_nothing() {
    let mut p = Program::start();
    let Some((mut story, life)) = Story::start(&p) else { return };
    let disk = story.disk.clone();
    p.apply(&claim("data"));
    p.until_value("pvc/data", "{.status.phase}", "Bound");
    let volume = p.value("pvc/data", "{.spec.volumeName}");

    // Answers are lost on the way; the calls come again, and nothing is made twice.
    disk.fail("NodeStageVolume", 2);
    disk.fail("NodePublishVolume", 1);
    p.apply(&guest(&p, "stays", "[tick, '500']", &claimed("data")));
    p.until_event("stays", "the answer was lost");
    p.until_row("stays", "1/1 Running");
    assert_eq!(
        (disk.count("NodeStageVolume"), disk.count("NodePublishVolume")),
        (3, 2),
        "{:?}",
        disk.calls()
    );
    assert_eq!(mounts_below(&p.data_dir()).len(), 2);

    // The driver is away while a pod goes: the pod stays until its volume is free.
    drop(life);
    p.until_value("csinode/node-a", "{.spec.drivers[*].name}", "");
    p.kubectl(&["delete", "pod", "stays", "--wait=false"]);
    p.until(
        "nothing of it runs",
        |p| p.value("pod/stays", "{.status.containerStatuses[0].state.terminated.reason}"),
        |r| !r.is_empty(),
    );
    assert_eq!(mounts_below(&p.data_dir()).len(), 2, "what is mounted is not forgotten");

    // Neither is it when the agent dies, too.
    p = p.kill();
    let _life = Life::start(&disk, &story.registry);
    // The driver's clients find the API elsewhere now.
    story.stand_beside(&p);
    disk.fail("NodeUnpublishVolume", 1);
    gone(&p, "pod/stays");
    p.until("all is unmounted", |p| mounts_below(&p.data_dir()), Vec::is_empty);
    assert_eq!(disk.volumes(), [volume]);
    gone(&p, "volumeattachments");
}

#[test]
fn a_pod_has_a_volume_of_its_own() {
    let p = Program::start();
    let Some((story, _life)) = Story::start(&p) else { return };
    let source = format!("csi: {{driver: {NAME}, volumeAttributes: {{colour: blue}}}}");
    p.apply(&guest(&p, "own", "[read, /v/told]", &source));
    p.until_value("pod/own", "{.status.phase}", "Succeeded");
    assert_eq!(p.kubectl(&["logs", "own"]), "blue for own");
    p.until("it is freed with its pod's end", |_| story.disk.volumes(), Vec::is_empty);
    assert_eq!(story.disk.count("NodeStageVolume") + story.disk.count("ControllerPublishVolume"), 0);
    // A driver that nobody has is waited for.
    p.apply(&guest(&p, "foreign", "[read, /v/told]", "csi: {driver: nobody.example.com}"));
    p.apply("apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: nobody.example.com}\nspec: {volumeLifecycleModes: [Ephemeral]}\n");
    p.until_event(
        "foreign",
        "driver name nobody.example.com not found in the list of registered CSI drivers",
    );
}

#[test]
fn containers_share_a_drivers_volume() {
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    let Some((story, _life)) = Story::start(p) else { return };
    p.apply(&claim("data"));
    let spec = format!("restartPolicy: Never, volumes: [{{name: v, {}}}], ", claimed("data"));
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    p.apply(&pod("box", &spec, &[container("main", "echo from a box >/v/note", mount)]));
    p.until_value("pod/box", "{.status.phase}", "Succeeded");
    p.apply(&guest(p, "reader", "[read, /v/note]", &claimed("data")));
    p.until_value("pod/reader", "{.status.phase}", "Succeeded");
    assert_eq!(p.kubectl(&["logs", "reader"]), "from a box\n");
    p.until("freed", |_| story.disk.count("NodeUnstageVolume"), |n| *n > 0);
    p.kubectl(&["delete", "pod", "box", "reader", "--now"]);
}

#[test]
fn a_driver_has_so_many_volumes_on_a_node_and_tells_what_is_in_use() {
    let p = Program::start();
    let Some(shared) = Shared::new() else { return };
    let story = Story::over(&p, &shared.at.clone(), shared);
    story.disk.limit(2);
    let _life = Life::start(&story.disk, &story.registry);
    p.until_value("csinode/node-a", "{.spec.drivers[0].allocatable.count}", "2");
    for name in ["one", "two", "three"] {
        p.apply(&claim(name));
        p.until_value(&format!("pvc/{name}"), "{.status.phase}", "Bound");
    }
    p.apply(&guest(&p, "one", "[write, /v/note, kept]", &claimed("one")));
    p.until_value("pod/one", "{.status.phase}", "Succeeded");
    p.kubectl(&["delete", "pod", "one", "--now"]);
    for name in ["one", "two"] {
        p.apply(&guest(&p, name, "[tick, '500']", &claimed(name)));
        p.until_row(name, "1/1 Running");
    }
    // A third volume is one too many; one that is there already is none.
    p.apply(&guest(&p, "three", "[tick, '500']", &claimed("three")));
    p.until_event("three", "1 node(s) exceed max volume count");
    p.apply(&guest(&p, "again", "[tick, '500']", &claimed("one")));
    p.until_row("again", "1/1 Running");

    // What is in use is the driver's to say.
    let summary = |p: &Program| -> serde_json::Value {
        let text = p.kubectl(&["get", "--raw", "/api/v1/nodes/node-a/proxy/stats/summary"]);
        serde_json::from_str(&text).expect("a summary")
    };
    let of = |summary: &serde_json::Value| {
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        pods.into_iter().find(|pod| pod["podRef"]["name"] == "again").map(|pod| pod["volume"][0].clone())
    };
    let found =
        p.until("its figures", |p| of(&summary(p)).unwrap_or_default(), |v| !v["usedBytes"].is_null());
    assert_eq!((&found["name"], &found["pvcRef"]["name"]), (&"v".into(), &"one".into()));
    let figures = ["capacityBytes", "usedBytes", "availableBytes", "inodes", "inodesUsed"]
        .map(|name| found[name].as_i64());
    assert_eq!(figures, [5 << 20, 4, (5 << 20) - 4, 1000, 1].map(Some), "{found}");
    let metrics = p.kubectl(&["get", "--raw", "/api/v1/nodes/node-a/proxy/metrics"]);
    let line = "kubelet_volume_stats_used_bytes{namespace=\"default\",persistentvolumeclaim=\"one\"} 4";
    assert_eq!(metrics.lines().filter(|l| *l == line).count(), 1, "{metrics}");

    p.kubectl(&["delete", "pod", "two", "--now"]);
    p.until_row("three", "1/1 Running");
    p.kubectl(&["delete", "pod", "one", "three", "again", "--now"]);
    gone(&p, "volumeattachments");
}

#[test]
fn a_volume_is_a_device_where_a_claim_asks_for_one() {
    let tried = Command::new("losetup").arg("--find").output();
    if !tried.is_ok_and(|out| out.status.success()) {
        return skip("loop devices", "there is no free loop device");
    }
    let Some(node) = Node::start() else { return };
    let p = &node.program;
    let Some((story, _life)) = Story::start(p) else { return };
    p.apply(&claim("raw").replace("spec: {", "spec: {volumeMode: Block, "));
    let spec = format!("restartPolicy: Never, volumes: [{{name: v, {}}}], ", claimed("raw"));
    let device = ", volumeDevices: [{name: v, devicePath: /dev/disk}]";
    let line = "test -b /dev/disk && printf raw | dd of=/dev/disk conv=notrunc 2>/dev/null";
    p.apply(&pod("writer", &spec, &[container("main", line, device)]));
    p.until_value("pod/writer", "{.status.phase}", "Succeeded");
    let line = "dd if=/dev/disk bs=3 count=1 2>/dev/null; echo; wc -c </dev/disk";
    p.apply(&pod("reader", &spec, &[container("main", line, device)]));
    p.until_value("pod/reader", "{.status.phase}", "Succeeded");
    assert_eq!(p.kubectl(&["logs", "reader"]), format!("raw\n{}\n", 5 << 20));

    // What has no devices says so.
    let wasm = guest(p, "wasm", "[tick, '500']", &claimed("raw"));
    p.apply(&wasm.replace(
        "volumeMounts: [{name: v, mountPath: /v}]",
        "volumeDevices: [{name: v, devicePath: /dev/disk}]",
    ));
    p.until_event("wasm", "a Wasm container can be given directories only, and this is a device");
    // The file system of a claim that asks for none is no device.
    p.apply(&claim("files"));
    let spec = format!("restartPolicy: Never, volumes: [{{name: v, {}}}], ", claimed("files"));
    p.apply(&pod("mistaken", &spec, &[container("main", "true", device)]));
    p.until_event("mistaken", "the volume is no block device; its claim needs volumeMode Block");

    p.kubectl(&["delete", "pod", "writer", "reader", "wasm", "mistaken", "--now"]);
    gone(p, "volumeattachments");
    p.kubectl(&["delete", "pvc", "raw", "files"]);
    gone(p, "pv");
    let left = Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output();
    let left = String::from_utf8(left.expect("losetup runs").stdout).expect("text");
    assert!(!left.contains(&story.disk.volume("").display().to_string()), "{left}");
}

/// The process of a driver in a pod.
#[test]
#[ignore = "is started by a test that deploys the driver"]
fn serve_as_a_driver() {
    let var = |name: &str| std::env::var(name).expect("a variable of the pod");
    let (dir, registry) = (var("DRIVER_DIR"), var("DRIVER_REGISTRY"));
    let _life = Life::start(&Disk::new(Path::new(&dir)), Path::new(&registry));
    loop {
        std::thread::park();
    }
}

#[test]
fn a_driver_in_pods_serves_its_node() {
    let Some(containerd) = Containerd::start() else { return };
    // What the driver mounts in the cluster's directory is there for all.
    let dir = tempfile::Builder::new().prefix("csi").tempdir_in("/tmp").expect("a directory in /tmp");
    let at = dir.path().display().to_string();
    let Some(shared) = Shared::of(dir.path().into(), None) else { return };
    let p = Program::start_in(dir, &["--container-runtime-endpoint", &containerd.endpoint()]);
    let own = format!("{at}/driver");
    let story = Story::over(&p, Path::new(&own), shared);
    let driver = std::env::current_exe().expect("this program");
    p.apply(&format!(
        "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: driver}}\nspec: {{selector: {{matchLabels: {{app: driver}}}}, template: {{metadata: {{labels: {{app: driver}}}}, \
         spec: {{terminationGracePeriodSeconds: 1, volumes: [{{name: root, hostPath: {{path: /}}}}, {{name: shared, hostPath: {{path: {at}}}}}], \
         containers: [{{name: main, image: 'localhost/box:1', securityContext: {{privileged: true}}, \
         command: [chroot, /host, {}, --exact, serve_as_a_driver, --ignored], \
         env: [{{name: DRIVER_DIR, value: {own}}}, {{name: DRIVER_REGISTRY, value: {}}}], \
         volumeMounts: [{{name: root, mountPath: /host}}, {{name: shared, mountPath: /host{at}, mountPropagation: Bidirectional}}]}}]}}}}}}\n",
        driver.display(), story.registry.display()
    ));
    p.until_value("csinode/node-a", "{.spec.drivers[0].nodeID}", "machine-7");
    p.apply(&claim("data"));
    let spec = format!("restartPolicy: Never, volumes: [{{name: v, {}}}], ", claimed("data"));
    let mount = ", volumeMounts: [{name: v, mountPath: /v}]";
    p.apply(&pod(
        "box",
        &spec,
        &[container("main", "echo from a box >/v/note; grep -c ' /v ' /proc/mounts", mount)],
    ));
    p.until_value("pod/box", "{.status.phase}", "Succeeded");
    p.apply(&guest(&p, "reader", "[read, /v/note]", &claimed("data")));
    p.until_value("pod/reader", "{.status.phase}", "Succeeded");
    assert_eq!(
        (p.kubectl(&["logs", "box"]), p.kubectl(&["logs", "reader"])),
        ("1\n".into(), "from a box\n".into())
    );
    p.kubectl(&["delete", "pod", "box", "reader", "--now"]);
    gone(&p, "volumeattachments");
    p.kubectl(&["delete", "pvc", "data"]);
    gone(&p, "pv");
    assert_eq!(story.disk.volumes(), [] as [String; 0]);
    p.kubectl(&["delete", "daemonset", "driver"]);
    p.until("its pod is gone", |p| p.kubectl(&["get", "pods", "-o", "name"]), |names| names.is_empty());
}
