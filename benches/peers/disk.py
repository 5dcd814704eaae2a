"""What a sync costs on the disk that the servers write to."""

import os
import tempfile
import time

ROUNDS = 500
BLOCK = b"\xa5" * 4096


def cost_of_a_sync(directory):
    """Appends blocks to a file, each followed by fdatasync: the least that an acknowledgement can cost alone."""
    times = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            file.write(BLOCK)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begin) * 1e6)
    times.sort()
    return {"p50_us": times[ROUNDS // 2], "p99_us": times[ROUNDS * 99 // 100]}
