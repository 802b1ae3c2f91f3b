//! Chooses a node for a pod out of a snapshot: those that may take it are compared.

use super::{
    Profile, cycle::Cycle, explain::Rejection, filter, node::NodeInfo, pod::PodInfo, score,
    snapshot::Snapshot,
};

/// Nodes that are compared at least, if that many fit.
const MIN_COMPARED: usize = 100;
/// Of many nodes, one in this many is compared.
const COMPARED_PART: usize = 10;

/// The best node, by its place in the snapshot, and where the next search should begin. A
/// node that room has been made on is taken if it fits.
///
/// # Errors
/// Why each node was rejected, with its place, when none fits.
pub(super) fn choose(
    pod: &PodInfo,
    snapshot: &Snapshot,
    cycle: &Cycle,
    profile: &Profile,
    start: usize,
) -> std::result::Result<(usize, usize), Vec<(usize, Rejection)>> {
    if let Some(place) = pod.nominated().and_then(|name| snapshot.position(name))
        && admit(pod, snapshot, cycle, place).is_ok()
    {
        return Ok((place, start));
    }
    let total = snapshot.nodes.len();
    let enough = MIN_COMPARED.max(total / COMPARED_PART);
    let mut rejections = Vec::new();
    let mut fitting: Vec<usize> = Vec::new();
    let mut looked = 0;
    while looked < total && fitting.len() < enough {
        let index = (start + looked) % total;
        looked += 1;
        // Costs next to nothing; why not is asked only if it is to be told.
        if !cycle.others.allow(index) {
            continue;
        }
        match admit(pod, snapshot, cycle, index) {
            Ok(()) => fitting.push(index),
            Err(rejection) => rejections.push((index, rejection)),
        }
    }
    if fitting.is_empty() {
        let refused = (0..total).map(|i| (start + i) % total).filter(|i| !cycle.others.allow(*i));
        rejections.extend(refused.filter_map(|i| Some((i, admit(pod, snapshot, cycle, i).err()?))));
        return Err(rejections);
    }
    if let [only] = *fitting {
        return Ok((only, (start + looked) % total));
    }
    let nodes: Vec<&NodeInfo> = fitting.iter().map(|i| &*snapshot.nodes[*i]).collect();
    let points = score::rate(pod, &nodes, cycle, profile);
    // The first of the best: the rotating start spreads ties.
    let best = points.iter().copied().enumerate().max_by_key(|(i, points)| (*points, std::cmp::Reverse(*i)));
    let place = best.map_or(fitting[0], |(i, _)| fitting[i]);
    Ok((place, (start + looked) % total))
}

/// Whether a node may take the pod, as it is and with those on it that room is kept for.
fn admit(
    pod: &PodInfo,
    snapshot: &Snapshot,
    cycle: &Cycle,
    place: usize,
) -> std::result::Result<(), Rejection> {
    let node = &snapshot.nodes[place];
    filter::admit(pod, node, cycle)?;
    if snapshot.nominated.is_empty() {
        return Ok(());
    }
    let mut others = snapshot.nominated_on(&node.name, pod).peekable();
    if others.peek().is_none() {
        return Ok(());
    }
    let mut crowded = (**node).clone();
    others.for_each(|other| crowded.add(other.clone()));
    filter::admit(pod, &crowded, cycle)
}
