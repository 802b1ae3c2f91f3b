//! The store as its operator meets it: backups, encryption, damage, kills under load, and an etcd in its place.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;
use wasmk_tests::{
    etcd::Etcd,
    program::{PATIENCE, Program, binary},
};

/// `wasmk …` without a cluster, whatever it answers.
fn wasmk(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().expect("wasmk runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeeds(args: &[&str]) -> String {
    let output = wasmk(args);
    assert!(output.status.success(), "wasmk {}: {}", args.join(" "), text(&output));
    text(&output)
}

fn data_dir(dir: &TempDir) -> String {
    dir.path().join("data").display().to_string()
}

/// The files below a directory that hold the text.
fn holding(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(holding(&path, needle));
        } else if path.is_file() {
            let data = fs::read(&path).expect("a readable file");
            found.extend(data.windows(needle.len()).any(|part| part == needle.as_bytes()).then_some(path));
        }
    }
    found
}

const PLAIN: &str = "correct horse battery staple";
const PLAIN_BASE64: &str = "Y29ycmVjdCBob3JzZSBiYXR0ZXJ5IHN0YXBsZQ==";

fn encryption(dir: &Path, name: &str, providers: &str) -> String {
    let path = dir.join(name);
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [secrets]\n  providers: [{providers}]\n"
    );
    fs::write(&path, text).expect("a writable directory");
    path.display().to_string()
}

/// A provider with keys of 32 bytes that are called so.
fn keys(cipher: &str, names: &[&str]) -> String {
    let secret = |name: &str| {
        if name == "one" {
            "b25lb25lb25lb25lb25lb25lb25lb25lb25lb25lb24="
        } else {
            "dHdvdHdvdHdvdHdvdHdvdHdvdHdvdHdvdHdvdHdvdHc="
        }
    };
    let keys: Vec<String> =
        names.iter().map(|name| format!("{{name: {name}, secret: {}}}", secret(name))).collect();
    format!("{cipher}: {{keys: [{}]}}", keys.join(", "))
}

fn stored_secret(dir: &TempDir) -> String {
    let prefix = "/registry/core/secrets/default/key";
    succeeds(&["store", "dump", "--data-dir", &data_dir(dir), "--prefix", prefix])
}

#[test]
fn secrets_are_plain_on_disk_unless_encryption_is_on() {
    use std::os::unix::fs::PermissionsExt;
    let program = Program::start_with(&["--no-node"]);
    program.kubectl(&["create", "secret", "generic", "key", &format!("--from-literal=password={PLAIN}")]);
    let store = Path::new(&program.data_dir()).join("store");
    assert!(!holding(&store, PLAIN_BASE64).is_empty(), "as the documentation says");
    for path in [store.clone(), Path::new(&program.data_dir()).into()] {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "only its owner enters {}", path.display());
    }
    let readme = fs::read_to_string(wasmk_tests::program::repository().join("README.md")).unwrap();
    assert!(readme.contains("--encryption-provider-config"));
}

