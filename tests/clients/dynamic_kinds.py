"""A CustomResourceDefinition, and its objects by the dynamic client."""

import time

from kubernetes import client, config, dynamic

config.load_kube_config()
kinds = client.ApiextensionsV1Api()
schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 7}}}}}
kinds.create_custom_resource_definition(
    {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.org"},
        "spec": {
            "group": "example.org",
            "scope": "Namespaced",
            "names": {"kind": "Box", "plural": "boxes"},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }
)
DEADLINE = time.monotonic() + 30
while True:
    conditions = kinds.read_custom_resource_definition("boxes.example.org").status.conditions or []
    if any(c.type == "Established" and c.status == "True" for c in conditions):
        break
    assert time.monotonic() < DEADLINE, conditions
    time.sleep(0.05)

boxes = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="example.org/v1", kind="Box")
made = boxes.create(body={"apiVersion": "example.org/v1", "kind": "Box", "metadata": {"name": "a"}, "spec": {}}, namespace="default")
assert made.spec.size == 7, made
boxes.patch(body={"spec": {"size": 8}}, name="a", namespace="default", content_type="application/merge-patch+json")
assert boxes.get(name="a", namespace="default").spec.size == 8
assert [item.metadata.name for item in boxes.get(namespace="default").items] == ["a"]
boxes.delete(name="a", namespace="default")
assert boxes.get(namespace="default").items == []
