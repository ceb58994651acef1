"""The worker's end of the pipe to the suite: what every library's worker shares; the standard library alone.

A worker is `python LIBRARY_worker.py TASK`, with the task as JSON, in the environment of its library. It answers in
lines of JSON on what was its standard output; whatever a library prints goes to standard error. There are two kinds:

- a worker that is asked in turns says that it is ready once its program is compiled, and then does one chunk of work
  for each line that it reads, until there are no more;
- a worker that is one whole process marks its phases, in seconds since the suite started it, and says them at its end.
"""

import json
import math
import os
import resource
import sys
import time
from importlib.metadata import version


class Suite:
    """The suite, as a worker sees it."""

    def __init__(self):
        self.task = json.loads(sys.argv[1])
        self.phases = {}
        self._pipe = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(self, **message):
        print(json.dumps(message), file=self._pipe, flush=True)

    def ready(self, *packages):
        """The program is compiled: from here on it is asked in turns."""
        self.say(versions=versions(*packages), **self._passed())

    def wait(self):
        """Wait for the suite to ask for a chunk, whose time begins; end where it has gone."""
        if not sys.stdin.readline():
            sys.exit()
        self._begin = time.perf_counter(), time.process_time()

    def answer(self, amount):
        """The chunk is done, of so many units of work."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.say(amount=amount, wall=wall - self._begin[0], cpu=cpu - self._begin[1], peak=peak())

    def chunks(self, advance, amount, *packages):
        """Answer with chunks of `advance(n)`, n iterations of `amount` units each, about `task["seconds"]` long."""
        advance(1)
        count, target = 1, self.task["seconds"]
        while (seconds := elapsed(advance, count)) < target / 2:
            count = math.ceil(count * min(10, max(2, target / seconds)))
        count = max(1, round(count * target / seconds))
        self.ready(*packages)
        while True:
            self.wait()
            advance(count)
            self.answer(count * amount)

    def phase(self, name):
        """What `name` says has happened by now."""
        self.phases[name] = self._passed()

    def finish(self, *packages, **facts):
        """All phases are over."""
        self.say(versions=versions(*packages), phases=self.phases, peak=peak(), **facts)

    def _passed(self):
        """Seconds since the suite started this process: of the clock, which all processes share, and of all cores."""
        return {"wall": time.monotonic() - self.task["started"], "cpu": time.process_time()}


def elapsed(function, *arguments):
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def versions(*packages):
    return {"python": sys.version.split()[0]} | {name: version(name) for name in packages}


def peak():
    """Megabytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main(work):
    """Do what the task is: `work` maps a kind of task to `function(suite)`."""
    suite = Suite()
    work[suite.task["kind"]](suite)
