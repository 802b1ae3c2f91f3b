//! The calls, against a real containerd (tools/test-containerd). Skipped, with a word, where containers
//! cannot be run and need not be.

use std::{path::Path, process::Command, time::Duration};

use wasmk_cri::{
    Client,
    v1::{
        ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest, CreateContainerRequest,
        ImageSpec, ImageStatusRequest, LinuxContainerConfig, LinuxContainerResources,
        ListContainerStatsRequest, ListContainersRequest, PodSandboxConfig, PodSandboxMetadata,
        PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
        StopPodSandboxRequest,
    },
};

/// A containerd that is ended with it.
struct Containerd(tempfile::TempDir);

impl Containerd {
    fn tool(&self, verb: &str) -> std::process::Output {
        Command::new("../../tools/test-containerd")
            .arg(verb)
            .arg(self.0.path().join("c"))
            .output()
            .expect("the tool runs")
    }

    fn start() -> Option<(Self, Client)> {
        let dir = tempfile::Builder::new().prefix("cri").tempdir_in("/tmp").expect("a directory in /tmp");
        let containerd = Self(dir);
        let out = containerd.tool("up");
        let said = String::from_utf8_lossy(&out.stderr);
        if out.status.code() == Some(77) {
            wasmk_tests::required::skip("containers", &said);
            return None;
        }
        assert!(out.status.success(), "{said}");
        let socket = String::from_utf8(out.stdout).expect("a path");
        let client = Client::new(Path::new(socket.trim()));
        Some((containerd, client))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.tool("down");
    }
}

fn sandbox() -> PodSandboxConfig {
    let metadata =
        PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "default".into(), attempt: 0 };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: "p".into(),
        log_directory: std::env::temp_dir().join("wasmk-cri-test").display().to_string(),
        ..PodSandboxConfig::default()
    }
}

fn container(command: &str) -> ContainerConfig {
    let resources = LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 0 }),
        image: Some(ImageSpec { image: "localhost/box:1".into(), ..ImageSpec::default() }),
        command: ["sh", "-c", command].map(String::from).to_vec(),
        log_path: "c.log".into(),
        linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: None }),
        ..ContainerConfig::default()
    }
}

async fn run(client: &Client, sandbox_id: &str, command: &str) -> String {
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox_id.into(),
        config: Some(container(command)),
        sandbox_config: Some(sandbox()),
    };
    let id = client.create_container(request).await.unwrap().container_id;
    client.start_container(StartContainerRequest { container_id: id.clone() }).await.unwrap();
    id
}

#[tokio::test]
async fn a_container_lives_and_ends() {
    let Some((_containerd, client)) = Containerd::start() else { return };
    let info = client.info().await.unwrap();
    assert_eq!((info.name.as_str(), info.trouble), ("containerd", None));
    assert!(info.handlers.iter().any(|handler| handler == "runc"), "{:?}", info.handlers);
    let spec = |image: &str| Some(ImageSpec { image: image.into(), ..ImageSpec::default() });
    for (image, there) in [("localhost/box:1", true), ("localhost/none:1", false)] {
        let request = ImageStatusRequest { image: spec(image), verbose: false };
        assert_eq!(client.image_status(request).await.unwrap().image.is_some(), there, "{image}");
    }
    let request = RunPodSandboxRequest { config: Some(sandbox()), runtime_handler: String::new() };
    let sandbox_id = client.run_pod_sandbox(request).await.unwrap().pod_sandbox_id;
    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox_id.clone(), verbose: true };
    let status = client.pod_sandbox_status(request).await.unwrap();
    let ip = status.status.unwrap().network.unwrap().ip;
    assert!(ip.starts_with("10.") && status.info["info"].contains("\"network\""), "{ip}");

    let id = run(&client, &sandbox_id, "trap 'exit 7' TERM; while :; do sleep 0.1; done").await;
    let limit = Duration::from_secs(20);
    let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
    let end = client.exec_sync(&id, &words("hostname"), limit).await.unwrap();
    assert_eq!((end.exit_code, end.stdout.as_slice()), (0, &b"p\n"[..]));
    let late = client.exec_sync(&id, &words("sleep 60"), Duration::from_secs(1)).await.unwrap_err();
    assert!(late.is_timeout(), "{late}");
    let stats = client.list_container_stats(ListContainerStatsRequest { filter: None }).await.unwrap();
    assert_eq!(stats.stats[0].attributes.as_ref().unwrap().id, id);
    client.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: false };
    let status = client.container_status(request).await.unwrap().status.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 7));

    let listed = client.list_containers(ListContainersRequest { filter: None }).await.unwrap();
    assert_eq!(listed.containers.len(), 1);
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox_id.clone() }).await.unwrap();
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: sandbox_id }).await.unwrap();
    let listed = client.list_containers(ListContainersRequest { filter: None }).await.unwrap();
    assert_eq!(listed.containers, []);
}
