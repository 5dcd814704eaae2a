// Drives BullMQ on Redis and prints one JSON line, with the flags of ../go/main.go. The submitter sees completions by
// QueueEvents. Workers are processes of their own, `--prefetch` jobs at a time in each.
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { parseArgs } from 'node:util';
import { Queue, QueueEvents, Worker } from 'bullmq';

const drainTimeout = 60_000;
const warmUp = 50;
const payload = '0123456789'.repeat(10);
const option = (value) => ({ type: 'string', default: value });

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    address: option(''),
    seconds: option('5'),
    connections: option('1'),
    workers: option('1'),
    batch: option('1'),
    prefetch: option('1'),
    outstanding: option('1000'),
  },
});
const [scenario] = positionals;
const [host, port] = values.address.split(':');
const seconds = Number(values.seconds);
const connections = Number(values.connections);
const batch = Number(values.batch);
const outstanding = Number(values.outstanding);
const redis = { connection: { host, port: Number(port), maxRetriesPerRequest: null } };

const data = { payload };

async function throughput(queue, events) {
  let submitted = 0;
  let ended = 0;
  events.on('completed', () => {
    ended += 1;
  });
  // One listener for each submitter that waits.
  events.setMaxListeners(0);

  const start = performance.now();
  const end = start + seconds * 1000;
  const jobs = Array.from({ length: batch }, () => ({ name: 'noop', data, opts: { removeOnComplete: true } }));
  await Promise.all(Array.from({ length: connections }, async () => {
    while (performance.now() < end) {
      if (submitted - ended + batch > outstanding) {
        await once(events, 'completed');
        continue;
      }
      submitted += batch;
      await queue.addBulk(jobs);
    }
  }));
  const late = setTimeout(() => {
    console.error(`bullmq: only ${ended} of ${submitted} jobs were seen to end`);
    process.exit(1);
  }, drainTimeout);
  while (ended < submitted) {
    await once(events, 'completed');
  }
  clearTimeout(late);
  return { jobs: ended, seconds: (performance.now() - start) / 1000 };
}

async function latency(queue, events) {
  const samples = [];
  let end = Infinity;
  for (let count = 0; performance.now() < end; count++) {
    if (count === warmUp) {
      end = performance.now() + seconds * 1000;
    }
    const begin = performance.now();
    // A job that is gone when its submitter begins to wait counts as lost.
    const job = await queue.add('noop', data, { removeOnComplete: { count: 1000 } });
    await job.waitUntilFinished(events, drainTimeout);
    if (count >= warmUp) {
      samples.push((performance.now() - begin) * 1000);
    }
  }
  samples.sort((a, b) => a - b);
  const percentile = (share) => samples[Math.min(Math.floor(share * samples.length), samples.length - 1)];
  return { samples: samples.length, p50_us: percentile(0.5), p99_us: percentile(0.99) };
}

async function submitter() {
  // Completions are read from a stream that is trimmed to this length: none may be lost.
  const queue = new Queue('noop', { ...redis, streams: { events: { maxLen: 1_000_000 } } });
  const events = new QueueEvents('noop', redis);
  await events.waitUntilReady();
  const workers = Array.from({ length: Number(values.workers) }, () =>
    fork(process.argv[1], ['work', ...process.argv.slice(3)]));
  await Promise.all(workers.map((worker) => once(worker, 'message')));
  const figures = await (scenario === 'latency' ? latency : throughput)(queue, events);
  console.log(JSON.stringify(figures));
  workers.forEach((worker) => worker.kill());
  process.exit(0);
}

async function work() {
  const worker = new Worker('noop', async (job) => job.data.payload, {
    ...redis,
    concurrency: Number(values.prefetch),
  });
  await worker.waitUntilReady();
  process.send('ready');
}

await (scenario === 'work' ? work() : submitter());
