// Watch a job to its end: node watch.mjs HOST:PORT JOB_ID [SANDBOX]

import { setTimeout as sleep } from 'node:timers/promises';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

/** Yield what happens to a job, each move once, until its final state has been given. */
async function* watch(exports, job_id, metadata) {
  let revision = 0; // of the last message; 0: from the first move on
  for (let failures = 0; ; failures++) {
    const call = exports.WatchJob({ job_id, after_revision: revision }, metadata);
    try {
      for await (const message of call) {
        revision = message.revision;
        failures = 0;
        yield message;
      }
      return; // ended OK
    } catch (error) {
      const { UNAVAILABLE, CANCELLED } = grpc.status; // the latter from a server that stops
      if (![UNAVAILABLE, CANCELLED].includes(error.code) || failures === 10) throw error;
    } finally {
      call.on('error', () => {}).cancel(); // whoever stops listening has not ended the call yet
    }
    await sleep(1000 * 2 ** Math.min(failures, 3) * (1 + Math.random() / 2));
  }
}

const definition = loader.loadSync('profile_export/v1/export_service.proto', {
  includeDirs: ['protos'],
  keepCase: true, // names as in the protos
  longs: String, // 64 bits do not fit a number
  enums: String,
  defaults: true,
});
const { ExportService } = grpc.loadPackageDefinition(definition).profile_export.v1;

const [address, job_id, sandbox] = process.argv.slice(2);
const metadata = new grpc.Metadata();
if (sandbox) metadata.set('x-sandbox-name', sandbox); // the tenant
const exports_ = new ExportService(address, grpc.credentials.createInsecure(), {
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.max_reconnect_backoff_ms': 5_000, // 2 minutes otherwise
  'grpc.max_receive_message_length': 64 * 1024 * 1024,
});
try {
  for await (const { transitions } of watch(exports_, job_id, metadata)) {
    for (const { revision, to_state } of transitions) {
      console.log(revision, to_state.replace('JOB_STATE_', ''));
    }
  }
} catch (error) {
  console.error(`watch: ${error.message}`);
  process.exitCode = 1;
} finally {
  exports_.close();
}
