//! A controller as its author writes one with kube-rs, and what it takes for granted of an API server.
//!
//! A kind derived from a struct; a controller that owns config maps, writes status by apply, and cleans up by finalizer.
//! The cluster is that of the kubeconfig; ends well when everything was as it should be.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{
    api::core::v1::ConfigMap, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResource, CustomResourceExt, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    runtime::{
        WatchStreamExt,
        controller::{Action, Controller},
        finalizer::{self, Event, finalizer},
        reflector,
        wait::{await_condition, conditions},
        watcher,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const MANAGER: &str = "greeter";
const FINALIZER: &str = "tests.wasmk.dev/farewell";

/// What the derive makes a definition of: an enum, an optional field, a default, a list, bounds.
#[derive(CustomResource, Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "tests.wasmk.dev",
    version = "v1",
    kind = "Greeting",
    namespaced,
    status = "GreetingStatus",
    shortname = "greet",
    scale(spec_replicas_path = ".spec.copies", status_replicas_path = ".status.copies"),
    printcolumn(name = "Tone", type_ = "string", json_path = ".spec.tone"),
    selectable = ".spec.tone"
)]
#[serde(rename_all = "camelCase")]
struct GreetingSpec {
    #[schemars(length(min = 1, max = 20))]
    who: String,
    #[serde(default)]
    tone: Tone,
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 5))]
    copies: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    postscript: Option<String>,
    #[serde(default)]
    also: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
enum Tone {
    #[default]
    Warm,
    Formal,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct GreetingStatus {
    copies: i32,
    observed_generation: i64,
}

fn one() -> i32 {
    1
}

#[derive(Clone)]
struct Context {
    client: Client,
    farewells: Arc<AtomicUsize>,
}

impl Context {
    fn greetings(&self) -> Api<Greeting> {
        Api::default_namespaced(self.client.clone())
    }

    fn texts(&self) -> Api<ConfigMap> {
        Api::default_namespaced(self.client.clone())
    }

    /// Writes the config maps and then the status, both by apply.
    async fn greet(&self, greeting: &Greeting) -> kube::Result<Action> {
        let as_greeter = PatchParams::apply(MANAGER).force();
        for copy in 0..greeting.spec.copies {
            let name = format!("{}-{copy}", greeting.name_any());
            let text = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": name, "ownerReferences": [greeting.controller_owner_ref(&())] },
                "data": { "text": format!("{:?}: {}", greeting.spec.tone, greeting.spec.who) },
            });
            self.texts().patch(&name, &as_greeter, &Patch::Apply(text)).await?;
        }
        let status = GreetingStatus {
            copies: greeting.spec.copies,
            observed_generation: greeting.metadata.generation.unwrap_or_default(),
        };
        let status = json!({ "apiVersion": "tests.wasmk.dev/v1", "kind": "Greeting", "status": status });
        self.greetings().patch_status(&greeting.name_any(), &as_greeter, &Patch::Apply(status)).await?;
        Ok(Action::await_change())
    }
}

async fn reconcile(
    greeting: Arc<Greeting>,
    cx: Arc<Context>,
) -> Result<Action, finalizer::Error<kube::Error>> {
    finalizer(&cx.greetings(), FINALIZER, greeting, |event| async {
        match event {
            Event::Apply(greeting) => cx.greet(&greeting).await,
            Event::Cleanup(_) => {
                cx.farewells.fetch_add(1, Ordering::SeqCst);
                Ok(Action::await_change())
            }
        }
    })
    .await
}

fn run(cx: &Context, settings: watcher::Config) -> tokio::task::JoinHandle<()> {
    let again = |_: Arc<Greeting>, _: &finalizer::Error<kube::Error>, _: Arc<Context>| {
        Action::requeue(Duration::from_millis(200))
    };
    let controller = Controller::new(cx.greetings(), settings.clone())
        .owns(cx.texts(), settings)
        .run(reconcile, again, Arc::new(cx.clone()))
        .for_each(|_| async {});
    tokio::spawn(controller)
}

