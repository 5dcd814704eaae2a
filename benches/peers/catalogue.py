"""What is measured: each peer with its server, its driver, what its acknowledgement means, and the settings tried."""

from dataclasses import dataclass, field
from typing import Callable

import servers

GO = ["peers"]
MEMORY = "in memory"
SNAPSHOT = "in memory, a snapshot every 30 s"
SYNCED = "synced"


@dataclass(frozen=True)
class Peer:
    name: str
    # The driver up to the scenario; an address and flags follow it.
    driver: list[str]
    serve: Callable
    acknowledged: str
    # Who sees the end of a job.
    seen_by: str
    memory_of: str
    # Flags of the driver, each tried before the best is measured.
    tries: list[dict] = field(default_factory=list)
    latency: dict = field(default_factory=dict)


def load(connections, workers, batch=1, prefetch=1, outstanding=1000):
    """Flags of a driver. Workers are connections, processes or slots, as the peer has them."""
    flags = {"connections": connections, "workers": workers, "batch": batch, "prefetch": prefetch}
    return {**flags, "outstanding": outstanding}


# Over sockets that take whole batches, with workers that take one job at a time or several.
PIPELINED = [
    load(1, 16, batch=100),
    load(2, 2, batch=100, prefetch=100),
    load(4, 4, batch=50, prefetch=50),
    load(16, 16),
]
GEARMAN = [load(1, 16, batch=100), load(1, 32, batch=100), load(4, 16, batch=100), load(16, 16)]
GEARMAN_RAW = [load(1, 1, batch=100, prefetch=100), load(2, 2, batch=100, prefetch=100)]
# Submitters, and servers with 64 slots each.
ASYNQ = [load(16, 1), load(32, 2), load(64, 2), load(128, 4), load(256, 8, outstanding=4000)]
# Concurrent bulks, worker processes, jobs in a bulk, jobs at a time in each process.
BULLMQ = [
    load(1, 1, batch=100, prefetch=100),
    load(2, 1, batch=200, prefetch=500, outstanding=2000),
    load(2, 2, batch=100, prefetch=100),
    load(8, 2, batch=50, prefetch=200, outstanding=2000),
]

PEERS = [
    Peer("beanstalkd", [*GO, "beanstalkd"], servers.beanstalkd, MEMORY, "worker", "beanstalkd", PIPELINED),
    Peer(
        "beanstalkd, log synced", [*GO, "beanstalkd"], servers.beanstalkd_synced, SYNCED, "worker", "beanstalkd",
        PIPELINED,
    ),
    Peer(
        "gearmand, background", [*GO, "gearmand-background"], servers.gearmand, MEMORY, "worker", "gearmand", GEARMAN,
    ),
    Peer("gearmand, foreground", [*GO, "gearmand"], servers.gearmand, MEMORY, "submitter", "gearmand", GEARMAN),
    Peer(
        "gearmand, foreground, grabs in batches", [*GO, "gearmand"], servers.gearmand, MEMORY, "submitter", "gearmand",
        GEARMAN_RAW,
    ),
    Peer(
        "Celery on Redis", ["celery_driver.py"], servers.redis, MEMORY, "submitter", "Redis",
        [
            load(1, 1, batch=100, prefetch=100, outstanding=100),
            load(1, 1, batch=500, prefetch=500, outstanding=500),
            load(2, 2, batch=100, prefetch=100, outstanding=200),
            load(4, 4, batch=50, prefetch=50, outstanding=200),
        ],
    ),
    Peer("BullMQ on Redis", ["bullmq.mjs"], servers.redis, MEMORY, "submitter", "Redis", BULLMQ),
    Peer("BullMQ on Redis, always", ["bullmq.mjs"], servers.redis_synced, SYNCED, "submitter", "Redis", BULLMQ),
    Peer("Asynq on Redis", [*GO, "asynq"], servers.redis, MEMORY, "worker", "Redis", ASYNQ),
    Peer("Asynq on Redis, always", [*GO, "asynq"], servers.redis_synced, SYNCED, "worker", "Redis", ASYNQ),
    Peer(
        "Faktory", [*GO, "faktory"], servers.faktory, SNAPSHOT, "worker", "Faktory and its Redis",
        [load(1, 16, batch=100), load(2, 32, batch=200, outstanding=2000), load(1, 8, batch=500), load(16, 16)],
    ),
    Peer(
        "River on PostgreSQL", [*GO, "river"], servers.postgres, SYNCED, "submitter", "all processes of PostgreSQL",
        [
            load(1, 1000, batch=1000, outstanding=10_000),
            load(2, 2000, batch=1000, outstanding=10_000),
            load(2, 2000, batch=2000, outstanding=20_000),
            load(4, 2000, batch=500, outstanding=10_000),
            load(64, 1000, outstanding=2000),
        ],
        latency={"workers": 100},
    ),
    Peer(
        "aiohttp, a queue and a dictionary", [*GO, "aiohttp"], servers.aiohttp, MEMORY, "submitter",
        "server with workers", [load(1, 10), load(8, 10), load(32, 10), load(128, 10)],
    ),
]

# jobwire is driven by its own `bench`: a scenario for throughput, and one for latency. Some rows have a store beside it.
JOBWIRE = {
    "jobwire, StreamSubmit": ("stream-lifecycle", None),
    "jobwire, BatchSubmit of 100": ("batch-lifecycle", None),
    "jobwire, unary Submit, 64 callers": ("lifecycle", None),
    "jobwire on PostgreSQL, StreamSubmit": ("stream-lifecycle", servers.postgres),
    "jobwire on PostgreSQL, BatchSubmit of 100": ("batch-lifecycle", servers.postgres),
}
JOBWIRE_LATENCY = "latency"
