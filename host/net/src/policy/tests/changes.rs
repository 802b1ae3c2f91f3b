//! A table that is changed beside one that is made anew, and what is kept of it.

use super::{objects::policy, *};

/// What happens to a book: pods by a number each, of which the first few are also the node's own.
#[derive(Clone, Debug)]
enum Event {
    Pod(u8, Option<(u8, &'static str)>),
    Place(u8, u8),
    Leave(u8),
    Policies(Vec<Value>),
    Labels(&'static str),
}

fn events() -> impl Strategy<Value = Event> {
    let apps = || prop::sample::select(vec!["web", "db", "job"]);
    prop_oneof![
        4 => (0..6_u8, prop::option::of((1..6_u8, apps()))).prop_map(|(n, pod)| Event::Pod(n, pod)),
        2 => (0..3_u8, 1..6_u8).prop_map(|(n, at)| Event::Place(n, at)),
        1 => (0..3_u8).prop_map(Event::Leave),
        1 => prop::collection::vec(policy(), 0..3).prop_map(Event::Policies),
        1 => prop::sample::select(vec!["a", "b"]).prop_map(Event::Labels),
    ]
}

/// The objects that a book is told of.
#[derive(Default)]
struct World {
    pods: HashMap<Key, Arc<Member>>,
    policies: HashMap<Key, Arc<NetworkPolicy>>,
    namespaces: HashMap<String, Labels>,
}

fn numbered(n: u8, (at, app): (u8, &str)) -> Pod {
    let made = format!("2026-01-01T00:00:{n:02}Z");
    let pod = json!({
        "metadata": {"namespace": if n.is_multiple_of(2) { "shop" } else { "team" }, "name": n.to_string(), "uid": n.to_string(),
            "labels": {"app": app}, "creationTimestamp": made},
        "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8000 + u16::from(n)}]}]},
        "status": {"podIP": format!("127.42.0.{at}")},
    });
    serde_json::from_value(pod).unwrap()
}

impl World {
    fn happen(&mut self, event: Event, book: &mut Book, places: &mut Places) {
        match event {
            Event::Pod(n, pod) => {
                let name = key(&numbered(n, (1, "")));
                let member = pod.and_then(|pod| Member::of(&numbered(n, pod))).map(Arc::new);
                match &member {
                    Some(member) => drop(self.pods.insert(name.clone(), member.clone())),
                    None => drop(self.pods.remove(&name)),
                }
                book.set_pod(name, member);
            }
            Event::Place(n, at) => {
                let pod = numbered(n, (at, "web"));
                let address: IpAddr = format!("127.42.0.{at}").parse().unwrap();
                places.put(
                    key(&pod),
                    n.to_string(),
                    address,
                    Arc::new(Member::of(&pod).unwrap().at(address)),
                );
            }
            Event::Leave(n) => drop(places.leave(&key(&numbered(n, (1, ""))), &n.to_string())),
            Event::Policies(specs) => {
                let named = |(i, mut spec): (usize, Value)| {
                    let name = (spec["in"].as_str().unwrap_or("shop").to_string(), i.to_string());
                    spec.as_object_mut().unwrap().remove("in");
                    let object = json!({"metadata": {"namespace": name.0, "name": name.1}, "spec": spec});
                    (name, Arc::new(serde_json::from_value(object).unwrap()))
                };
                self.policies = specs.into_iter().enumerate().map(named).collect();
                book.set_policies(self.policies.clone());
            }
            Event::Labels(team) => {
                let labels: Labels = [("team".to_string(), team.to_string())].into();
                self.namespaces.insert("shop".into(), labels.clone());
                book.set_namespace("shop".into(), Some(labels));
            }
        }
    }

    /// The table made of everything.
    fn table(&self, places: &Places) -> Table {
        let policies: Vec<_> = self.policies.values().cloned().collect();
        let mut table = Table::new(&policies, self.namespaces.clone(), self.pods.values().cloned());
        for at in 1..6_u8 {
            let address: IpAddr = format!("127.42.0.{at}").parse().unwrap();
            if let Some((key, placed)) = places.of(address) {
                let known = self.pods.get(key).filter(|m| m.addresses.contains(&address));
                table.place(address, known.unwrap_or(placed).clone());
            }
        }
        table
    }
}

/// Whose an address is, and what is open to him and for him.
type Said = (Option<Arc<Member>>, Vec<Option<Vec<openings::Opening>>>);

/// All that the table says of each address.
fn said(table: &Table) -> Vec<Said> {
    let of = |at: u8| {
        let member = table.member(format!("127.42.0.{at}").parse().unwrap()).cloned();
        let both = [Direction::Ingress, Direction::Egress];
        let open = member.iter().flat_map(|m| both.map(|direction| openings(table, m, direction)));
        (member.clone(), open.collect())
    };
    (1..6).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_changes_makes_the_same_as_all_anew(
        (first, rest) in (prop::collection::vec(policy(), 1..3), prop::collection::vec(events(), 1..40))
    ) {
        let (mut world, mut book, mut places) = (World::default(), Book::default(), Places::default());
        let policies = Policies::none();
        let mut before = said(&Table::default());
        for event in std::iter::once(Event::Policies(first)).chain(rest) {
            let since = policies.inner.history.lock().version();
            world.happen(event.clone(), &mut book, &mut places);
            if let Some((table, delta)) = book.commit(&mut places) {
                policies.change(table, delta);
            }
            let now = said(&policies.table());
            prop_assert_eq!(&now, &said(&world.table(&places)), "after {:?}", event);
            for (at, pair) in (1..6_u8).zip(before.iter().zip(&now)) {
                let news = policies.news(since, format!("127.42.0.{at}").parse().unwrap());
                prop_assert!(since == 0 || news.concerns || pair.0 == pair.1, "{} after {:?}", at, event);
            }
            before = now;
        }
    }
}

#[test]
fn a_change_concerns_whom_the_rules_of_it_are_about() {
    let (mut world, mut book, mut places) = (World::default(), Book::default(), Places::default());
    let rule = json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": app("web")}]}]});
    for event in [
        Event::Policies(vec![rule]),
        Event::Pod(0, Some((1, "db"))),
        Event::Pod(2, Some((2, "web"))),
        Event::Pod(4, Some((3, "job"))),
    ] {
        world.happen(event, &mut book, &mut places);
    }
    let policies = Policies::none();
    let at = |n: u8| -> IpAddr { format!("127.42.0.{n}").parse().unwrap() };
    let mut check = |event: Event, changed: bool, concerned: [bool; 3]| {
        let since = policies.news(0, at(1)).version;
        world.happen(event.clone(), &mut book, &mut places);
        assert_eq!(policies.renew(&mut book), changed, "{event:?}");
        assert_eq!([1, 2, 3].map(|n| policies.news(since, at(n)).concerns), concerned, "{event:?}");
    };
    check(Event::Leave(0), true, [true; 3]);
    check(Event::Leave(0), false, [false; 3]);
    check(Event::Pod(2, Some((2, "web"))), false, [false; 3]);
    check(Event::Pod(2, Some((4, "web"))), true, [true, true, false]);
    check(Event::Pod(4, Some((5, "job"))), true, [false, false, true]);
    check(Event::Pod(4, None), true, [false; 3]);
    check(Event::Labels("a"), true, [true; 3]);
}

/// A client of an API that never answers.
fn nobody() -> kube::Client {
    let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
    });
    kube::Client::new(service, "default")
}

#[tokio::test]
async fn the_last_known_rules_count_until_the_api_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policies.json");
    let (mut world, mut book) = (World::default(), Book::default());
    let rule = json!({"podSelector": app("db"), "ingress": [{"from": [{"podSelector": app("web")}]}]});
    for event in
        [Event::Policies(vec![rule]), Event::Pod(0, Some((1, "db"))), Event::Pod(2, Some((2, "web")))]
    {
        world.happen(event, &mut book, &mut Places::default());
    }
    Memory::new(file.clone()).write(book.page()).unwrap();

