//! Users and decisions that come from elsewhere: tokens of issuers, reviews of services, policy files.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, routing::get};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use wasmk_apiserver::{AbacPolicy, Authorizer, Oidc, Serving, User, Webhook, serve_tls};

use crate::{
    support,
    world::{Authority, REVIEW, name, service},
};

fn webhook(config: kube::config::Kubeconfig, version: &str) -> Webhook {
    Webhook { config, version: version.into(), good: Duration::from_secs(60), bad: Duration::ZERO }
}

async fn who(server: &support::Server, token: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = server.send("POST", REVIEW, &headers, "{}").await;
    (answer.code, answer.body)
}

#[tokio::test]
async fn a_service_knows_tokens_nobody_else_knows() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let service = service(move |review| {
        count.fetch_add(1, Ordering::SeqCst);
        let known = review["spec"]["token"] == "from-afar";
        json!({"apiVersion": review["apiVersion"], "kind": "TokenReview", "status": {
            "authenticated": known,
            "user": {"username": "ann", "uid": "7", "groups": ["dev"], "extra": {"team": ["blue"]}},
        }})
    })
    .await;
    let server = support::start_with(|config| {
        config.authentication.webhook = Some(webhook(service.config.clone(), "v1"));
    })
    .await;
    for _ in 0..3 {
        let (code, review) = who(&server, "from-afar").await;
        assert_eq!((code, name(&review)), (201, "ann"), "{review}");
        assert_eq!(review["status"]["userInfo"]["groups"], json!(["dev", "system:authenticated"]));
        assert_eq!(review["status"]["userInfo"]["extra"]["team"], json!(["blue"]));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "good answers are remembered");
    assert_eq!(who(&server, "from-nowhere").await.0, 401);
    assert_eq!(
        service.asked.lock().unwrap()[0]["spec"]["audiences"][0],
        "https://kubernetes.default.svc.cluster.local"
    );
    // Whoever is known already is not asked about.
    assert_eq!(name(&who(&server, support::TOKEN).await.1), "admin");
}

#[tokio::test]
async fn a_service_decides_what_others_do_not() {
    let service = service(|review| {
        let spec = &review["spec"];
        let reads = spec["resourceAttributes"]["verb"] == "list" || spec["nonResourceAttributes"]["path"] == "/metrics";
        let ours = spec["group"].as_array().is_some_and(|groups| groups.contains(&json!("readers")));
        let denied = spec["user"] == "eve";
        json!({"status": {"allowed": ours && reads && !denied, "denied": denied, "reason": "says the service"}})
    })
    .await;
    let server = support::start_with(|config| {
        config.authorization.modes = vec![Authorizer::Webhook, Authorizer::Rbac];
        config.authorization.webhook = Some(webhook(service.config.clone(), "v1beta1"));
        config.static_tokens.push(("ann".into(), User::new("ann", ["readers"])));
        config.static_tokens.push(("eve".into(), User::new("eve", ["readers"])));
    })
    .await;
    let code = async |token: &str, method: &str, path: &str| {
        let bearer = format!("Bearer {token}");
        server.send(method, path, &[("authorization", &bearer)], "").await
    };
    assert_eq!(code("ann", "GET", "/api/v1/pods").await.code, 200);
    assert_eq!(code("ann", "GET", "/metrics").await.code, 200);
    let refused = code("ann", "DELETE", "/api/v1/nodes/n").await;
    assert!(refused.code == 403 && refused.body["message"].as_str().unwrap().ends_with(": says the service"));
    // What no service allows, roles may: discovery is allowed to everybody. What it refuses, nobody allows.
    assert_eq!(code("ann", "GET", "/api").await.code, 200);
    assert_eq!(code("eve", "GET", "/api").await.code, 403);
    // Administrators need nobody's leave.
    assert_eq!(code(support::TOKEN, "DELETE", "/api/v1/nodes/n").await.code, 404);
}

#[tokio::test]
async fn a_policy_file_decides() {
    let policy = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"guest","namespace":"default","resource":"pods","apiGroup":"","readonly":true}}"#;
    let server = support::start_with(|config| {
        config.authorization.modes = vec![Authorizer::Abac];
        config.authorization.policy = AbacPolicy::parse(policy).unwrap();
        config.static_tokens.push(("guest".into(), User::new("guest", ["x"])));
    })
    .await;
    for (method, path, expect) in [
        ("GET", "/api/v1/namespaces/default/pods", 200),
        ("GET", "/api/v1/namespaces/default/pods/p", 404),
        ("DELETE", "/api/v1/namespaces/default/pods/p", 403),
        ("GET", "/api/v1/namespaces/other/pods", 403),
        ("GET", "/api/v1/namespaces/default/secrets", 403),
        ("GET", "/api", 403),
    ] {
        let answer = server.send(method, path, &[("authorization", "Bearer guest")], "").await;
        assert_eq!(answer.code, expect, "{method} {path}");
    }
}

/// Names of keys, with their private halves.
type Keys = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// An issuer of OpenID Connect tokens, over TLS.
struct Issuer {
    url: String,
    ca: Authority,
    keys: Keys,
    _stop: tokio_util::sync::DropGuard,
}

