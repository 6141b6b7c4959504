"""The figures of bench.sh merge: two models merged cold beside `cat A B > /dev/null` from a cold mount, the most memory
that takes, and what the result adds to the repository. Each contender takes its turn."""

import os
import subprocess
import sys
import time

from bench import contend, forget, run_rows
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

    def __init__(self, arguments, work, stack):
        super().__init__(arguments, work, stack)
        self.mgit = self.repository(mount=False)
        stack.callback(self.mgit.umount)
        for number, directory in enumerate(self.steps(2)):
            self.mgit("import", directory, "--as", f"tuned{number}", "--parent", "base")


def timed(command):
    """Seconds, and the most memory in MiB, of a command."""
    start = time.perf_counter()
    child = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"bench.sh merge: {command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def method(bench, name):
    mgit, (options, goal) = bench.mgit, METHODS[name]
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


def row(name):
    measure = lambda bench: method(bench, name)
    measure.__doc__ = f"mgit merge --method {name}"
    return measure


def main():
    about = "Merging two models cold beside reading both from a cold mount, each taking its turn."
    run_rows("merge", about, {name: row(name) for name in METHODS}, Bench)


if __name__ == "__main__":
    main()