#[test]
fn secrets_are_encrypted_at_rest_and_keys_are_rotated() {
    let home = tempfile::tempdir().unwrap();
    let first = encryption(home.path(), "first.yaml", &keys("aesgcm", &["one"]));
    let flag = "--encryption-provider-config";
    let program = Program::start_with(&["--no-node", flag, &first]);
    program.kubectl(&["create", "secret", "generic", "key", &format!("--from-literal=password={PLAIN}")]);
    assert_eq!(program.value("secret/key", "{.data.password}"), PLAIN_BASE64);
    let listed = program.kubectl(&["get", "secrets", "-o", "jsonpath={.items[*].data.password}"]);
    assert!(listed.contains(PLAIN_BASE64), "{listed}");
    let snapshot = home.path().join("backup");
    program.wasmk(&["store", "snapshot", snapshot.to_str().unwrap(), "--data-dir", &program.data_dir()]);
    for place in [program.scratch(), home.path()] {
        for needle in [PLAIN, PLAIN_BASE64] {
            assert_eq!(holding(place, needle), Vec::<PathBuf>::new(), "{needle}");
        }
    }

    let dir = program.stop();
    assert!(stored_secret(&dir).contains("k8s:enc:aesgcm:v1:one:"));
    // Another cipher and key write; the old key is still there to read with.
    let providers = format!("{{{}}}, {{{}}}", keys("secretbox", &["two"]), keys("aesgcm", &["one"]));
    let second = encryption(home.path(), "second.yaml", &providers);
    let program = Program::start_in(dir, &["--no-node", flag, &second]);
    assert_eq!(program.value("secret/key", "{.data.password}"), PLAIN_BASE64);
    let dir = program.stop();
    assert!(stored_secret(&dir).contains("k8s:enc:secretbox:v1:two:"), "rewritten at the start");

    // The key is lost: the start says which, and what it would have been for.
    let refused = wasmk(&[
        "up",
        "--no-node",
        "--api-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        "127.0.0.1:0",
        "--registry-addr",
        "127.0.0.1:0",
        "--data-dir",
        &data_dir(&dir),
        flag,
        &first,
    ]);
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("k8s:enc:secretbox:v1:two"), "{said}");
    assert!(said.contains("/registry/core/secrets/default/key"), "{said}");

    // Back to plain text, as upstream does it: identity writes, the key reads.
    let providers = format!("{{identity: {{}}}}, {{{}}}", keys("secretbox", &["two"]));
    let plain = encryption(home.path(), "plain.yaml", &providers);
    let program = Program::start_in(dir, &["--no-node", flag, &plain]);
    assert_eq!(program.value("secret/key", "{.data.password}"), PLAIN_BASE64);
    let dir = program.stop();
    assert!(stored_secret(&dir).contains(PLAIN_BASE64));
}

#[test]
fn a_snapshot_of_a_running_cluster_starts_others_of_any_kind() {
    let program = Program::start_with(&["--no-node"]);
    program.kubectl(&["create", "configmap", "kept", "--from-literal=a=1"]);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("backup").display().to_string();
    let data = program.data_dir();
    let said = program.wasmk(&["store", "snapshot", &file, "--data-dir", &data]);
    assert!(said.contains("revision"), "{said}");
    let kept = program.value("configmap/kept", "{.metadata.resourceVersion}");
    program.kubectl(&["create", "configmap", "later"]);
    let watch = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1&resourceVersion=";
    let seen = text(&program.kubectl_output(&["get", "--raw", &format!("{watch}{kept}")], None));
    assert!(seen.contains("\"later\"") && !seen.contains("\"kept\""), "what came after: {seen}");
    let refused = program.refused(&["store", "snapshot", &file, "--data-dir", &data]);
    assert!(refused.contains("already"), "{refused}");
    assert!(succeeds(&["store", "verify", &file]).contains("is whole"));
    let in_use = program.refused(&["store", "verify", "--data-dir", &data]);
    assert!(in_use.contains("in use by process") && in_use.contains("wasmk down"), "{in_use}");
    drop(program);

    let holds = |program: &Program| {
        assert_eq!(program.value("configmap/kept", "{.data.a}"), "1");
        assert!(program.kubectl_refused(&["get", "configmap", "later"], None).contains("not found"));
    };
    let memory = Program::start_with(&["--no-node", "--store", "memory", "--from-snapshot", &file]);
    holds(&memory);
    // And a snapshot of that one, since it has nothing else to be saved by.
    let second = home.path().join("second").display().to_string();
    memory.kubectl(&["create", "configmap", "only-in-memory"]);
    memory.wasmk(&["store", "snapshot", &second, "--data-dir", &memory.data_dir()]);
    drop(memory);

    let dir = tempfile::tempdir().unwrap();
    succeeds(&["store", "restore", &second, "--data-dir", &data_dir(&dir)]);
    let again = text(&wasmk(&["store", "restore", &second, "--data-dir", &data_dir(&dir)]));
    assert!(again.contains("not empty") && again.contains("move"), "{again}");
    let embedded = Program::start_in(dir, &["--no-node"]);
    holds(&embedded);
    // A client that knew the store before hears that it has to list again.
    let gone = text(&embedded.kubectl_output(&["get", "--raw", &format!("{watch}{kept}")], None));
    assert!(gone.contains("too old resource version"), "{gone}");
    embedded.kubectl(&["get", "configmap", "only-in-memory"]);
    // Stopped, it is read from its files.
    let dir = embedded.stop();
    let third = home.path().join("third").display().to_string();
    succeeds(&["store", "snapshot", &third, "--data-dir", &data_dir(&dir)]);

    let mut bytes = fs::read(&third).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&third, bytes).unwrap();
    let damaged = text(&wasmk(&["store", "verify", &third]));
    assert!(damaged.contains("checksum"), "{damaged}");
}