impl Issuer {
    async fn start() -> Self {
        let ca = Authority::new("issuer");
        let keys = Keys::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/realm", listener.local_addr().unwrap());
        let (issuer, shown) = (url.clone(), keys.clone());
        let document = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
        let router = Router::new()
            .route("/realm/.well-known/openid-configuration", get(async move || Json(document)))
            .route("/realm/keys", get(async move || Json(key_set(&shown.lock()))));
        let pair = ca.server();
        let tls = Serving::new(&pair.cert, &pair.key).unwrap().config("").unwrap();
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::spawn(serve_tls(listener, tls, router, stop.clone()));
        Self { url, ca, keys, _stop: stop.drop_guard() }
    }

    /// Publishes a new key instead of the old ones, and returns what signs with it.
    fn rotate(&self, id: &str) -> (Header, EncodingKey) {
        let key = rcgen::KeyPair::generate().unwrap();
        *self.keys.lock() = vec![(id.to_owned(), key.public_key_raw().to_vec())];
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(id.into());
        (header, EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap())
    }

    fn settings(&self) -> Oidc {
        Oidc {
            issuer: self.url.clone(),
            client_id: "kubernetes".into(),
            username_claim: "email".into(),
            username_prefix: Some("oidc:".into()),
            groups_claim: "groups".into(),
            groups_prefix: "oidc:".into(),
            ca: Some(self.ca.pem.clone()),
            required: vec![("hd".into(), "example.com".into())],
            algorithms: vec!["RS256".into(), "ES256".into()],
        }
    }
}

fn key_set(keys: &[(String, Vec<u8>)]) -> Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let listed = keys.iter().map(|(id, point)| {
        json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": id,
            "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]),
        })
    });
    json!({"keys": listed.collect::<Vec<_>>()})
}

#[tokio::test]
async fn tokens_of_a_trusted_issuer_are_users() {
    let issuer = Issuer::start().await;
    let server = support::start_with(|config| config.authentication.oidc = Some(issuer.settings())).await;
    let now = i64::try_from(jsonwebtoken::get_current_timestamp()).unwrap();
    let claims = json!({
        "iss": issuer.url, "aud": "kubernetes", "exp": now + 600, "iat": now, "sub": "0815",
        "email": "ann@example.com", "email_verified": true, "groups": ["dev", "ops"], "hd": "example.com",
    });
    let with = |key: &str, value: Value| {
        let mut claims = claims.clone();
        claims[key] = value;
        claims
    };
    let first = issuer.rotate("one");
    let sign = |(header, key): &(Header, EncodingKey), claims: &Value| {
        jsonwebtoken::encode(header, claims, key).unwrap()
    };
    let (code, review) = who(&server, &sign(&first, &claims)).await;
    assert_eq!((code, name(&review)), (201, "oidc:ann@example.com"), "{review}");
    let groups = json!(["oidc:dev", "oidc:ops", "system:authenticated"]);
    assert_eq!(review["status"]["userInfo"]["groups"], groups);
    for (what, odd) in [
        ("another audience", with("aud", json!("others"))),
        ("another issuer", with("iss", json!("https://elsewhere"))),
        ("too old", with("exp", json!(now - 60))),
        ("too early", with("nbf", json!(now + 600))),
        ("not verified", with("email_verified", json!(false))),
        ("no name", with("email", Value::Null)),
        ("a required claim differs", with("hd", json!("example.org"))),
    ] {
        assert_eq!(who(&server, &sign(&first, &odd)).await.0, 401, "{what}");
    }
    let stranger = rcgen::KeyPair::generate().unwrap();
    let forged = (first.0.clone(), EncodingKey::from_ec_pem(stranger.serialize_pem().as_bytes()).unwrap());
    assert_eq!(who(&server, &sign(&forged, &claims)).await.0, 401);

    // The issuer changes its key; soon its new tokens are believed, and the old ones are not.
    let second = issuer.rotate("two");
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while who(&server, &sign(&second, &claims)).await.0 != 201 {
        assert!(tokio::time::Instant::now() < until, "the new key was not read");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(who(&server, &sign(&first, &claims)).await.0, 401);
}

#[tokio::test]
async fn nobody_is_anonymous_where_that_is_not_welcome() {
    let server = support::start_with(|config| config.authentication.anonymous = false).await;
    assert_eq!(server.send("GET", "/healthz", &[("authorization", "")], "").await.code, 401);
    assert_eq!(server.get("/healthz").await.code, 200);
}

#[tokio::test]
async fn browsers_show_their_token_among_protocols() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let server = support::start().await;
    let offered = |token: &str| {
        format!("base64url.bearer.authorization.k8s.io.{}, v5.channel.k8s.io", URL_SAFE_NO_PAD.encode(token))
    };
    for (token, code) in [(support::TOKEN, 200), ("wrong", 401)] {
        let headers = [("authorization", ""), ("sec-websocket-protocol", &offered(token))];
        assert_eq!(server.send("GET", "/api/v1/pods", &headers, "").await.code, code);
    }
}
