"""Drives Celery on Redis and prints one JSON line, with the flags of ../go/main.go.

`--connections` submitters and `--workers` workers are processes: in Python more threads do no more. Each submitter
hands over a batch, waits for its results, and goes on with the next one.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time

WARM_UP = 20
PAYLOAD = "0123456789" * 10
TIMEOUT = 60


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=["throughput", "latency"])
    parser.add_argument("--address")
    parser.add_argument("--seconds", type=float, default=5)
    for name in ("connections", "workers", "batch", "prefetch"):
        parser.add_argument(f"--{name}", type=int, default=1)
    # What is outstanding is a batch for each submitter.
    parser.add_argument("--outstanding", type=int)
    return parser.parse_args()


def start_worker(concurrency):
    return subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--loglevel=error", "--pool=prefork"]
        + [f"--concurrency={concurrency}", "--without-gossip", "--without-mingle", "--without-heartbeat"],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        stdout=sys.stderr,
    )


def batch_of(size):
    from celery_tasks import noop

    # Faster than a group and its join.
    results = [noop.delay(PAYLOAD) for _ in range(size)]
    if any(result.get(timeout=TIMEOUT) != PAYLOAD for result in results):
        raise RuntimeError("other results than payloads")


def submitter(options, ready, go, counts):
    # Connections are made, and the worker is up.
    batch_of(options.batch)
    ready.release()
    go.wait()
    begin = time.perf_counter()
    jobs = 0
    while time.perf_counter() - begin < options.seconds:
        batch_of(options.batch)
        jobs += options.batch
    counts.put(jobs)


def throughput(options):
    fork = multiprocessing.get_context("fork")
    ready, go, counts = fork.Semaphore(0), fork.Event(), fork.Queue()
    submitters = [
        fork.Process(target=submitter, args=(options, ready, go, counts), daemon=True)
        for _ in range(options.connections)
    ]
    for process in submitters:
        process.start()
    for _ in submitters:
        if not ready.acquire(timeout=TIMEOUT):
            raise RuntimeError("no result of the first batch")
    begin = time.perf_counter()
    go.set()
    jobs = sum(counts.get(timeout=options.seconds + TIMEOUT) for _ in submitters)
    return {"jobs": jobs, "seconds": time.perf_counter() - begin}


def latency(options):
    from celery_tasks import noop

    samples = []
    count, end = 0, float("inf")
    while time.perf_counter() < end:
        if count == WARM_UP:
            end = time.perf_counter() + options.seconds
        begin = time.perf_counter()
        noop.delay(PAYLOAD).get(timeout=TIMEOUT)
        if count >= WARM_UP:
            samples.append((time.perf_counter() - begin) * 1e6)
        count += 1
    samples.sort()
    return {
        "samples": len(samples),
        "p50_us": samples[len(samples) // 2],
        "p99_us": samples[min(int(len(samples) * 0.99), len(samples) - 1)],
    }


def main():
    given = options()
    os.environ["PEERS_REDIS"] = given.address
    os.environ["PEERS_PREFETCH"] = str(given.prefetch)
    worker = start_worker(given.workers)
    try:
        figures = throughput(given) if given.scenario == "throughput" else latency(given)
        print(json.dumps(figures))
    finally:
        worker.terminate()
        worker.wait()


main()