    let (policies, keep) = Policies::new(nobody(), View::empty(), Some(file.clone()));
    let allows = |from: u8, to: u8| {
        let address = |n: u8| -> IpAddr { format!("127.42.0.{n}").parse().unwrap() };
        policies.allows(address(from), (address(to), 80).into(), Protocol::Tcp)
    };
    assert!(allows(2, 1) && !allows(3, 1), "before anything else happens");
    // A pod that is started meanwhile has its rules, too.
    let keep = tokio::spawn(keep);
    policies.place(&numbered(4, (3, "db")), "127.42.0.3".parse().unwrap());
    policies.settled("127.42.0.3".parse().unwrap(), Duration::from_secs(20)).await;
    assert!(allows(2, 3) && !allows(4, 3));
    keep.abort();

    std::fs::write(&file, "{").unwrap();
    assert!(
        !Policies::new(nobody(), View::empty(), Some(file)).0.is_active(),
        "nothing is made of what is damaged"
    );
}

#[test]
fn a_page_is_kept_whole_or_without_its_pods() {
    let dir = tempfile::tempdir().unwrap();
    let memory = Memory::new(dir.path().join("policies.json"));
    let mut book = Book::default();
    let mut world = World::default();
    world.happen(Event::Policies(vec![json!({"podSelector": {}})]), &mut book, &mut Places::default());
    let labels: Labels = [("app".to_string(), "x".repeat(1 << 20))].into();
    let pods = |count: u32| {
        let member = Arc::new(Member::new("shop", labels.clone()));
        (0..count).map(|n| (("shop".to_string(), n.to_string()), member.clone())).collect::<HashMap<_, _>>()
    };
    for (count, kept) in [(3, 3), (40, 0)] {
        book.set_pods(pods(count));
        memory.write(book.page()).unwrap();
        let page: Page = memory.read();
        assert_eq!((page.pods.len(), Book::open(page).is_active()), (kept, true), "{count}");
    }
}
