// The tour in another language: protos/ is all that this client knows of the server.
//
//   node tour.mjs HOST:PORT [SANDBOX]
//
// Two datasets that know the same people, one row per person, watched to its end and downloaded. Prints JSON.
// Safe to repeat: datasets and job carry a request_id, uploads a batch_id. Exit 1 and one line if something is wrong.

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const XDM = 'https://ns.adobe.com/xdm/context';
const CHUNK = 1024 * 1024;
const [address = '127.0.0.1:50051', sandbox = 'node'] = process.argv.slice(2);

const protos = fileURLToPath(new URL('../../../protos', import.meta.url));
const services = ['dataset', 'export', 'profile'].map((name) => `profile_export/v1/${name}_service.proto`);
const definition = loader.loadSync(services, {
  includeDirs: [protos],
  keepCase: true, // names as in the protos
  longs: String, // 64 bits do not fit a number
  enums: String,
  defaults: true,
});
const { DatasetService, ExportService, ProfileService } =
  grpc.loadPackageDefinition(definition).profile_export.v1;

const credentials = grpc.credentials.createInsecure();
const clients = [DatasetService, ExportService, ProfileService].map(
  (Service) => new Service(address, credentials),
);
const [datasets, exports_, profiles] = clients;

const metadata = new grpc.Metadata();
metadata.set('x-sandbox-name', sandbox); // the tenant

/** Call a unary method. */
const call = (client, method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, metadata, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const sha256 = (data) => createHash('sha256').update(data).digest('hex');

async function createDataset(name, kind, ...identity_fields) {
  const request = { name, schema_ref: { id: `${XDM}/${kind}` }, identity_fields, request_id: name };
  return (await call(datasets, 'CreateDataset', request)).dataset.id;
}

/** Upload rows as one batch: `start`, `data` in pieces, `finish` with length and hash. */
async function upload(dataset_id, batch_id, rows) {
  const data = Buffer.from(rows.map((row) => JSON.stringify(row) + '\n').join(''));
  let stream;
  const answer = new Promise((resolve, reject) => {
    stream = datasets.UploadBatch(metadata, (error, value) => (error ? reject(error) : resolve(value)));
  });
  stream.write({ start: { dataset_id, batch_id, format: 'UPLOAD_FORMAT_JSON_LINES' } });
  for (let at = 0; at < data.length; at += CHUNK) {
    const room = stream.write({ data: data.subarray(at, at + CHUNK) });
    if (!room) await Promise.race([once(stream, 'drain'), answer]); // the server may also answer early
  }
  stream.write({ finish: { byte_count: data.length, sha256: sha256(data) } });
  stream.end();
  return (await answer).batch;
}

/** Watch a job to its end: the stream ends OK exactly when the final state has been given. */
async function watch(job_id) {
  const seen = { transitions: [], job: null };
  let revision = 0; // from the first move on
  for await (const message of exports_.WatchJob({ job_id, after_revision: revision }, metadata)) {
    seen.transitions.push(...message.transitions);
    revision = message.revision; // after a lost connection: go on from here
    seen.job = message.job ?? seen.job;
  }
  return seen;
}

/** Read a file, checked against its hash. */
async function download(batch_id, file) {
  const chunks = [];
  for await (const message of datasets.ReadBatchFile({ batch_id, file_name: file.name }, metadata)) {
    chunks.push(message.data);
  }
  const bytes = Buffer.concat(chunks);
  if (sha256(bytes) !== file.sha256) throw new Error(`${file.name} did not arrive as it was sent`);
  return bytes;
}

async function tour() {
  const email = { path: 'personalEmail.address', namespace: 'Email' };
  const crm = await createDataset('CRM', 'profile', { path: 'crmId', namespace: 'CRM', primary: true }, email);
  const shop = await createDataset('Shop', 'profile', { ...email, primary: true });
  const merged = await createDataset('One row per person', 'profile__union');
  const uploaded = [
    await upload(crm, 'crm-1', [
      { crmId: 'C-1', personalEmail: { address: 'ada@example.com' }, person: { name: { lastName: 'Adler' } } },
      { crmId: 'C-2', personalEmail: { address: 'ben@example.com' }, person: { name: { lastName: 'Bos' } } },
    ]),
    await upload(shop, 'shop-1', [
      { personalEmail: { address: 'ada@example.com' }, person: { name: { firstName: 'Ada' } } },
    ]),
  ];

  const policy = {
    name: 'One row per person',
    attribute_merge: { type: 'ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED' },
    identity_graph: 'IDENTITY_GRAPH_PDG',
  };
  const { merge_policies: known } = await call(profiles, 'ListMergePolicies', {});
  const { id: policyId } =
    known.find(({ name }) => name === policy.name) ??
    (await call(profiles, 'CreateMergePolicy', policy)).merge_policy;
  const spec = { destination: { dataset_id: merged }, merge_policy: { id: policyId } };
  const { job: created } = await call(exports_, 'CreateJob', { spec, request_id: 'tour' });

  const { transitions, job } = await watch(created.id);
  if (job.state !== 'JOB_STATE_SUCCEEDED') throw new Error(job.errors.map(({ message }) => message).join(' '));
  const { files } = await call(datasets, 'ListBatchFiles', { batch_id: job.batch_id });
  const downloads = await Promise.all(files.map((file) => download(job.batch_id, file)));

  return {
    uploaded: uploaded.map(({ id, state, rows }) => ({ id, state, rows: Number(rows) })),
    moves: transitions.map(({ revision, to_state }) => [Number(revision), to_state]),
    profiles_exported: Number(job.metrics.profiles_exported),
    profiles_merged: Number(job.metrics.profiles_merged),
    batch_id: job.batch_id,
    files: files.map(({ name, rows, sha256, location }, index) => ({
      name,
      rows: Number(rows),
      bytes: downloads[index].length,
      sha256,
      location,
    })),
  };
}

try {
  console.log(JSON.stringify(await tour(), null, 2));
} catch (error) {
  console.error(`tour: ${error.message}`);
  process.exitCode = 1;
} finally {
  clients.forEach((client) => client.close());
}
