"""Figures as Markdown, with what is needed to judge and to repeat them."""

import datetime
import os
import platform
import re
import subprocess

BEGIN, END = "<!-- peers -->", "<!-- /peers -->"

# Name and command of everything that has a version.
VERSIONS = {
    "jobwire": ["{jobwire}", "--version"],
    "beanstalkd": ["beanstalkd", "-v"],
    "gearmand": ["gearmand", "--version"],
    "Redis": ["redis-server", "--version"],
    "PostgreSQL": ["sh", "-c", "$(ls -d /usr/lib/postgresql/*/bin/postgres | tail -n 1) --version"],
    "Python": ["python3", "--version"],
    "Celery": ["python3", "-c", "import celery; print(celery.__version__)"],
    "aiohttp": ["python3", "-c", "import aiohttp; print(aiohttp.__version__)"],
    "Node.js": ["node", "--version"],
    "BullMQ": ["node", "-p", "require(process.env.PEERS_TOOLS + '/node/node_modules/bullmq/package.json').version"],
    "Go": ["go", "version"],
    "Asynq": ["sh", "-c", "go version -m $PEERS_TOOLS/bin/peers | grep hibiken/asynq"],
    "Faktory": ["sh", "-c", "go version -m $PEERS_TOOLS/bin/peers | grep contribsys/faktory"],
    "River": ["sh", "-c", "go version -m $PEERS_TOOLS/bin/peers | grep 'riverqueue/river\t'"],
}


def settings(flags):
    return ", ".join(f"{name} {value:,}" for name, value in flags.items())


def words(row):
    return (
        f"{row['name']}: {row['rate']:,.0f} jobs/s; p50 {row['p50_us'] / 1000:.2f} ms, "
        f"p99 {row['p99_us'] / 1000:.2f} ms; {row['memory'] / 2**20:.0f} MiB"
    )


def version(command, jobwire):
    command = [word.format(jobwire=jobwire) if word == "{jobwire}" else word for word in command]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "not known"
    found = re.search(r"v?(\d+(\.\d+)+)", told)
    return found.group(1) if found else "not known"


def document(rows, failed, commit, options):
    versions = "; ".join(f"{name} {version(command, options.jobwire)}" for name, command in VERSIONS.items())
    ours = next((row["rate"] for row in rows if row["name"].startswith("jobwire")), None)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    lines = [
        f"Measured on {datetime.date.today()}: {os.cpu_count()} processors, {memory:.0f} GiB, "
        f"{platform.system()} on {platform.machine()}. One append of 4 KiB with fdatasync, on the same disk in the same "
        f"run: p50 {commit['p50_us'] / 1000:.2f} ms, p99 {commit['p99_us'] / 1000:.2f} ms.",
        "",
        "| | jobs a second | StreamSubmit / this | p50, ms | p99, ms | memory, MiB | of | an acknowledgement means "
        "| the end is seen by |",
        "|---|--:|--:|--:|--:|--:|---|---|---|",
    ]
    for row in rows:
        ratio = f"{ours / row['rate']:.2f}" if ours else ""
        lines.append(
            f"| {row['name']} | {row['rate']:,.0f} | {ratio} | {row['p50_us'] / 1000:.2f} | "
            f"{row['p99_us'] / 1000:.2f} | {row['memory'] / 2**20:.0f} | {row['memory_of']} | {row['acknowledged']} | "
            f"{row['seen_by']} |"
        )
    lines += ["", *(f"Not measured, because it failed: {name}." for name in failed), *verdict(rows), ""]
    lines += ["The settings that were the fastest of those tried:", ""]
    lines += [f"- {row['name']}: {row['settings']}" for row in rows]
    lines += ["", f"Versions: {versions}."]
    return "\n".join(lines)


def verdict(rows):
    """How jobwire does against what it promises."""
    ours = [row["rate"] for row in rows if row["name"].startswith("jobwire")]
    others = [row for row in rows if not row["name"].startswith("jobwire")]
    if not ours or not others:
        return
    fastest = max(others, key=lambda row: row["rate"])
    yield f"Against the fastest of all, {fastest['name']}: {ours[0] / fastest['rate']:.2f} times its rate."
    synced = [row for row in others if row["acknowledged"] == "synced"]
    if synced:
        fastest = max(synced, key=lambda row: row["rate"])
        yield f"Against the fastest that syncs, {fastest['name']}: {ours[0] / fastest['rate']:.2f} times its rate."


def write(path, text):
    with open(path) as file:
        old = file.read()
    if BEGIN not in old or END not in old:
        raise SystemExit(f"{path} has no place between {BEGIN} and {END}")
    head, rest = old.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    with open(path, "w") as file:
        file.write(f"{head}{BEGIN}\n{text}\n{END}{tail}")