async fn within<T, E: std::fmt::Debug>(what: &str, of: impl Future<Output = Result<T, E>>) -> T {
    let answer = tokio::time::timeout(PATIENCE, of).await;
    answer.unwrap_or_else(|_| panic!("{what} did not come about")).expect(what)
}

async fn define(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = Greeting::crd_name();
    let apply = PatchParams::apply(MANAGER).force();
    within("a definition", definitions.patch(name, &apply, &Patch::Apply(Greeting::crd()))).await;
    within("Established", await_condition(definitions, name, conditions::is_crd_established())).await;
}

fn greeting(name: &str, who: &str) -> Greeting {
    let spec = GreetingSpec { who: who.into(), tone: Tone::Warm, copies: 2, postscript: None, also: vec![] };
    Greeting::new(name, spec)
}

/// Waits until the greeting's status speaks of its generation.
async fn settled(cx: &Context, name: &str, generation: i64) {
    let is = move |found: Option<&Greeting>| {
        found.is_some_and(|g| g.status.as_ref().is_some_and(|s| s.observed_generation == generation))
    };
    within("a status", await_condition(cx.greetings(), name, is)).await;
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    define(&client).await;
    a_derived_kind_has_a_controller(client.clone()).await;
    what_a_derive_promises_is_kept(client.clone()).await;
    a_reflector_keeps_a_mirror(client).await;
    Ok(())
}

async fn a_derived_kind_has_a_controller(client: Client) {
    for (name, settings) in
        [("listed", watcher::Config::default()), ("streamed", watcher::Config::default().streaming_lists())]
    {
        let cx = Context { client: client.clone(), farewells: Arc::default() };
        // What was there before the controller is seen like what comes after it.
        let mut made =
            within("a greeting", cx.greetings().create(&PostParams::default(), &greeting(name, "all"))).await;
        assert_eq!((made.metadata.generation, &made.status), (Some(1), &None));
        let task = run(&cx, settings);
        settled(&cx, name, 1).await;

        made = cx.greetings().get(name).await.unwrap();
        assert_eq!(made.finalizers(), [FINALIZER]);
        made.spec.who = "you".into();
        within("a change", cx.greetings().replace(name, &PostParams::default(), &made)).await;
        settled(&cx, name, 2).await;
        let text = cx.texts().get(&format!("{name}-1")).await.unwrap();
        assert_eq!(text.data.as_ref().unwrap()["text"], "Warm: you");
        assert_eq!(text.owner_references()[0].uid, made.uid().unwrap());

        // A config map that somebody deletes comes back: the controller watches what it owns.
        let uid = text.uid().unwrap();
        cx.texts().delete(&format!("{name}-1"), &DeleteParams::default()).await.unwrap();
        let back =
            move |found: Option<&ConfigMap>| found.is_some_and(|f| f.metadata.uid.as_ref() != Some(&uid));
        within("the config map again", await_condition(cx.texts(), &format!("{name}-1"), back)).await;

        let uid = made.uid().unwrap();
        cx.greetings().delete(name, &DeleteParams::default()).await.unwrap();
        let gone = conditions::is_deleted(&uid);
        within("the end", await_condition(cx.greetings(), name, gone)).await;
        assert!(cx.farewells.load(Ordering::SeqCst) >= 1);
        let uid = back_uid(&cx, name).await;
        if let Some(uid) = uid {
            let gone = conditions::is_deleted(&uid);
            within("collection", await_condition(cx.texts(), &format!("{name}-1"), gone)).await;
        }
        task.abort();
    }
}

/// The uid of the second config map, unless it is collected already.
async fn back_uid(cx: &Context, name: &str) -> Option<String> {
    cx.texts().get_opt(&format!("{name}-1")).await.unwrap().and_then(|found| found.uid())
}

