//! The arithmetic of rollouts: how far each ReplicaSet may grow or shrink now.

use k8s_openapi::{
    api::apps::v1::{Deployment, ReplicaSet},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{DESIRED_REPLICAS, MAX_REPLICAS, template::noted};

/// What a deployment allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Pods wanted.
    pub(super) replicas: i32,
    /// Pods allowed on top while rolling.
    pub(super) surge: i32,
    /// Pods that may be missing while rolling.
    pub(super) unavailable: i32,
    /// Whether versions may run side by side.
    pub(super) rolling: bool,
}

impl Bounds {
    /// Of a deployment: percentages of the surge are rounded up, of the unavailable down, and
    /// when both come out as zero one pod may be missing.
    pub(super) fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.map_or(0, |s| s.replicas.unwrap_or(1));
        let strategy = spec.and_then(|s| s.strategy.as_ref());
        if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: 0, rolling: false };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = scaled(rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter), replicas, true);
        let missing = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
        let mut unavailable = scaled(missing, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Self { replicas, surge, unavailable: unavailable.min(replicas), rolling: true }
    }
}

/// A number, or a percentage of `total` rounded up or down. Never negative.
pub(crate) fn scaled(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|t| t.parse().ok()).unwrap_or(0);
            let parts = i64::from(total) * percent.max(0);
            let whole = if up { (parts + 99) / 100 } else { parts / 100 };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

/// One ReplicaSet as the arithmetic sees it. `size` is what it is told to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Place in the list of sets, oldest first.
    pub(super) index: usize,
    /// `spec.replicas`.
    pub(super) size: i32,
    /// `status.availableReplicas`.
    pub(super) available: i32,
    /// The maximum noted when it was last scaled.
    pub(super) noted_max: Option<i64>,
    /// The wanted number noted when it was last scaled.
    pub(super) noted_wanted: Option<i64>,
}

impl Part {
    pub(super) fn of(index: usize, set: &ReplicaSet) -> Self {
        Self {
            index,
            size: set.spec.as_ref().map_or(0, |s| s.replicas.unwrap_or(1)),
            available: set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0),
            noted_max: noted(set, MAX_REPLICAS),
            noted_wanted: noted(set, DESIRED_REPLICAS),
        }
    }
}

/// New sizes, by place in the list.
pub(super) type Sizes = Vec<(usize, i32)>;

/// The size of the new set: as much as the surge leaves room for.
pub(super) fn grow_new(bounds: &Bounds, new_size: i32, total: i32) -> i32 {
    if !bounds.rolling {
        return bounds.replicas;
    }
    let room = bounds.replicas + bounds.surge - total;
    if room <= 0 {
        return new_size;
    }
    new_size + room.min(bounds.replicas - new_size)
}

/// Shrinks old sets: first by what is not available anyway, then as far as availability allows.
/// `old` is ordered oldest first.
pub(super) fn shrink_old(bounds: &Bounds, new: &Part, old: &[Part]) -> Sizes {
    let mut old = old.to_vec();
    let total: i32 = old.iter().map(|p| p.size).sum::<i32>() + new.size;
    let floor = bounds.replicas - bounds.unavailable;
    let most = total - floor - (new.size - new.available);
    if old.iter().all(|p| p.size == 0) || most <= 0 {
        return Vec::new();
    }
    let before = old.clone();
    let mut cleaned = 0;
    for part in &mut old {
        let unhealthy = (part.size - part.available).max(0).min(most - cleaned);
        part.size -= unhealthy;
        cleaned += unhealthy;
    }
    let available = new.available + old.iter().map(|p| p.available).sum::<i32>();
    let mut spare = (available - floor).max(0);
    for part in &mut old {
        let cut = part.size.min(spare);
        part.size -= cut;
        spare -= cut;
    }
    changed(&before, &old)
}

