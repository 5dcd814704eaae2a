"""The Celery application: Redis carries the jobs and the results. PEERS_REDIS is host:port."""

import os

from celery import Celery

redis = f"redis://{os.environ['PEERS_REDIS']}"
app = Celery("peers", broker=f"{redis}/0", backend=f"{redis}/1")
app.conf.update(
    worker_prefetch_multiplier=int(os.environ.get("PEERS_PREFETCH", "1")),
    worker_disable_rate_limits=True,
    broker_connection_retry_on_startup=True,
)


@app.task
def noop(payload):
    return payload
