"""How the server of each peer is started: on loopback, on a free port, in an empty directory of its own."""

import contextlib
import glob
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

START_TIMEOUT = 60
STOP_TIMEOUT = 20
HERE = os.path.dirname(os.path.abspath(__file__))


class Failed(Exception):
    """A peer cannot be measured."""


class Server:
    """Processes that serve, and the address for the driver."""

    def __init__(self, address, *processes):
        self.address = address
        self.processes = processes

    def memory(self):
        """Bytes that the processes and their children hold in memory; pages that several share count once."""
        return sum(proportional(pid) for process in self.processes for pid in family(process.pid))


def family(pid):
    pids = [pid]
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(path) as children:
            for child in children.read().split():
                pids += family(int(child))
    return pids


def proportional(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
        found = re.search(r"^Pss:\s+(\d+) kB", rollup.read(), re.MULTILINE)
        return int(found.group(1)) * 1024 if found else 0
    return 0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(command, port, directory, stop=signal.SIGTERM, **more):
    """A process that listens on a port, and is ended by its id."""
    log = os.path.join(directory, "log")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=directory, **more
        )
    try:
        wait_for(process, port, log)
        yield process
    finally:
        process.send_signal(stop)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(process, port, log):
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    with open(log, errors="replace") as text:
        raise Failed(f"{process.args[0]} does not listen:\n{text.read()[-2000:]}")


@contextlib.contextmanager
def beanstalkd(directory, *arguments):
    port = free_port()
    command = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), *arguments]
    with running(command, port, directory) as process:
        yield Server(f"127.0.0.1:{port}", process)


def beanstalkd_synced(directory):
    return beanstalkd(directory, "-b", directory, "-f", "0")


@contextlib.contextmanager
def gearmand(directory):
    port = free_port()
    # One thread is the fastest here: with the four of the default all figures are lower.
    command = ["gearmand", "--listen=127.0.0.1", f"--port={port}", "--threads=0", "--log-file=none"]
    if os.geteuid() == 0:
        command.append("--user=root")
    with running(command, port, directory) as process:
        yield Server(f"127.0.0.1:{port}", process)


@contextlib.contextmanager
def redis(directory, *arguments):
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
    with running([*command, "--save", "", *arguments], port, directory) as process:
        yield Server(f"127.0.0.1:{port}", process)


def redis_synced(directory):
    return redis(directory, "--appendonly", "yes", "--appendfsync", "always")


@contextlib.contextmanager
def faktory(directory):
    # Faktory starts its own Redis, with the settings of a file at a fixed place that it writes if there is none.
    settings = "/tmp/redis.conf"
    if os.path.exists(settings):
        with open(settings) as text:
            if "Created by Faktory" not in text.read():
                raise Failed(f"{settings} is in the way: Faktory would take it for its own")
    port, web = free_port(), free_port()
    command = ["faktory", "-b", f"127.0.0.1:{port}", "-w", f"127.0.0.1:{web}", "-l", "warn"]
    with running([*command, "-d", directory, "-c", directory], port, directory) as process:
        yield Server(f"127.0.0.1:{port}", process)


@contextlib.contextmanager
def postgres(directory):
    port = free_port()
    programs = max(glob.glob("/usr/lib/postgresql/*/bin"), default=os.path.dirname(shutil.which("postgres") or ""))
    account = {}
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root.
        owner = pwd.getpwnam("postgres")
        os.chown(directory, owner.pw_uid, owner.pw_gid)
        account = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    data = os.path.join(directory, "data")
    made = subprocess.run(
        [os.path.join(programs, "initdb"), "-D", data, "-U", "peers", "-A", "trust", "--no-sync"],
        capture_output=True, text=True, cwd=directory, **account,
    )
    if made.returncode != 0:
        raise Failed(f"initdb: {made.stderr}")
    # fsync and synchronous_commit are on by default. The rest is what its documentation recommends to raise.
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "shared_buffers": "256MB",
        "max_wal_size": "4GB",
        "max_connections": 200,
    }
    command = [os.path.join(programs, "postgres"), "-D", data]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT: sessions are ended, not waited for.
    with running(command, port, directory, signal.SIGINT, **account) as process:
        # It listens before it lets anybody in.
        probe = [os.path.join(programs, "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        end = time.monotonic() + START_TIMEOUT
        while subprocess.run(probe).returncode != 0:
            if time.monotonic() > end:
                raise Failed("PostgreSQL does not get ready")
            time.sleep(0.05)
        yield Server(f"postgres://peers@127.0.0.1:{port}/postgres?sslmode=disable", process)


@contextlib.contextmanager
def aiohttp(directory):
    port = free_port()
    command = [sys.executable, os.path.join(HERE, "python", "aiohttp_server.py"), str(port)]
    with running(command, port, directory) as process:
        yield Server(f"127.0.0.1:{port}", process)
