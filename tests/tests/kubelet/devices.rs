//! Devices that a plugin announces, over the interface that vendors' plugins speak.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::{net::UnixListener, runtime::Runtime, sync::watch};
use tonic::{Request, Response, Status, transport::Server};
use wasmk_cri::devices::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationResponse,
    Device, DevicePluginOptions, DeviceSpec, Empty, ListAndWatchResponse, Mount, PreStartContainerRequest,
    PreStartContainerResponse, PreferredAllocationRequest, PreferredAllocationResponse, RegisterRequest,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
    registration_client::RegistrationClient,
};
use wasmk_tests::{
    node::{Node, container, pod},
    program::Program,
};

type Answer<T> = Result<Response<T>, Status>;

/// How often the plugin looks whether the agent has a new socket.
const LOOK: Duration = Duration::from_millis(100);

/// What a plugin has and was asked, over all of its lives.
struct Rack {
    resource: &'static str,
    /// Whether it gives more than variables.
    real: bool,
    /// Health by device.
    devices: watch::Sender<BTreeMap<&'static str, bool>>,
    calls: Mutex<Vec<String>>,
    /// A directory that containers get to see.
    note: PathBuf,
}

impl Rack {
    fn new(resource: &'static str, real: bool, devices: &[&'static str], note: &Path) -> Arc<Self> {
        let devices = watch::Sender::new(devices.iter().map(|id| (*id, true)).collect());
        Arc::new(Self { resource, real, devices, calls: Mutex::default(), note: note.into() })
    }

    /// Makes a device whole or broken.
    fn set(&self, id: &'static str, healthy: bool) {
        self.devices.send_modify(|devices| {
            devices.insert(id, healthy);
        });
    }

    fn count(&self, call: &str) -> usize {
        self.calls.lock().expect("calls").iter().filter(|c| *c == call).count()
    }

    fn called(&self, call: String) {
        self.calls.lock().expect("calls").push(call);
    }
}

struct Served(Arc<Rack>);

