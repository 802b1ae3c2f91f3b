//! Which changes put which keys into a queue.

use std::sync::Arc;

use kube::Resource;

use super::{Informer, Key, Queue, Watched, controller_of};

/// Every change of an object wakes it; all come back when the queue had no room.
pub fn on_change<K: Watched>(cache: &Arc<Informer<K>>, queue: &Arc<Queue<Key>>) {
    let sink = queue.clone();
    cache.subscribe(move |old, new| {
        if let Some(object) = new.or(old) {
            sink.add(Key::of(object.meta()));
        }
    });
    let source = cache.clone();
    queue.refill_from(move || source.keys());
}

/// Every change of a child wakes the controllers it had and has, if they are of kind `O`.
pub fn on_child<O: Watched, C: Watched>(children: &Informer<C>, queue: &Arc<Queue<Key>>) {
    let sink = queue.clone();
    children.subscribe(move |old, new| {
        for child in [old, new].into_iter().flatten() {
            if let Some(owner) = owner_key::<O, C>(child) {
                sink.add(owner);
            }
        }
    });
}

/// Every change of a child nobody controls wakes what `who` says.
pub fn on_orphan<C: Watched>(
    children: &Informer<C>,
    queue: &Arc<Queue<Key>>,
    who: impl Fn(&C) -> Vec<Key> + Send + Sync + 'static,
) {
    let sink = queue.clone();
    children.subscribe(move |_, new| {
        if let Some(child) = new.filter(|c| controller_of(&***c).is_none()) {
            who(child).into_iter().for_each(|key| sink.add(key));
        }
    });
}

/// The key of a child's controller, if that is of kind `O`.
pub fn owner_key<O: Resource<DynamicType = ()>, C: Resource>(child: &C) -> Option<Key> {
    let owner = controller_of(child)?;
    let group = |api_version: &str| api_version.split_once('/').map_or("", |(g, _)| g).to_owned();
    let same = owner.kind == O::kind(&()) && group(&owner.api_version) == O::group(&());
    same.then(|| Key::new(child.meta().namespace.clone().unwrap_or_default(), owner.name.clone()))
}
