use serde_json::json;
use wasmk_api::{NODE_SOURCE, k8s_openapi::api::networking::v1::NetworkPolicy};

use super::*;

/// A node that hears nothing of services, with one policy: the pods of `app` may only reach `db` on one port,
/// and nobody may reach `db` but they.
fn around() -> Neighbours {
    let client = kube::Client::new(
        tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        }),
        "default",
    );
    let (view, _) = View::new(client);
    let policies = Policies::none();
    let app = |name: &str| json!({"matchLabels": {"app": name}});
    let policy = |name: &str, spec: serde_json::Value| {
        let policy = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        Arc::new(serde_json::from_value::<NetworkPolicy>(policy).unwrap())
    };
    let out = json!({"podSelector": app("web"), "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": app("db")}], "ports": [{"port": 5432}, {"port": 53, "protocol": "UDP"}]}]});
    let into = json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": app("web")}]}]});
    let members = [member("web", "127.42.9.1"), member("db", "127.42.9.2"), member("job", "127.42.9.3")];
    policies.set(Table::new(&[policy("out", out), policy("in", into)], Default::default(), members));
    Neighbours { view, policies, node: "n1".into() }
}

fn member(app: &str, address: &str) -> Arc<Member> {
    let pod = json!({
        "metadata": {"namespace": "shop", "name": app, "labels": {"app": app}},
        "spec": {"containers": []}, "status": {"podIP": address},
    });
    Arc::new(Member::of(&serde_json::from_value(pod).unwrap()).unwrap())
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_guest_is_held_to_the_rules_of_both_ends() {
    let around = around();
    let hole = around.policies.hole().unwrap();
    let pod = |ip: &str| PodNetwork::of_pod(around.clone(), "shop", Some(ip.parse().unwrap()), None);
    let (web, job) = (pod("127.42.9.1"), pod("127.42.9.3"));
    let function = PodNetwork::of_function(around.clone(), member("web", "127.42.9.1"));
    for guest in [&web, &function] {
        assert_eq!(guest.connect(Protocol::Tcp, at("127.42.9.2:5432")), Ok(at("127.42.9.2:5432")));
        assert_eq!(guest.connect(Protocol::Tcp, at("127.42.9.2:80")), Ok(hole));
        assert_eq!(guest.connect(Protocol::Tcp, at("9.9.9.9:5432")), Ok(hole));
        assert!(guest.connect(Protocol::Udp, at("127.42.9.3:53")).is_err());
        let asks = http::Request::get("http://127.42.9.2:81/").body(()).unwrap().into_parts().0;
        let HttpTarget::Connect(addresses) = guest.http(&asks).await.unwrap() else { panic!("an address") };
        assert_eq!(addresses, [hole]);
    }
    assert_eq!(job.connect(Protocol::Tcp, at("127.42.9.2:5432")), Ok(hole));
    assert_eq!(job.connect(Protocol::Tcp, at("9.9.9.9:80")), Ok(at("9.9.9.9:80")));
}

#[tokio::test]
async fn what_comes_in_is_judged_and_answers_pass() {
    let around = around();
    let db = PodNetwork::of_pod(around.clone(), "shop", Some("127.42.9.2".parse().unwrap()), None);
    db.bind(Protocol::Tcp, at("127.42.9.2:5432")).unwrap();
    db.bind(Protocol::Udp, at("127.42.9.2:53")).unwrap();
    assert!(
        db.accept(Protocol::Tcp, at("127.42.9.1:4000")) && !db.accept(Protocol::Tcp, at("127.42.9.3:4000"))
    );
    assert!(!db.accept(Protocol::Udp, at("127.42.9.3:4000")));
    // Whom it has asked may answer; whom it may not ask, it may answer.
    db.connect(Protocol::Udp, at("127.42.9.3:4000")).unwrap();
    assert!(db.accept(Protocol::Udp, at("127.42.9.3:4000")));
    let web = PodNetwork::of_pod(around, "shop", Some("127.42.9.1".parse().unwrap()), None);
    web.bind(Protocol::Udp, at("127.42.9.1:53")).unwrap();
    assert!(web.connect(Protocol::Udp, at("127.42.9.3:4000")).is_err());
    assert!(web.accept(Protocol::Udp, at("127.42.9.3:4000")));
    assert!(web.connect(Protocol::Udp, at("127.42.9.3:4000")).is_ok());
}

#[tokio::test]
async fn connections_start_where_they_can() {
    let around = around();
    let pod = PodNetwork::of_pod(around.clone(), "shop", Some("127.42.9.1".parse().unwrap()), None);
    assert_eq!(pod.source(at("127.42.9.2:80")), Some("127.42.9.1".parse().unwrap()));
    assert_eq!(pod.source(at("9.9.9.9:80")), None, "the world is not on loopback");
    let function = PodNetwork::of_function(around, member("web", "127.42.9.1"));
    assert_eq!(function.source(at("127.42.9.2:80")), Some(NODE_SOURCE.into()));
}