#[tonic::async_trait]
impl DevicePlugin for Served {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let mut devices = self.0.devices.subscribe();
        devices.mark_changed();
        let list = stream::unfold(devices, |mut devices| async {
            devices.changed().await.ok()?;
            let health = |good: bool| if good { "Healthy" } else { "Unhealthy" }.to_string();
            let all = devices.borrow_and_update().clone().into_iter();
            let all = all.map(|(id, good)| Device { id: id.into(), health: health(good), topology: None });
            Some((Ok(ListAndWatchResponse { devices: all.collect() }), devices))
        });
        Ok(Response::new(list.boxed()))
    }

    /// It likes the last ones best.
    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        let answer = request.into_inner().container_requests.into_iter().map(|one| {
            let mut ids = one.available_device_i_ds;
            ids.sort();
            let first = ids.len() - usize::try_from(one.allocation_size).expect("a number");
            ContainerPreferredAllocationResponse { device_i_ds: ids.split_off(first) }
        });
        Ok(Response::new(PreferredAllocationResponse { container_responses: answer.collect() }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        let answer = request.into_inner().container_requests.into_iter().map(|one| {
            let ids = one.devices_ids.join(",");
            self.0.called(format!("Allocate {ids}"));
            let mut answer =
                ContainerAllocateResponse { envs: [("DEVICES".into(), ids)].into(), ..Default::default() };
            if self.0.real {
                let (container_path, host_path) = ("/note".into(), self.0.note.display().to_string());
                answer.mounts = vec![Mount { container_path, host_path, read_only: true }];
                let (container_path, host_path) = ("/dev/thing".into(), "/dev/null".into());
                answer.devices = vec![DeviceSpec { container_path, host_path, permissions: "rw".into() }];
            }
            answer
        });
        Ok(Response::new(AllocateResponse { container_responses: answer.collect() }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Answer<PreStartContainerResponse> {
        self.0.called(format!("PreStart {}", request.into_inner().devices_ids.join(",")));
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn options() -> DevicePluginOptions {
    DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

/// A life of a plugin; it ends when dropped.
struct Life(Option<Runtime>);

impl Life {
    fn start(rack: &Arc<Rack>, dir: &Path) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        runtime.spawn(live(rack.clone(), dir.into()));
        Self(Some(runtime))
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.0.take().expect("a runtime").shutdown_background();
    }
}

/// Serves and registers, again whenever the agent has a new socket: then its own is gone as well.
async fn live(rack: Arc<Rack>, dir: PathBuf) {
    let name = format!("{}.sock", rack.resource.replace('/', "-"));
    let mut known = None;
    loop {
        let now = fs::metadata(dir.join("kubelet.sock")).ok().map(|meta| (meta.ino(), meta.ctime_nsec()));
        if now.is_some() && now != known && register(&rack, &dir, &name).await.is_ok() {
            known = now;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn register(rack: &Arc<Rack>, dir: &Path, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let _ = fs::remove_file(dir.join(name));
    let listener = UnixListener::bind(dir.join(name))?;
    let accepted = stream::unfold(listener, |listener| async {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let server = Server::builder().add_service(DevicePluginServer::new(Served(rack.clone())));
    tokio::spawn(server.serve_with_incoming(accepted));
    let mut agent = RegistrationClient::new(wasmk_cri::unix_channel(&dir.join("kubelet.sock")));
    let request = |version: &str, resource: &str| RegisterRequest {
        version: version.into(),
        endpoint: name.into(),
        resource_name: resource.into(),
        options: Some(options()),
    };
    // What is wrong is refused in words.
    for (version, resource, why) in
        [("v1alpha", rack.resource, "v1beta1"), ("v1beta1", "thing", "`domain/name` was expected")]
    {
        let refused = agent.register(request(version, resource)).await.expect_err("a refusal");
        assert!(refused.message().contains(why), "{refused}");
    }
    agent.register(request("v1beta1", rack.resource)).await?;
    Ok(())
}

fn amounts(p: &Program, resource: &str) -> String {
    let key = resource.replace('.', "\\.");
    p.value("node/node-a", &format!("{{.status.capacity.{key}}} {{.status.allocatable.{key}}}"))
}

fn until_amounts(p: &Program, resource: &str, expect: &str) {
    p.until(&format!("{resource} is {expect}"), |p| amounts(p, resource), |found| found == expect);
}

const THING: &str = "example.com/thing";
const WORD: &str = "example.com/word";

/// A pod of a container that prints what it was given, and stays.
fn holder(name: &str, count: u32) -> String {
    let limits = format!(", resources: {{limits: {{{THING}: {count}}}}}");
    let line = "echo $DEVICES; cat /note/text; test -c /dev/thing && echo a device; sleep 3600";
    pod(name, "", &[container("main", line, &limits)])
}

#[test]
fn containers_get_devices_that_plugins_announce() {
    let Some(mut node) = Node::start() else { return };
    let dir = Path::new(&node.program.data_dir()).join("node/device-plugins");
    let note = tempfile::tempdir().expect("a directory");
    fs::write(note.path().join("text"), "to whom it may concern\n").expect("a file");
    let rack = Rack::new(THING, true, &["a", "b", "c"], note.path());
    let life = Life::start(&rack, &dir);
    let words = Rack::new(WORD, false, &["w"], note.path());
    let _words = Life::start(&words, &dir);
    until_amounts(&node.program, THING, "3 3");

    // A container gets what its limits say, as the plugin prefers, and what is needed for it.
    let p = &node.program;
    p.apply(&holder("one", 2));
    p.until_row("one", "1/1 Running");
    p.until_log("one", "b,c\nto whom it may concern\na device\n");
    assert_eq!((rack.count("Allocate b,c"), rack.count("PreStart b,c")), (1, 1));
    p.apply(&holder("two", 2));
    p.until_event("two", "Insufficient example.com/thing");

    // A guest of this process gets variables; a device it cannot have, and it says so.
    p.push("command");
    let image = format!("{}/default/command:1", p.address("registry"));
    let guest = |name: &str, resource: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{restartPolicy: Never, containers: [{{name: main, image: '{image}', \
             args: [print], resources: {{limits: {{{resource}: 1}}}}}}]}}\n"
        )
    };
    until_amounts(p, WORD, "1 1");
    p.apply(&guest("reader", WORD));
    p.until_value("pod/reader", "{.status.phase}", "Succeeded");
    assert!(p.kubectl(&["logs", "reader"]).lines().any(|line| line == "DEVICES=w"));
    p.apply(&guest("dreamer", THING));
    p.until(
        "the reason",
        |p| p.value("pod/dreamer", "{.status.containerStatuses[0].state.waiting.message}"),
        |text| text.contains("its limits ask for devices"),
    );
    p.kubectl(&["delete", "pod", "reader", "dreamer", "--now"]);

    // What is broken is not given, but counted.
    rack.set("a", false);
    until_amounts(p, THING, "3 2");
    // Without its plugin nothing is given; what runs goes on.
    drop(life);
    until_amounts(p, THING, "3 0");
    rack.set("a", true);
    let _life = Life::start(&rack, &dir);
    until_amounts(p, THING, "3 3");

    // Another life of the agent knows who has what, and the plugin comes again by itself.
    let endpoint = node.containerd.endpoint();
    node.program = node.program.kill_with(&["--container-runtime-endpoint", &endpoint]);
    let p = &node.program;
    until_amounts(p, THING, "3 3");
    p.until_row("one", "1/1 Running");
    p.apply(&holder("three", 1));
    p.until_row("three", "1/1 Running");
    p.until_log("three", "a\nto whom it may concern\na device\n");
    assert_eq!(rack.count("Allocate b,c"), 1, "it was not asked again");
    p.kubectl(&["delete", "pod", "one", "--now"]);
    p.until_row("two", "1/1 Running");
    p.until_log("two", "b,c\nto whom it may concern\na device\n");
    p.kubectl(&["delete", "pod", "two", "three", "--now"]);
}
