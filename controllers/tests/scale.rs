//! A cluster of hollow nodes through a bad day: see [`story`]. The size here is small; the bench `fleet` plays
//! the same with thousands of nodes.

mod support;

use support::story::{Size, play};

#[tokio::test(start_paused = true)]
async fn a_fleet_loses_nodes_and_controllers_and_has_every_pod_in_the_end() {
    let report = play(Size { nodes: 40, zones: 2, deployments: 5, replicas: 40 }).await;
    assert_eq!(report.pods, 220);
    assert!(report.moved > 0, "{report:?}");
}
