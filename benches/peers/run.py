"""Measures jobwire and its peers, one after the other, and writes the table between the markers of a document.

usage: run.sh [--only TEXT] [--seconds S] [--try-seconds S] [--runs N] [--write FILE]
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import disk
import report
from catalogue import JOBWIRE, JOBWIRE_LATENCY, PEERS
from servers import Failed

# Beyond the time that a driver is told to submit for: connecting, warming up, seeing the last jobs end.
GRACE = 180
# Seconds between two looks at the memory of a server.
LOOK = 0.5
HERE = os.path.dirname(os.path.abspath(__file__))
INTERPRETERS = {".py": [sys.executable], ".mjs": ["node"]}


def arguments():
    parser = argparse.ArgumentParser(description="Measure jobwire and its peers")
    parser.add_argument("--only", default="", help="peers whose name has this in it")
    parser.add_argument("--seconds", type=float, default=5, help="of each figure")
    parser.add_argument("--try-seconds", type=float, default=2, help="of each try of a setting")
    parser.add_argument("--runs", type=int, default=3, help="the median of so many is quoted")
    parser.add_argument("--data", required=True, help="where the servers keep their data")
    parser.add_argument("--jobwire", required=True, help="the program")
    parser.add_argument("--write", help="document that takes the table")
    return parser.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


def last_line(command, timeout, look=lambda: None):
    """The line that a driver prints; meanwhile looks now and then."""
    end = time.monotonic() + timeout
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        while True:
            try:
                output, errors = driver.communicate(timeout=LOOK)
                break
            except subprocess.TimeoutExpired as late:
                if time.monotonic() > end:
                    driver.kill()
                    raise Failed(f"{command[0]} does not end") from late
                look()
    if driver.returncode != 0:
        raise Failed(f"{' '.join(command)}:\n{errors[-2000:]}")
    return json.loads(output)


def command_of(driver):
    interpreter = INTERPRETERS.get(os.path.splitext(driver[0])[1])
    if interpreter is None:
        return driver
    folder = "python" if driver[0].endswith(".py") else "node"
    # Node looks for packages beside the program: the copy that install.sh made has them.
    places = [os.path.join(HERE, folder), os.path.join(os.environ["PEERS_TOOLS"], folder)]
    place = places[1] if folder == "node" else places[0]
    return [*interpreter, os.path.join(place, driver[0]), *driver[1:]]


def drive(peer, scenario, seconds, flags, data):
    """One measurement, with a server of its own."""
    with tempfile.TemporaryDirectory(dir=data) as directory, peer.serve(directory) as server:
        command = [*command_of(peer.driver), scenario, "--address", server.address, "--seconds", str(seconds)]
        for flag, value in flags.items():
            command += [f"--{flag}", str(value)]
        memory = [0]
        figures = last_line(command, seconds + GRACE, lambda: memory.append(server.memory()))
        figures["memory"] = max(memory)
    if "jobs" in figures:
        figures["rate"] = figures["jobs"] / figures["seconds"]
    return figures


def tuned(peer, options):
    """The settings with the highest rate. Those that fail are out."""
    best, rate = None, 0
    for flags in peer.tries:
        try:
            figures = drive(peer, "throughput", options.try_seconds, flags, options.data)
        except Failed as why:
            say(f"  {report.settings(flags)}: {why}")
            continue
        say(f"  {report.settings(flags)}: {figures['rate']:,.0f}/s")
        if figures["rate"] > rate:
            best, rate = flags, figures["rate"]
    if best is None:
        raise Failed("no setting works")
    return best


def row_of(peer, options):
    flags = tuned(peer, options)
    rates = [drive(peer, "throughput", options.seconds, flags, options.data) for _ in range(options.runs)]
    times = [drive(peer, "latency", options.seconds, peer.latency, options.data) for _ in range(options.runs)]
    return {
        "name": peer.name,
        "rate": median(rates, "rate"),
        "p50_us": median(times, "p50_us"),
        "p99_us": median(times, "p99_us"),
        "memory": max(run["memory"] for run in rates),
        "memory_of": peer.memory_of,
        "acknowledged": peer.acknowledged,
        "seen_by": peer.seen_by,
        "settings": report.settings(flags),
    }


def bench(scenario, serve, options):
    """One measurement, with a server of its own, and the one that it keeps its jobs in."""
    command = [options.jobwire, "bench", scenario, "-o", "json", "--duration", f"{options.seconds}s"]
    with contextlib.ExitStack() as stack:
        if serve is None:
            command += ["--dir", options.data]
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(dir=options.data))
            command += ["--store", stack.enter_context(serve(directory)).address]
        return last_line(command, options.seconds + GRACE)[0]


def jobwire_rows(options):
    for name, (scenario, serve) in JOBWIRE.items():
        if options.only not in name:
            continue
        waits = [bench(JOBWIRE_LATENCY, serve, options)["latency"] for _ in range(options.runs)]
        times = [{"p50_us": wait["p50"], "p99_us": wait["p99"]} for wait in waits]
        runs = [bench(scenario, serve, options) for _ in range(options.runs)]
        yield {
            "name": name,
            "rate": median(runs, "per_second"),
            "p50_us": median(times, "p50_us"),
            "p99_us": median(times, "p99_us"),
            "memory": max(run["server_memory"] for run in runs),
            "memory_of": "server with workers",
            "acknowledged": "synced",
            "seen_by": "submitter",
            "settings": "defaults",
        }


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def main():
    options = arguments()
    os.makedirs(options.data, exist_ok=True)
    commit = disk.cost_of_a_sync(options.data)
    say(f"one synced append of 4 KiB: {commit['p50_us']:.0f} µs, p99 {commit['p99_us']:.0f} µs")
    rows, failed = [], []
    for row in jobwire_rows(options):
        rows.append(row)
        say(report.words(row))
    for peer in PEERS:
        if options.only not in peer.name:
            continue
        say(peer.name)
        try:
            rows.append(row_of(peer, options))
            say("  " + report.words(rows[-1]))
        except Failed as why:
            failed.append(peer.name)
            say(f"  not measured: {why}")
    text = report.document(rows, failed, commit, options)
    print(text)
    if options.write:
        report.write(options.write, text)
    return 1 if failed else 0


sys.exit(main())
