"""The Countdown operator, by kopf, under a service account of its own.

The first argument is the image of its jobs. A Countdown of length N has N jobs run one after the other; then it is
removed, with the jobs and their pods. Without rights the operator is refused; with them it does its work.
"""

import asyncio
import logging
import sys
import threading
import time

import kopf
import yaml
from kubernetes import client, config, utils

IMAGE = sys.argv[1]
ACCOUNT, NAMESPACE = "countdown-controller-account", "default"
LENGTH, DELAY = 20, 1.2
GROUP, VERSION, PLURAL = "stable.dwk", "v1", "countdowns"
PATIENCE = 300

config.load_kube_config()
ADMIN = client.ApiClient()

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: countdowns.stable.dwk}
spec:
  group: stable.dwk
  scope: Namespaced
  names: {kind: Countdown, plural: countdowns, singular: countdown, shortNames: [cd]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {length: {type: integer}, delay: {type: integer}, image: {type: string}}
    additionalPrinterColumns:
    - {name: Length, type: integer, jsonPath: .spec.length}
    - {name: Delay, type: integer, jsonPath: .spec.delay}
"""
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: countdown-controller-role}
rules:
- {apiGroups: [""], resources: [pods], verbs: [get, list, delete]}
- {apiGroups: [batch], resources: [jobs], verbs: [get, list, watch, create, delete]}
- {apiGroups: [stable.dwk], resources: [countdowns], verbs: [get, list, watch, create, delete]}
"""
BINDING = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: countdown-rolebinding}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: countdown-controller-role}
subjects:
- {kind: ServiceAccount, name: countdown-controller-account, namespace: default}
"""


def create(text):
    utils.create_from_dict(ADMIN, yaml.safe_load(text))


def until(what, ask):
    deadline = time.monotonic() + PATIENCE
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what} did not come about\n" + "\n".join(LINES + NOTES[-20:])
        time.sleep(0.05)
    return answer


def established():
    found = client.ApiextensionsV1Api().read_custom_resource_definition("countdowns.stable.dwk")
    return any(c.type == "Established" and c.status == "True" for c in found.status.conditions or [])


def account_client():
    """A client that is the operator's account, by a token the API made for it."""
    core = client.CoreV1Api(ADMIN)
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": ACCOUNT}})
    request = {"spec": {"expirationSeconds": 3600}}
    token = core.create_namespaced_service_account_token(ACCOUNT, NAMESPACE, request).status.token
    settings = client.Configuration.get_default_copy()
    settings.cert_file = settings.key_file = None
    settings.api_key = {"authorization": f"Bearer {token}"}
    return client.ApiClient(settings), token


create(DEFINITION)
until("Established", established)
API, TOKEN = account_client()
COUNTDOWNS, JOBS, PODS = client.CustomObjectsApi(API), client.BatchV1Api(API), client.CoreV1Api(API)

# What the operator said, as the published one does; the second list is kopf's own log.
LINES, NOTES = [], []
LEFT, RUNNING = {}, {}


class Keep(logging.Handler):
    def emit(self, record):
        NOTES.append(record.getMessage())


@kopf.on.login()
def login(**_):
    settings = API.configuration
    return kopf.ConnectionInfo(server=settings.host, ca_path=settings.ssl_ca_cert, scheme="Bearer", token=TOKEN)


@kopf.on.startup()
def configure(settings, **_):
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = [0.1] * 20


def schedule(name, spec):
    left = LEFT[name]
    LINES.append(f"Scheduling new job number {left} for countdown {name} to namespace {NAMESPACE}")
    body = {
        "metadata": {"generateName": f"{name}-{left}-", "labels": {"countdown": name}},
        "spec": {
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": spec["image"], "args": ["print", str(left)]}],
                }
            }
        },
    }
    RUNNING[name] = JOBS.create_namespaced_job(NAMESPACE, body).metadata.name


@kopf.on.event(GROUP, VERSION, PLURAL)
def countdown_seen(type, name, spec, **_):
    if type != "DELETED" and name not in LEFT:
        LEFT[name] = spec["length"]
        schedule(name, spec)


@kopf.on.event("batch", "v1", "jobs", labels={"countdown": kopf.PRESENT})
async def job_seen(type, name, labels, status, **_):
    owner = labels["countdown"]
    if type == "DELETED" or RUNNING.get(owner) != name or status.get("succeeded") != 1:
        return
    del RUNNING[owner]
    LEFT[owner] -= 1
    spec = COUNTDOWNS.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, owner)["spec"]
    if LEFT[owner] > 0:
        await asyncio.sleep(spec["delay"] / 1000)
        schedule(owner, spec)
        return
    LINES.append("Countdown ended. Removing countdown.")
    COUNTDOWNS.delete_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, owner)
    LINES.append("Doing cleanup")
    for job in JOBS.list_namespaced_job(NAMESPACE, label_selector=f"countdown={owner}").items:
        JOBS.delete_namespaced_job(job.metadata.name, NAMESPACE)
        # A job deleted alone leaves its pods.
        for pod in PODS.list_namespaced_pod(NAMESPACE, label_selector=f"job-name={job.metadata.name}").items:
            PODS.delete_namespaced_pod(pod.metadata.name, NAMESPACE)


def operate(stop):
    logger = logging.getLogger("kopf")
    logger.addHandler(Keep())
    logger.setLevel(logging.DEBUG)
    asyncio.run(kopf.operator(standalone=True, namespaces=[NAMESPACE], stop_flag=stop))


def refused(call):
    try:
        call()
    except client.ApiException as error:
        return error.status == 403
    return False


# Without rights: refused, and told so.
assert refused(lambda: COUNTDOWNS.list_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL))
STOP = threading.Event()
OPERATOR = threading.Thread(target=operate, args=(STOP,), daemon=True)
OPERATOR.start()
until("a refusal", lambda: any("forbidden" in note.lower() for note in NOTES))

# With them: it counts down. What was there before the operator could see it comes as ADDED.
spec = {"length": LENGTH, "delay": int(DELAY * 1000), "image": IMAGE}
admin = client.CustomObjectsApi(ADMIN)
body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Countdown", "metadata": {"name": "doomsday"}, "spec": spec}
admin.create_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, body)
assert LINES == []
create(ROLE)
create(BINDING)

until("the end", lambda: "Doing cleanup" in LINES)
wanted = [f"Scheduling new job number {n} for countdown doomsday to namespace default" for n in range(LENGTH, 0, -1)]
assert LINES == [*wanted, "Countdown ended. Removing countdown.", "Doing cleanup"], LINES
until(
    "an empty namespace",
    lambda: not admin.list_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL)["items"]
    and not client.BatchV1Api(ADMIN).list_namespaced_job(NAMESPACE, label_selector="countdown").items
    and not client.CoreV1Api(ADMIN).list_namespaced_pod(NAMESPACE, label_selector="job-name").items,
)
# What the role does not give stays refused.
assert refused(lambda: PODS.list_namespaced_secret(NAMESPACE))
assert refused(lambda: JOBS.patch_namespaced_job("any", NAMESPACE, {}))
STOP.set()
OPERATOR.join(PATIENCE)
assert not OPERATOR.is_alive()
