// The official JavaScript client: typed objects, patches, an informer, custom objects, a pod's log, exec's refusal.
//
// The first argument is the image of the pod that prints.

import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { pathToFileURL } from 'node:url';

const main = `${process.env.WASMK_TEST_VENV}/node/node_modules/@kubernetes/client-node/dist/index.js`;
const k8s = await import(pathToFileURL(main));
const [image] = process.argv.slice(2);
const namespace = 'default';
const PATIENCE = 60_000;

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);

async function until(what, ask) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const answer = await ask();
    if (answer) return answer;
    assert.ok(Date.now() < deadline, `${what} did not come about`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function refused(code, call) {
  await assert.rejects(call, (error) => {
    assert.equal(error.code, code, error.message);
    return true;
  });
}

// Objects, seen by an informer as they change.
const labelSelector = 'app=javascript';
const list = () => core.listNamespacedConfigMap({ namespace, labelSelector });
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, list, labelSelector);
const seen = [];
for (const event of ['add', 'update', 'delete']) {
  informer.on(event, (object) => seen.push(`${event} ${object.metadata.name} ${object.data.key}`));
}
informer.on('error', (error) => assert.equal(error.type, 'aborted', String(error)));
await informer.start();

const labels = { app: 'javascript' };
const body = { metadata: { name: 'js', labels }, data: { key: '1' } };
const made = await core.createNamespacedConfigMap({ namespace, body });
assert.ok(made.metadata.uid && made.metadata.creationTimestamp instanceof Date);
await refused(409, () => core.createNamespacedConfigMap({ namespace, body }));

const patch = (type, value) =>
  core.patchNamespacedConfigMap(
    { name: 'js', namespace, body: value },
    k8s.setHeaderOptions('Content-Type', type),
  );
await until('add', () => seen.includes('add js 1'));
await patch(k8s.PatchStrategy.MergePatch, { data: { key: '2' } });
await until('update 2', () => seen.includes('update js 2'));
await patch(k8s.PatchStrategy.StrategicMergePatch, { data: { key: '3' } });
await until('update 3', () => seen.includes('update js 3'));
await patch(k8s.PatchStrategy.JsonPatch, [{ op: 'replace', path: '/data/key', value: '4' }]);
await until('update 4', () => seen.includes('update js 4'));
await core.patchNamespacedConfigMap(
  {
    name: 'js',
    namespace,
    fieldManager: 'javascript',
    force: true,
    body: { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'js' }, data: { key: '5' } },
  },
  k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.ServerSideApply),
);
await until('update 5', () => seen.includes('update js 5'));
await refused(409, () => core.replaceNamespacedConfigMap({ name: 'js', namespace, body: { ...made, data: {} } }));
assert.deepEqual((await list()).items.map((item) => item.metadata.name), ['js']);
await core.deleteNamespacedConfigMap({ name: 'js', namespace });
await until('delete', () => seen.includes('delete js 5'));
await informer.stop();
await refused(404, () => core.readNamespacedConfigMap({ name: 'js', namespace }));
await refused(422, () => core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'A_b' } } }));

// A kind of one's own.
const kinds = config.makeApiClient(k8s.ApiextensionsV1Api);
const schema = {
  type: 'object',
  properties: { spec: { type: 'object', properties: { size: { type: 'integer', _default: 7 } } } },
};
await kinds.createCustomResourceDefinition({
  body: {
    metadata: { name: 'crates.example.net' },
    spec: {
      group: 'example.net',
      scope: 'Namespaced',
      names: { kind: 'Crate', plural: 'crates' },
      versions: [{ name: 'v1', served: true, storage: true, schema: { openAPIV3Schema: schema } }],
    },
  },
});
await until('Established', async () => {
  const found = await kinds.readCustomResourceDefinition({ name: 'crates.example.net' });
  return found.status?.conditions?.some((c) => c.type === 'Established' && c.status === 'True');
});
const custom = config.makeApiClient(k8s.CustomObjectsApi);
const of = { group: 'example.net', version: 'v1', plural: 'crates', namespace };
const crate = await custom.createNamespacedCustomObject({
  ...of,
  body: { apiVersion: 'example.net/v1', kind: 'Crate', metadata: { name: 'a' }, spec: {} },
});
assert.equal(crate.spec.size, 7);
await refused(422, () =>
  custom.createNamespacedCustomObject({
    ...of,
    body: { apiVersion: 'example.net/v1', kind: 'Crate', metadata: { name: 'b' }, spec: { size: 'big' } },
  }),
);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const read = await objects.read({ apiVersion: 'example.net/v1', kind: 'Crate', metadata: { name: 'a', namespace } });
assert.equal(read.spec.size, 7);

// A pod to its end, and its log as a stream.
await core.createNamespacedPod({
  namespace,
  body: {
    metadata: { name: 'js-printer' },
    spec: {
      restartPolicy: 'Never',
      containers: [{ name: 'main', image, args: ['print', 'from javascript'] }],
    },
  },
});
await until('Succeeded', async () => {
  const pod = await core.readNamespacedPod({ name: 'js-printer', namespace });
  return pod.status.phase === 'Succeeded';
});
const stream = new PassThrough();
let log = '';
stream.on('data', (chunk) => (log += chunk));
await new k8s.Log(config).log(namespace, 'js-printer', 'main', stream, { follow: true });
await until('the log', () => log.includes('args ["print", "from javascript"]'));
process.exit(0);
