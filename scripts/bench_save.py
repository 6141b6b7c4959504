"""The figures of bench.sh save: writing through a mount beside the plain file on the same disk, committing beside an
import of the same files, and what readers keep while a checkpoint is written. Each contender takes its turn."""

import os
import shutil
import threading
import time

import numpy as np

import lineage_cases
from bench import BASE, Mgit, TUNED, Table, contend, files, forget, run, run_rows, size

PLAIN, WEIGHTS = "plain file", "model.safetensors"
PIECE = 8 << 20


class Bench:
    def __init__(self, arguments, work, stack):
        self.arguments, self.work, self.stack, self.rounds = arguments, work, stack, arguments.rounds
        self.table, self.made = Table(), 0
        self.base, self.tuned = arguments.models / BASE, arguments.models / TUNED

    def repository(self, mount=True, base=None):
        """A new repository with the base model in it, or another one."""
        self.made += 1
        mgit = Mgit(self.arguments.mgit, self.work / f"repo{self.made}", self.work / f"mount{self.made}")
        run(mgit.binary, "init", mgit.repo)
        mgit("import", base or self.base, "--as", "base", "--no-parent")
        if mount:
            self.stack.callback(mgit.umount)
            mgit.mount()
        return mgit

    def steps(self, count):
        """Checkpoints of one run: every weight moves a little each time."""
        rng, tensors = np.random.default_rng(1), lineage_cases.read(self.tuned / WEIGHTS)
        for number in range(1, count + 1):
            tensors = lineage_cases.floats(tensors, lambda _, t: moved(rng, t))
            directory = self.work / "steps" / f"checkpoint-{number}"
            directory.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.tuned / "config.json", directory)
            lineage_cases.write(directory / WEIGHTS, tensors)
            yield directory


def moved(rng, t):
    return t + rng.normal(scale=2e-5, size=t.shape).astype(t.dtype)


def written(path, buffer, length):
    """Seconds to write `length` bytes to a new file and have them on the disk."""
    start = time.perf_counter()
    with open(path, "wb", buffering=0) as f:
        for at in range(0, length, PIECE):
            f.write(buffer[: min(PIECE, length - at)])
        os.fsync(f.fileno())
    return time.perf_counter() - start


def timed(action, *words):
    start = time.perf_counter()
    action(*words)
    return time.perf_counter() - start


def write(bench):
    """A file of --size MB written and synced, in a draft and plainly."""
    mgit, length = bench.repository(), bench.arguments.size * 1_000_000
    plain, draft = bench.work / "plain", mgit.mountpoint / "models" / "run"
    plain.mkdir()
    draft.mkdir()
    (draft / "v1").mkdir()
    buffer = os.urandom(PIECE)
    once = lambda directory: lambda: written(directory / "big.bin", buffer, length)

    def before():
        for directory in (plain, draft / "v1"):
            (directory / "big.bin").unlink(missing_ok=True)
        os.sync()
        time.sleep(1)  # a removed file's pages are freed when the last who has it open lets go

    median = contend(bench.rounds, {"mgit": once(draft / "v1"), PLAIN: once(plain)}, before)
    own, other = (length / median[n] / 1e6 for n in ("mgit", PLAIN))
    bench.table.add("write + fsync", own, "MB/s", {PLAIN: other}, (">= 0.8x", own >= 0.8 * other))
    mgit("discard", draft / "v1")


def commit(bench):
    """A fine-tune sealed, beside mgit import of the same files; the base is there."""
    sealing, importing = bench.repository(), bench.repository(mount=False)
    models, made = sealing.mountpoint / "models", []

    def seal():
        name = f"tuned{len(made)}"
        made.append(name)
        (models / name).mkdir()
        shutil.copytree(bench.tuned, models / name / "v1")
        os.sync()
        seconds = timed(sealing, "seal", models / name / "v1")
        sealing("rm", name)
        return seconds

    def bring():
        name = f"tuned{len(made)}"
        made.append(name)
        seconds = timed(importing, "import", bench.tuned, "--as", name)
        importing("rm", name)
        return seconds

    def before():
        for mgit in (sealing, importing):
            mgit("gc", "--grace", "0s")

    median = contend(bench.rounds, {"mgit": seal, "import": bring}, before)
    bench.table.add("commit", median["mgit"], "s", {"mgit import": median["import"]}, ("<= 1.5x", median["mgit"] <= 1.5 * median["import"]))


def eight(bench):
    """Eight checkpoints of one run saved one after another, beside the same imported by hand: stored bytes."""
    saving, importing = bench.repository(), bench.repository(mount=False)
    run_of = saving.mountpoint / "models" / "run"
    run_of.mkdir()
    for directory in bench.steps(8):
        shutil.copytree(directory, run_of / directory.name)
        saving("seal", run_of / directory.name)
        importing("import", directory, "--as", f"run@{directory.name}")
        shutil.rmtree(directory)
    own, other = (packs(mgit) / 1e6 for mgit in (saving, importing))
    bench.table.add("eight checkpoints", own, "MB", {"imported": other}, ("within 1 %", abs(own - other) <= 0.01 * other))


def packs(mgit):
    return size(mgit.repo / "packs")


def readers(bench):
    """Cold reads of another version while a checkpoint is being written, beside reads while none is."""
    mgit = bench.repository()
    source = mgit.mountpoint / "models" / "base" / "latest" / WEIGHTS
    draft = mgit.mountpoint / "models" / "run"
    draft.mkdir()
    (draft / "v1").mkdir()
    buffer = os.urandom(PIECE)

    def read():
        start = time.perf_counter()
        with open(source, "rb", buffering=0) as f:
            while f.read(1 << 20):
                pass
        return time.perf_counter() - start

    def cold():
        mgit.umount()
        (draft / "v1" / "big.bin").unlink(missing_ok=True)
        forget(mgit.repo)
        mgit.mount()

    def beside(directory):
        def reading():
            stop = threading.Event()
            writer = threading.Thread(target=keep_writing, args=(directory / "big.bin", buffer, stop))
            writer.start()
            time.sleep(0.3)
            seconds = read()
            stop.set()
            writer.join()
            (directory / "big.bin").unlink()
            return seconds

        return reading

    outside = bench.work / "outside"
    outside.mkdir()
    contenders = {"mgit": beside(draft / "v1"), "nobody writes": read, "written outside": beside(outside)}
    raw = source.stat().st_size / 1e6
    rates = {n: raw / s for n, s in contend(bench.rounds, contenders, cold).items()}
    own = rates.pop("mgit")
    bench.table.add("read during a save", own, "MB/s", rates, (">= 0.8x", own >= 0.8 * rates["nobody writes"]))


def keep_writing(path, buffer, stop):
    """A checkpoint written at 100 MB/s at most, as fast as a trainer serialises one."""
    with open(path, "wb", buffering=0) as f:
        while not stop.is_set():
            f.write(buffer)
            time.sleep(len(buffer) / 100e6)


ROWS = {"write": write, "commit": commit, "eight": eight, "readers": readers}


def main():
    about = "Saving through a mount beside the plain file on the same disk, each taking its turn."
    size = {"type": int, "default": 1000, "metavar": "MB", "help": "of the file in the row write (1000)"}
    run_rows("save", about, ROWS, Bench, size=size)


if __name__ == "__main__":
    main()
