"""Typed objects: create, list by label, patch, conflict, watch, delete."""

from kubernetes import client, config, watch

config.load_kube_config()
core = client.CoreV1Api()
NAMESPACE = "default"


def config_map(name, value):
    metadata = client.V1ObjectMeta(name=name, labels={"app": "python"})
    return client.V1ConfigMap(metadata=metadata, data={"key": value})


made = core.create_namespaced_config_map(NAMESPACE, config_map("one", "1"))
assert made.metadata.uid and made.data == {"key": "1"}, made
listed = core.list_namespaced_config_map(NAMESPACE, label_selector="app=python")
assert [item.metadata.name for item in listed.items] == ["one"], listed

changes = watch.Watch()
stream = changes.stream(
    core.list_namespaced_config_map,
    NAMESPACE,
    label_selector="app=python",
    resource_version=listed.metadata.resource_version,
    timeout_seconds=30,
)
core.patch_namespaced_config_map("one", NAMESPACE, {"data": {"key": "2"}})
core.create_namespaced_config_map(NAMESPACE, config_map("two", "x"))
core.delete_namespaced_config_map("one", NAMESPACE)
seen = []
for event in stream:
    seen.append((event["type"], event["object"].metadata.name, event["object"].data["key"]))
    if event["type"] == "DELETED":
        changes.stop()
assert seen == [("MODIFIED", "one", "2"), ("ADDED", "two", "x"), ("DELETED", "one", "2")], seen

stale = core.read_namespaced_config_map("two", NAMESPACE)
core.patch_namespaced_config_map("two", NAMESPACE, {"data": {"key": "y"}})
try:
    core.replace_namespaced_config_map("two", NAMESPACE, stale)
    raise AssertionError("a stale object was written")
except client.ApiException as error:
    assert error.status == 409, error
