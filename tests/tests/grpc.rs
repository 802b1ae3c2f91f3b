//! gRPC through a service and an ingress: streams that stay open while what is behind them changes.

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use futures::{StreamExt, stream, stream::BoxStream};
use tokio::{net::TcpListener, runtime::Runtime, sync::watch, time::timeout};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use wasmk_cri::devices::{
    AllocateRequest, AllocateResponse, Device, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse,
    device_plugin_client::DevicePluginClient,
    device_plugin_server::{DevicePlugin, DevicePluginServer},
};
use wasmk_tests::{place::Place, program::Program};

static CLUSTER: LazyLock<Program> = LazyLock::new(Program::start);

/// Longest wait for a message.
const PATIENCE: Duration = Duration::from_secs(30);

type Answer<T> = Result<Response<T>, Status>;

/// Streams each new word to whoever listens, with the server's own name before it.
struct Crier {
    name: &'static str,
    words: watch::Receiver<String>,
}

#[tonic::async_trait]
impl DevicePlugin for Crier {
    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    async fn list_and_watch(&self, _: Request<Empty>) -> Answer<Self::ListAndWatchStream> {
        let (mut words, name) = (self.words.clone(), self.name);
        words.mark_changed();
        let said = stream::unfold(words, move |mut words| async move {
            words.changed().await.ok()?;
            let id = format!("{name} says {}", *words.borrow_and_update());
            let one = Device { id, health: String::new(), topology: None };
            Some((Ok(ListAndWatchResponse { devices: vec![one] }), words))
        });
        Ok(Response::new(said.boxed()))
    }

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Answer<DevicePluginOptions> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Answer<PreferredAllocationResponse> {
        Err(Status::resource_exhausted(format!("{} has none", self.name)))
    }

    async fn allocate(&self, _: Request<AllocateRequest>) -> Answer<AllocateResponse> {
        Ok(Response::new(AllocateResponse::default()))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Answer<PreStartContainerResponse> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}

/// A server beside the cluster, which a service leads to; the word it says.
async fn crier(name: &'static str, address: &str) -> (SocketAddr, watch::Sender<String>) {
    let listener = TcpListener::bind((address, 0)).await.expect("a port");
    let at = listener.local_addr().expect("its address");
    let (word, words) = watch::channel("hello".to_string());
    let incoming = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    let service = DevicePluginServer::new(Crier { name, words });
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(Box::pin(incoming)));
    (at, word)
}

fn manifest(endpoint: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: crier}}\nspec: {{ports: [{{name: grpc, port: 80, targetPort: {0}}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: crier-1, labels: {{kubernetes.io/service-name: crier}}}}\n\
         ports: [{{name: grpc, port: {0}}}]\nendpoints: [{{addresses: [{1}], conditions: {{ready: true}}}}]\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: crier, annotations: {{nginx.ingress.kubernetes.io/backend-protocol: GRPC}}}}\n\
         spec: {{rules: [{{host: crier.example.com, http: {{paths: [{{path: /, pathType: Prefix, \
         backend: {{service: {{name: crier, port: {{number: 80}}}}}}}}]}}}}]}}\n",
        endpoint.port(),
        endpoint.ip()
    )
}

/// One stream, and the last word from it.
struct Listener {
    stream: tonic::Streaming<ListAndWatchResponse>,
}

impl Listener {
    async fn open(client: &mut DevicePluginClient<Channel>) -> Result<Self, Status> {
        Ok(Self { stream: client.list_and_watch(Empty {}).await?.into_inner() })
    }

    async fn next(&mut self) -> String {
        let message = timeout(PATIENCE, self.stream.message()).await.expect("a message in time");
        let message = message.expect("no error").expect("no end");
        message.devices.into_iter().map(|d| d.id).collect()
    }
}

async fn client(to: SocketAddr, host: &str) -> DevicePluginClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).expect("an address");
    let origin = format!("http://{host}").parse().expect("an origin");
    let channel = timeout(PATIENCE, endpoint.origin(origin).connect()).await.expect("in time");
    DevicePluginClient::new(channel.expect("a connection"))
}

/// The first stream that can be opened and has something to say.
async fn listen(client: &mut DevicePluginClient<Channel>) -> (Listener, String) {
    let opened = async {
        loop {
            if let Ok(mut listener) = Listener::open(client).await {
                let first = listener.next().await;
                return (listener, first);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, opened).await.expect("a stream in time")
}

/// The first stream, over a connection of its own, that comes from that server.
async fn until_from(name: &str, to: SocketAddr, host: &str) -> (Listener, String) {
    let opened = async {
        loop {
            let found = listen(&mut client(to, host).await).await;
            if found.1.starts_with(name) {
                return found;
            }
        }
    };
    timeout(PATIENCE, opened).await.expect("the server in time")
}

#[test]
fn streams_stay_open_through_a_service_and_an_ingress() {
    let place = Place::new(&CLUSTER, "default");
    Runtime::new().expect("a runtime").block_on(async {
        // Far beyond the pods that there are, in the range that is theirs.
        let part = CLUSTER.service_prefix().replacen("127.43.", "127.42.", 1);
        let (first, first_word) = crier("first", &format!("{part}201")).await;
        let (second, second_word) = crier("second", &format!("{part}202")).await;
        place.apply(&manifest(first));
        let service = place.value("service/crier", "{.spec.clusterIP}");
        let service: SocketAddr = format!("{service}:80").parse().expect("an address");
        place.until(
            &format!("(echo > /dev/tcp/{}/{}) 2>/dev/null && echo open", service.ip(), service.port()),
            "open",
        );

        let mut by_service = client(service, "crier").await;
        let mut by_ingress = client(CLUSTER.address("ingress"), "crier.example.com").await;
        let mut old = Vec::new();
        for client in [&mut by_service, &mut by_ingress] {
            let (listener, said) = listen(client).await;
            assert_eq!(said, "first says hello");
            // How a call ended stands behind its body, and comes through.
            let refused = client.get_preferred_allocation(PreferredAllocationRequest::default()).await;
            let refused = refused.expect_err("a refusal");
            assert_eq!(
                (refused.code(), refused.message()),
                (tonic::Code::ResourceExhausted, "first has none")
            );
            old.push(listener);
        }

        // Another server is behind it from now on, for those who come: streams that are open stay where they are.
        place.apply(&manifest(second));
        for (to, host) in [(service, "crier"), (CLUSTER.address("ingress"), "crier.example.com")] {
            let (mut new, said) = until_from("second", to, host).await;
            assert_eq!(said, "second says hello");
            second_word.send_replace("welcome".into());
            assert_eq!(new.next().await, "second says welcome");
            second_word.send_replace("hello".into());
        }
        for round in 0..20 {
            first_word.send_replace(round.to_string());
            for listener in &mut old {
                assert_eq!(listener.next().await, format!("first says {round}"));
            }
        }
    });
}
