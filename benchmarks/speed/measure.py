"""Measurements of the suite: workers that are asked in turns, and whole processes in turns."""

import contextlib
import hashlib
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent / "peers"
LIMIT = 1800  # seconds that a worker may be silent


def python(library):
    """The interpreter of a library's environment."""
    return sys.executable if library == "jaxrl" else str(PEERS / f".venv-{library}/bin/python")


class Failed(Exception):
    """A worker ended, or said nothing for too long."""


class Worker:
    """The process of one library, at work on one task."""

    def __init__(self, library, task, environment):
        if not Path(python(library)).exists():
            raise Failed(f"{python(library)} is not there: benchmarks/peers/setup {library}")
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        task = task | {"started": time.monotonic()}
        self.process = subprocess.Popen(
            [python(library), str(HERE / "workers" / f"{library}_worker.py"), json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={"JAX_PLATFORMS": "cpu"} | os.environ | environment,
        )

    def listen(self):
        """The next thing that it says."""
        heard, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        line = self.process.stdout.readline() if heard else ""
        if not line:
            self.end()
            self.errors.seek(0)
            raise Failed(self.errors.read()[-2000:] or f"it said nothing for {LIMIT} seconds")
        return json.loads(line)

    def ask(self):
        """A chunk of work, and what it took."""
        with contextlib.suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
        return self.listen()

    def end(self):
        """It ends by itself where nobody asks any more; it is given a while."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def chunks(members, pairs):
    """One chunk of each member in turn, `pairs` times: all of them, beside how busy the machine was.

    Each member, a library and its task, compiles before the next one starts; programs are not cached.
    """
    found, workers = {}, {}
    with contextlib.ExitStack() as stack:
        for label, (library, task) in members.items():
            found[label] = {"library": library, "task": task, "chunks": []}
            try:
                worker = Worker(library, task, {"JAX_ENABLE_COMPILATION_CACHE": "false"})
                stack.callback(worker.end)
                found[label]["ready"] = worker.listen()
                workers[label] = worker
            except Failed as failure:
                fail(found, label, failure)
        for _ in range(pairs):
            for label, worker in list(workers.items()):
                busy = os.getloadavg()[0]
                try:
                    found[label]["chunks"].append(worker.ask() | {"load": [busy, os.getloadavg()[0]]})
                except Failed as failure:
                    fail(found, label, failure)
                    del workers[label]
    return found


def processes(members, pairs):
    """Each member in turn, `pairs` times, as two processes: with an empty cache of programs, and with what is in it."""
    found = {
        label: {"library": library, "task": task, "cold": [], "warm": []} for label, (library, task) in members.items()
    }
    for label, (library, _) in members.items():  # its files are read once before anything is measured
        try:
            once(library, {"kind": "import"}, {})
        except Failed as failure:
            fail(found, label, failure)
    for pair in range(pairs):
        for label, (library, task) in members.items():
            if "error" in found[label]:
                continue
            with tempfile.TemporaryDirectory() as cache:
                settings = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
                for mode in ("cold", "warm"):
                    busy = os.getloadavg()[0]
                    try:
                        said = once(library, task | {"seed": pair}, settings)
                    except Failed as failure:
                        fail(found, label, failure)
                        break
                    found[label][mode].append(said | {"load": [busy, os.getloadavg()[0]]})
    return found


def once(library, task, settings):
    """A whole process, and what it says at its end."""
    worker = Worker(library, task, settings)
    said = worker.listen()
    worker.end()
    return said


def fail(found, label, failure):
    """A peer that does not run is left out, and said so; without us there is nothing to compare."""
    print(f"{label} failed: {failure}", file=sys.stderr, flush=True)
    if label == "jaxrl":
        raise failure
    found[label]["error"] = str(failure)[-500:]


def machine():
    """What the suite runs on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{os.cpu_count()} x {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} x {platform.processor() or platform.machine()}"


def revision():
    """The commit, with what tells other changes of the sources apart; None outside of git."""

    def git(*words):
        result = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    commit, sources = git("rev-parse", "--short", "HEAD"), ("--", ":/jaxrl", ":/agents")
    if commit is None:
        return None
    changes = f"{git('status', '--porcelain', *sources)}{git('diff', 'HEAD', *sources)}"
    return commit + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:7]}" if changes else "")