#[test]
fn a_damaged_log_is_refused_explained_and_repaired() {
    let program = Program::start_with(&["--no-node"]);
    for number in 0..20 {
        program.kubectl(&["create", "configmap", &format!("c{number}"), "--from-literal=where=here"]);
    }
    let dir = program.stop();
    let data = data_dir(&dir);
    assert!(succeeds(&["store", "verify", "--data-dir", &data]).contains("the store is whole"));
    let log = fs::read_dir(dir.path().join("data/store")).unwrap();
    let log = log.map(|entry| entry.unwrap().path()).find(|path| path.to_string_lossy().contains("log-"));
    let log = log.expect("a log segment");
    let mut bytes = fs::read(&log).unwrap();
    let at = bytes.windows(4).rposition(|part| part == b"\"c9\"").expect("the ninth is in the log");
    bytes[at] ^= 1;
    fs::write(&log, &bytes).unwrap();

    let up = [
        "up",
        "--no-node",
        "--api-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        "127.0.0.1:0",
        "--registry-addr",
        "127.0.0.1:0",
        "--data-dir",
        &data,
    ];
    let refused = wasmk(&up);
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    for word in [
        "damaged at byte",
        "after revision",
        "wasmk store verify",
        "wasmk store repair",
        "wasmk store restore",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let verified = wasmk(&["store", "verify", "--data-dir", &data]);
    assert_eq!(verified.status.code(), Some(1), "{}", text(&verified));
    assert!(text(&verified).contains("DAMAGED"), "{}", text(&verified));
    let records = succeeds(&["store", "dump", "--log", "--data-dir", &data]);
    assert!(records.contains("\"unreadable\"") && records.contains("/default/c19"), "{records}");
    let dumped = text(&wasmk(&["store", "dump", "--data-dir", &data]));
    assert!(dumped.contains("/default/c8\"") && !dumped.contains("/default/c10\""), "{dumped}");
    let repaired = succeeds(&["store", "repair", "--data-dir", &data]);
    assert!(repaired.contains("store.damaged-1"), "{repaired}");
    assert_eq!(
        fs::read(dir.path().join("data/store.damaged-1").join(log.file_name().unwrap())).unwrap(),
        bytes
    );

    let program = Program::start_in(dir, &["--no-node"]);
    program.kubectl(&["get", "configmap", "c8"]);
    assert!(program.kubectl_refused(&["get", "configmap", "c19"], None).contains("not found"));
    program.kubectl(&["create", "configmap", "c19"]);

    // A store of another version is not touched, and the message says whose it is.
    let dir = program.stop();
    fs::write(dir.path().join("data/store/format"), "wasmk-store 9\n").unwrap();
    for args in [&up[..], &["store", "verify", "--data-dir", &data]] {
        let said = text(&wasmk(args));
        assert!(said.contains("wasmk-store 9") && said.contains("program version"), "{said}");
    }
}

async fn client(program: &Program) -> Client {
    let config = Kubeconfig::read_from(program.kubeconfig()).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a usable kubeconfig")).expect("a client")
}

fn config_map(name: &str) -> ConfigMap {
    let mut object = ConfigMap::default();
    object.metadata.name = Some(name.into());
    object.data = Some(BTreeMap::from([("name".into(), name.repeat(20))]));
    object
}

/// Creates objects until told to stop, or until the server is gone; remembers what was acknowledged.
async fn create(
    client: Client,
    name: String,
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
) -> Vec<(String, u64)> {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let mut acknowledged = Vec::new();
    for number in 0.. {
        let name = format!("{name}-{number}");
        let Ok(created) = api.create(&PostParams::default(), &config_map(&name)).await else { break };
        let revision = created.metadata.resource_version.expect("a revision").parse().expect("a number");
        acknowledged.push((name, revision));
        seen.fetch_add(1, Ordering::SeqCst);
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    acknowledged
}

#[test]
fn kills_under_load_lose_nothing_acknowledged() {
    const ROUNDS: usize = 4;
    const WRITERS: usize = 6;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut program = Program::start_with(&["--no-node"]);
    program.kubectl(&["create", "service", "clusterip", "first", "--tcp=80"]);
    let address = program.value("service/first", "{.spec.clusterIP}");
    let mut all: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..ROUNDS {
        let client = runtime.block_on(client(&program));
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let name = format!("r{round}-w{writer}");
                runtime.spawn(create(client.clone(), name, stop.clone(), seen.clone()))
            })
            .collect();
        let deadline = Instant::now() + PATIENCE;
        while seen.load(Ordering::SeqCst) < 150 {
            assert!(Instant::now() < deadline, "writes do not go on");
            std::thread::sleep(Duration::from_millis(5));
        }
        // The writers go on until the connection breaks under them.
        program = program.kill();
        stop.store(true, Ordering::SeqCst);
        for writer in writers {
            all.extend(runtime.block_on(writer).unwrap());
        }
        let found = runtime.block_on(async {
            let api: Api<ConfigMap> = Api::namespaced(self::client(&program).await, "default");
            api.list(&ListParams::default()).await.expect("a list")
        });
        let found: BTreeMap<String, (u64, bool)> = found
            .into_iter()
            .map(|object| {
                let name = object.metadata.name.expect("a name");
                let whole = object.data.is_some_and(|data| data.get("name") == Some(&name.repeat(20)));
                let revision = object.metadata.resource_version.expect("a revision");
                (name, (revision.parse().expect("a number"), whole))
            })
            .filter(|(name, _)| name.starts_with('r'))
            .collect();
        for (name, revision) in &all {
            assert_eq!(found.get(name), Some(&(*revision, true)), "{name} was acknowledged at {revision}");
        }
        let unanswered = found.len() - all.len();
        assert!(unanswered <= WRITERS * (round + 1), "{unanswered} objects that nobody created");
        // Addresses that were given out are still taken.
        let name = format!("after-{round}");
        program.kubectl(&["create", "service", "clusterip", &name, "--tcp=80"]);
        assert_ne!(program.value(&format!("service/{name}"), "{.spec.clusterIP}"), address);
    }
    assert_eq!(program.value("service/first", "{.spec.clusterIP}"), address);
}