async fn what_a_derive_promises_is_kept(client: Client) {
    let greetings: Api<Greeting> = Api::namespaced(client.clone(), "kube-public");
    let formal = {
        let mut formal = greeting("formal", "madam");
        (formal.spec.tone, formal.spec.copies) = (Tone::Formal, 1);
        formal
    };
    for object in [&formal, &greeting("warm", "friend")] {
        within("a greeting", greetings.create(&PostParams::default(), object)).await;
    }
    // Defaults, bounds and enums of the struct are the API's.
    let dynamic: Api<kube::api::DynamicObject> =
        Api::namespaced_with(client.clone(), "kube-public", &kube::api::ApiResource::erase::<Greeting>(&()));
    let part = |spec: serde_json::Value| {
        let mut object =
            kube::api::DynamicObject::new("part", &kube::api::ApiResource::erase::<Greeting>(&()));
        object.data = json!({ "spec": spec });
        object
    };
    let made = dynamic.create(&PostParams::default(), &part(json!({ "who": "x" }))).await.unwrap();
    assert_eq!(made.data["spec"], json!({ "who": "x", "tone": "Warm", "copies": 1, "also": [] }));
    for (spec, field) in [
        (json!({}), "spec.who: Required value"),
        (
            json!({ "who": "" }),
            "spec.who: Invalid value: \"\": spec.who in body should be at least 1 chars long",
        ),
        (json!({ "who": "x", "copies": 9 }), "spec.copies: Invalid value: 9"),
        (json!({ "who": "x", "tone": "Rude" }), "spec.tone: Unsupported value: \"Rude\""),
    ] {
        let refused = dynamic.create(&PostParams::default(), &part(spec)).await.unwrap_err().to_string();
        assert!(refused.contains(field), "{field} in {refused}");
    }
    // Selectable fields, the scale subresource, the status apart from the rest.
    let listed = greetings.list(&ListParams::default().fields("spec.tone=Formal")).await.unwrap();
    assert_eq!(listed.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["formal"]);
    let scale = greetings.get_scale("formal").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(1));
    let merge = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
    greetings.patch_scale("formal", &PatchParams::default(), &merge).await.unwrap();
    let wider = greetings.get("formal").await.unwrap();
    assert_eq!((wider.spec.copies, wider.metadata.generation), (3, Some(2)));
    let merge = Patch::Merge(
        json!({ "spec": { "who": "nobody" }, "status": { "copies": 3, "observedGeneration": 2 } }),
    );
    let told = greetings.patch_status("formal", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!((told.spec.who.as_str(), told.metadata.generation), ("madam", Some(2)));
    assert_eq!(told.status, Some(GreetingStatus { copies: 3, observed_generation: 2 }));
    let metadata = greetings.list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(metadata.items.len(), 3);
}

async fn a_reflector_keeps_a_mirror(client: Client) {
    let texts: Api<ConfigMap> = Api::namespaced(client, "kube-node-lease");
    let named = |name: &str| ConfigMap {
        metadata: kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() },
        ..Default::default()
    };
    texts.create(&PostParams::default(), &named("mirror-0")).await.unwrap();
    let settings = watcher::Config::default().streaming_lists().fields("metadata.name!=kube-root-ca.crt");
    let (mirror, writer) = reflector::store();
    let changes = watcher(texts.clone(), settings).default_backoff().reflect(writer).applied_objects();
    let task = tokio::spawn(async move { changes.try_for_each(|_| async { Ok(()) }).await });
    within("the first state", mirror.wait_until_ready()).await;
    for at in 1..50 {
        texts.create(&PostParams::default(), &named(&format!("mirror-{at}"))).await.unwrap();
    }
    texts.delete("mirror-0", &DeleteParams::default()).await.unwrap();
    let same = async {
        while mirror.state().len() != 49 || mirror.state().iter().any(|c| c.name_any() == "mirror-0") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok::<_, ()>(())
    };
    within("the same state", same).await;
    task.abort();
}
