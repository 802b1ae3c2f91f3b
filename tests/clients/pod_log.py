"""A pod of the image in the first argument: run to its end, and its log."""

import sys

from kubernetes import client, config, watch

config.load_kube_config()
core = client.CoreV1Api()
container = client.V1Container(name="main", image=sys.argv[1], args=["print", "from python"])
core.create_namespaced_pod(
    "default",
    client.V1Pod(
        metadata=client.V1ObjectMeta(name="printer"),
        spec=client.V1PodSpec(containers=[container], restart_policy="Never"),
    ),
)
changes = watch.Watch()
phase = None
for event in changes.stream(
    core.list_namespaced_pod, "default", field_selector="metadata.name=printer", timeout_seconds=60
):
    phase = event["object"].status.phase
    if phase in ("Succeeded", "Failed"):
        changes.stop()
assert phase == "Succeeded", phase
log = core.read_namespaced_pod_log("printer", "default")
assert 'args ["print", "from python"]' in log, log