#[test]
fn servers_share_an_etcd_which_is_backed_up_and_filled_like_any_store() {
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str| home.path().join(name).display().to_string();
    let embedded = Program::start_with(&["--no-node"]);
    embedded.kubectl(&["create", "configmap", "moved", "--from-literal=a=1"]);
    embedded.wasmk(&["store", "snapshot", &file("embedded"), "--data-dir", &embedded.data_dir()]);
    drop(embedded);

    let etcd = Etcd::start();
    succeeds(&["store", "restore", &file("embedded"), "--store", &etcd.store()]);
    let again = text(&wasmk(&["store", "restore", &file("embedded"), "--store", &etcd.store()]));
    assert!(again.contains("not empty"), "{again}");

    let flags = ["--no-node", "--store", &etcd.store()];
    let first = Program::start_with(&flags);
    assert_eq!(first.value("configmap/moved", "{.data.a}"), "1");
    let second = Program::start_with(&[&flags[..], &["--controllers=-*"]].concat());
    second.kubectl(&["create", "configmap", "from-the-second", "--from-literal=b=2"]);
    first.until_value("configmap/from-the-second", "{.data.b}", "2");
    first.kubectl(&["create", "deployment", "web", "--image=none"]);
    second.until(
        "the controllers of the first work on what the second shows",
        |p| p.kubectl(&["get", "replicasets", "-o", "name"]),
        |names| names.contains("replicaset"),
    );
    // Controllers and scheduler of a third wait for the end of the first, and take over.
    let third = Program::start_with(&flags);
    let holder = |p: &Program| {
        let lease = ["get", "lease", "kube-controller-manager", "-n", "kube-system"];
        p.kubectl(&[&lease[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat())
    };
    let leader = holder(&third);
    drop(first);
    second.kubectl(&["create", "configmap", "alone"]);
    second.kubectl(&["create", "deployment", "after", "--image=none"]);
    third.until(
        "the controllers' pod, at which the scheduler has looked",
        |p| {
            p.kubectl(&[
                "get",
                "pods",
                "-l",
                "app=after",
                "-o",
                "jsonpath={.items[*].status.conditions[*].reason}",
            ])
        },
        |reasons| reasons.contains("Unschedulable"),
    );
    assert_ne!(holder(&third), leader);
    drop(third);
    drop(second);

    succeeds(&["store", "snapshot", &file("etcd"), "--store", &etcd.store()]);
    let dir = tempfile::tempdir().unwrap();
    succeeds(&["store", "restore", &file("etcd"), "--data-dir", &data_dir(&dir)]);
    let embedded = Program::start_in(dir, &["--no-node"]);
    for name in ["moved", "from-the-second", "alone"] {
        embedded.kubectl(&["get", "configmap", name]);
    }
    let metrics = embedded.kubectl(&["get", "--raw", "/metrics"]);
    assert!(metrics.contains("wasmk_store_read_only 0") && metrics.contains("wasmk_store_keys"), "{metrics}");
    let ready = embedded.kubectl(&["get", "--raw", "/readyz?verbose"]);
    assert!(ready.contains("[+]store ok"), "{ready}");
}

#[test]
fn unusable_settings_of_the_store_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = [
        "up",
        "--no-node",
        "--api-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        "127.0.0.1:0",
        "--registry-addr",
        "127.0.0.1:0",
    ];
    let data = data_dir(&dir);
    let kms = encryption(dir.path(), "kms.yaml", "kms: {name: x}");
    let short = encryption(dir.path(), "short.yaml", "aesgcm: {keys: [{name: k, secret: c2hvcnQ=}]}");
    for (flags, word) in [
        (&["--store", "sqlite"][..], "expected"),
        (&["--store", "etcd://127.0.0.1:1", "--etcd-cafile", "/absent"], "/absent"),
        (&["--etcd-certfile", "a"], "--etcd-keyfile"),
        (&["--encryption-provider-config", "/absent"], "/absent"),
        (&["--encryption-provider-config", &kms], "kms is not supported"),
        (&["--encryption-provider-config", &short], "key k of aesgcm has 5 bytes"),
        (&["--from-snapshot", "/absent"], "/absent"),
    ] {
        let output = wasmk(&[&base[..], &["--data-dir", &data], flags].concat());
        let said = text(&output);
        assert!(!output.status.success() && said.contains(word), "{flags:?}: {said}");
    }
}

/// Parts that are ordinary clients of the API cannot open the store: they are not even built with it.
#[test]
fn only_the_api_server_is_built_with_the_store() {
    let part = |folder: &str| {
        let path = wasmk_tests::program::repository().join(folder).join("Cargo.toml");
        let text = fs::read_to_string(path).unwrap();
        text.split("[dev-dependencies]").next().unwrap_or_default().contains("wasmk-store")
    };
    assert!(part("host/apiserver"), "the check sees what it looks for");
    for folder in ["controllers", "functions", "host/node", "host/net", "runtime", "sdk/api"] {
        assert!(!part(folder), "{folder} has the store among its dependencies");
    }
}