/// Sizes after the deployment itself was scaled. `parts` is ordered oldest first; `newest`
/// is the place of the set with the current template, if there is one.
pub(super) fn scale(bounds: &Bounds, parts: &[Part], newest: Option<usize>, status_replicas: i32) -> Sizes {
    let active: Vec<&Part> = parts.iter().filter(|p| p.size > 0).collect();
    let lone = match &*active {
        [] => newest.and_then(|n| parts.iter().find(|p| p.index == n)).or(parts.last()),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(part) = lone {
        return if part.size == bounds.replicas { Vec::new() } else { vec![(part.index, bounds.replicas)] };
    }
    let new = newest.and_then(|n| parts.iter().find(|p| p.index == n));
    if new.is_some_and(|p| is_saturated(bounds, p)) {
        let rest = active.iter().filter(|p| Some(p.index) != newest);
        return rest.map(|p| (p.index, 0)).collect();
    }
    if bounds.rolling { spread(bounds, &active, status_replicas) } else { Vec::new() }
}

/// Whether the new set has all the pods that are wanted.
fn is_saturated(bounds: &Bounds, new: &Part) -> bool {
    new.size == bounds.replicas
        && new.noted_wanted == Some(i64::from(bounds.replicas))
        && new.available == bounds.replicas
}

/// Shares a change of the total out over the sets in proportion to their sizes.
fn spread(bounds: &Bounds, active: &[&Part], status_replicas: i32) -> Sizes {
    let total: i32 = active.iter().map(|p| p.size).sum();
    let allowed = if bounds.replicas > 0 { bounds.replicas + bounds.surge } else { 0 };
    let to_add = allowed - total;
    let mut order: Vec<&Part> = active.to_vec();
    // Larger first; of equal ones the newer when growing and the older when shrinking.
    order.sort_by_key(|p| {
        let place = p.index as i64;
        (std::cmp::Reverse(p.size), if to_add > 0 { -place } else { place })
    });
    let mut added = 0;
    let mut sizes: Sizes = Vec::with_capacity(order.len());
    for part in &order {
        let share = if to_add == 0 { 0 } else { share(bounds, part, to_add, added, status_replicas) };
        added += share;
        sizes.push((part.index, part.size + share));
    }
    if let Some(first) = sizes.first_mut()
        && to_add != 0
    {
        first.1 = (first.1 + to_add - added).max(0);
    }
    sizes
}

fn share(bounds: &Bounds, part: &Part, to_add: i32, added: i32, status_replicas: i32) -> i32 {
    if part.size == 0 || to_add == added {
        return 0;
    }
    let left = to_add - added;
    let fraction = fraction(bounds, part, status_replicas);
    if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
}

fn fraction(bounds: &Bounds, part: &Part, status_replicas: i32) -> i32 {
    if bounds.replicas == 0 {
        return -part.size;
    }
    let before = match part.noted_max {
        Some(max) if max > 0 => max as f64,
        _ if status_replicas == 0 => return 0,
        _ => f64::from(status_replicas),
    };
    let grown = f64::from(part.size) * f64::from(bounds.replicas + bounds.surge) / before;
    grown.round() as i32 - part.size
}

fn changed(before: &[Part], after: &[Part]) -> Sizes {
    before.iter().zip(after).filter(|(b, a)| b.size != a.size).map(|(_, a)| (a.index, a.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(replicas: i32, surge: &str, unavailable: &str) -> Bounds {
        let value = |t: &str| match t.parse() {
            Ok(n) => IntOrString::Int(n),
            Err(_) => IntOrString::String(t.into()),
        };
        let (s, u) = (scaled(&value(surge), replicas, true), scaled(&value(unavailable), replicas, false));
        let unavailable = if s == 0 && u == 0 { 1 } else { u };
        Bounds { replicas, surge: s, unavailable: unavailable.min(replicas), rolling: true }
    }

    fn part(index: usize, size: i32, available: i32) -> Part {
        Part { index, size, available, noted_max: None, noted_wanted: None }
    }

    #[test]
    fn percentages_round_apart() {
        let b = bounds(10, "25%", "25%");
        assert_eq!((b.surge, b.unavailable), (3, 2));
        let b = bounds(1, "25%", "25%");
        assert_eq!((b.surge, b.unavailable), (1, 0));
        let b = bounds(10, "0", "0%");
        assert_eq!((b.surge, b.unavailable), (0, 1));
    }

    /// Plays a rollout in which new pods never become ready.
    #[test]
    fn a_bad_image_stops_at_eight_old_and_five_new() {
        let b = bounds(10, "25%", "25%");
        let (mut old, mut new) = (part(0, 10, 10), part(1, 0, 0));
        for _ in 0..20 {
            let total = old.size + new.size;
            new.size = grow_new(&b, new.size, total);
            for (_, size) in shrink_old(&b, &new, &[old.clone()]) {
                old.size = size;
                old.available = size;
            }
        }
        assert_eq!((old.size, new.size), (8, 5));
    }

    #[test]
    fn unavailable_zero_replaces_one_at_a_time() {
        let b = bounds(10, "1", "0");
        let (mut old, mut new) = (part(0, 10, 10), part(1, 0, 0));
        let mut steps = 0;
        while new.available < 10 {
            let total = old.size + new.size;
            new.size = grow_new(&b, new.size, total);
            assert!(old.size + new.size <= 11 && old.available + new.available >= 10);
            new.available = new.size;
            for (_, size) in shrink_old(&b, &new, &[old.clone()]) {
                old.size = size;
                old.available = size;
            }
            steps += 1;
            assert!(steps < 50);
        }
        assert_eq!((old.size, steps), (0, 10));
    }

    #[test]
    fn scaling_in_the_middle_is_shared_out() {
        let noted = |mut p: Part, max| {
            p.noted_max = Some(max);
            p
        };
        let b = Bounds { replicas: 15, surge: 3, unavailable: 2, rolling: true };
        let parts = [noted(part(0, 8, 8), 13), noted(part(1, 5, 0), 13)];
        assert_eq!(scale(&b, &parts, Some(1), 13), [(0, 11), (1, 7)]);
        let b = Bounds { replicas: 5, surge: 3, unavailable: 2, rolling: true };
        assert_eq!(scale(&b, &parts, Some(1), 13), [(0, 5), (1, 3)]);
        let b = Bounds { replicas: 0, surge: 0, unavailable: 0, rolling: true };
        assert_eq!(scale(&b, &parts, Some(1), 13), [(0, 0), (1, 0)]);
    }

    #[test]
    fn a_lone_set_takes_it_all() {
        let b = bounds(7, "25%", "25%");
        assert_eq!(scale(&b, &[part(0, 3, 3), part(1, 0, 0)], Some(1), 3), [(0, 7)]);
        assert_eq!(scale(&b, &[part(0, 0, 0), part(1, 0, 0)], Some(1), 0), [(1, 7)]);
        assert_eq!(scale(&b, &[part(0, 0, 0), part(1, 0, 0)], None, 0), [(1, 7)]);
    }

    proptest! {
        /// From any state of a rollout, a step keeps both promises.
        #[test]
        fn never_too_many_and_never_too_few(
            replicas in 1..60i32, surge in 0..100i32, missing in 0..100i32,
            sizes in prop::collection::vec((0..60i32, 0..60i32), 1..5),
        ) {
            let b = bounds(replicas, &format!("{surge}%"), &format!("{missing}%"));
            let mut parts: Vec<Part> =
                sizes.iter().enumerate().map(|(i, (size, ready))| part(i, *size, *ready.min(size))).collect();
            let new = parts.pop().unwrap();
            let total = parts.iter().map(|p| p.size).sum::<i32>() + new.size;
            if new.size < replicas {
                let grown = grow_new(&b, new.size, total);
                prop_assert!(grown >= new.size && grown <= replicas);
                prop_assert!(grown == new.size || total - new.size + grown <= replicas + b.surge);
            }
            let available = |old: &[Part]| new.available + old.iter().map(|p| p.available).sum::<i32>();
            let floor = replicas - b.unavailable;
            let before = available(&parts);
            let mut after = parts.clone();
            for (index, size) in shrink_old(&b, &new, &parts) {
                prop_assert!(size >= 0 && size < parts[index].size);
                after[index].size = size;
                after[index].available = parts[index].available.min(size);
            }
            prop_assert!(available(&after) >= floor.min(before), "{} < {}", available(&after), floor);
        }

        #[test]
        fn shares_add_up(replicas in 1..80i32, old in 1..40i32, new in 1..40i32, spare in 0..20i64) {
            let max = i64::from(old + new) + spare;
            let b = bounds(replicas, "25%", "25%");
            let noted = |p: Part| Part { noted_max: Some(max), ..p };
            let sizes = scale(&b, &[noted(part(0, old, old)), noted(part(1, new, 0))], Some(1), old + new);
            let total: i32 = sizes.iter().map(|(_, s)| s).sum();
            prop_assert_eq!(total, replicas + b.surge);
        }
    }
}
