"""The figures of bench.sh merge: two models merged cold beside `cat A B > /dev/null` from a cold mount, the most memory
that takes, and what the result adds to the repository. Each contender takes its turn."""

import argparse
import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

from bench import contend, forget, machine, report, say
from bench_save import Bench as Saving, packs

METHODS = {  # options, and the goal for what is stored, of the model's own bytes
    "average": ([], 0.01),
    "linear": (["--weights", "0.7,0.3"], 0.01),
    "task-arithmetic": ([], 0.01),
    "ties": ([], None),
    "slerp": ([], None),
}
SPEED, MEMORY = 0.3, 300


class Bench(Saving):
    """A base and two fine-tunes of it, as large as the base."""

    def family(self):
        mgit = self.repository(mount=False)
        for number, directory in enumerate(self.steps(2)):
            mgit("import", directory, "--as", f"tuned{number}", "--parent", "base")
        return mgit


def timed(command):
    """Seconds, and the most memory in MiB, of a command."""
    start = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"bench.sh merge: {command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def method(bench, mgit, name):
    options, goal = METHODS[name]
    made, most, added = [], [], []
    raw = sum(f.stat().st_size for f in bench.base.glob("*.safetensors"))

    def merge():
        before, to = packs(mgit), f"{name}{len(made)}"
        made.append(to)
        seconds, memory = timed([mgit.binary, "--repo", mgit.repo, "merge", "tuned0", "tuned1", "--method", name, *options, "--as", to])
        most.append(memory)
        added.append(packs(mgit) - before)
        mgit("rm", to)
        mgit("gc", "--grace", "0s")
        return seconds

    def cat():
        mgit.mount()
        files = [mgit.latest(f"tuned{n}") / "model.safetensors" for n in range(2)]
        seconds = timed(["cat", *files])[0]
        mgit.umount()
        return seconds

    median = contend(bench.rounds, {"mgit": merge, "cat": cat}, lambda: forget(mgit.repo))
    own, other = (2 * raw / median[n] / 1e6 for n in ("mgit", "cat"))
    bench.table.add(f"{name}: speed", own, "MB/s", {"cat A B, cold mount": other}, (f">= {SPEED}x", own >= SPEED * other))
    bench.table.add(f"{name}: memory", max(most), "MiB", {"both models": 2 * raw / 2**20}, (f"<= {MEMORY} MiB", max(most) <= MEMORY))
    share = 100 * max(added) / raw
    bench.table.add(f"{name}: stored", share, "% of raw", {"plain file": 100.0}, goal and (f"<= {100 * goal:.0f} %", share <= 100 * goal))


def main():
    parser = argparse.ArgumentParser(prog="bench.sh merge", description="Merging beside reading, each taking its turn.")
    for hidden in ("mgit", "models"):
        parser.add_argument(f"--{hidden}", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=pathlib.Path, help="where to work; its disk is measured (.cache)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender takes its turn (5)")
    parser.add_argument("--only", default=",".join(METHODS), metavar="METHOD,…", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    arguments = parser.parse_args()
    arguments.models = arguments.models.resolve()
    arguments.load = os.getloadavg()[0]
    only = arguments.only.split(",")
    if unknown := set(only) - set(METHODS):
        parser.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")

    with contextlib.ExitStack() as stack:
        work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=arguments.dir)).resolve()
        stack.callback(shutil.rmtree, work)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        bench = Bench(arguments, work, stack)
        mgit = bench.family()
        stack.callback(mgit.umount)
        for name in only:
            say(f"merge: {name}")
            method(bench, mgit, name)
        about = machine(arguments, work)
    report(arguments, about, bench.table)


if __name__ == "__main__":
    main()
