"""Two candidates of a leader election: one leads, and the other when it is gone."""

import threading
import time

from kubernetes import client, config
from kubernetes.leaderelection import electionconfig, leaderelection
from kubernetes.leaderelection.resourcelock.configmaplock import ConfigMapLock

config.load_kube_config()
PATIENCE = 60
LED, GONE = [], threading.Event()


class Leaving(ConfigMapLock):
    """A lock whose holder stops renewing, as one that died would."""

    def update(self, name, namespace, record):
        return False if GONE.is_set() else super().update(name, namespace, record)


def candidate(lock):
    def leads():
        LED.append(lock.identity)

    settings = electionconfig.Config(
        lock, lease_duration=3, renew_deadline=2, retry_period=1, onstarted_leading=leads, onstopped_leading=lambda: None
    )
    thread = threading.Thread(target=leaderelection.LeaderElection(settings).run, daemon=True)
    thread.start()
    return thread


def until(what, ask):
    deadline = time.monotonic() + PATIENCE
    while not ask():
        assert time.monotonic() < deadline, f"{what} did not come about; leaders: {LED}"
        time.sleep(0.1)


def holder():
    found = client.CoreV1Api().read_namespaced_config_map("election", "default")
    return found.metadata.annotations["control-plane.alpha.kubernetes.io/leader"]


first = candidate(Leaving("election", "default", "first"))
until("a leader", lambda: LED == ["first"])
candidate(ConfigMapLock("election", "default", "second"))
# The second has seen the lock held for longer than a lease lasts, and it was renewed all the time.
before = holder()
until("renewals", lambda: holder() != before)
assert LED == ["first"] and '"first"' in holder(), (LED, holder())
GONE.set()
until("a new leader", lambda: LED == ["first", "second"])
first.join(PATIENCE)
assert '"second"' in holder(), holder()
