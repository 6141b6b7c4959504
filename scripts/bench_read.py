"""The figures of `bench.sh read`: reading through a mount, beside the plain file on the same disk.

Sequential reads are of 1 MiB at a time. Cold: an empty page cache and a daemon that has just started, so a version's
base is cold too. Everything read is compared with the plain bytes once, before the clock starts.
"""

import concurrent.futures
import contextlib
import fcntl
import filecmp
import json
import mmap
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

import lineage_cases
import numpy as np
from bench import BASE, Mgit, TUNED, Table, contend, files, forget, run, run_rows, say, timed

WEIGHTS = lineage_cases.WEIGHTS
OTHERS = ["ft1", "ft2", "client1", "client2", "client3", "client4", "client5", "avg", "interp"]
TEN = [TUNED, *OTHERS]  # siblings
TUNED_BF16, *OTHERS_BF16 = [f"{name}-bf16" for name in ("sre", *OTHERS[:6])]
PLAIN = "plain, same disk"
PIECE, PAGE = 1 << 20, 4096
HELD = 300_000_000  # bytes a second
PAGES = 2000  # read at random
DISK_CACHE = "--disk-cache", "4GiB"
CACHE_MIB, MORE_MIB = 256, 100


# ---- readers, each gives its seconds


def read_through(path):
    buffer = memoryview(bytearray(PIECE))
    start = time.perf_counter()
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buffer):
            pass
    return time.perf_counter() - start


def read_mapped(path):
    buffer = memoryview(bytearray(PIECE))
    start = time.perf_counter()
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m, memoryview(m) as view:
        for at in range(0, len(view), PIECE):
            piece = view[at : at + PIECE]
            buffer[: len(piece)] = piece
            piece.release()
    return time.perf_counter() - start


def read_at_once(paths):
    """Each by a thread of its own: seconds until the last is done, and those of each."""
    with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
        start = time.perf_counter()
        each = list(pool.map(read_through, paths))
        return time.perf_counter() - start, each


def read_pages(path, threads, seed):
    """PAGES pages at random, no read-ahead: seconds, and what was read by offset."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        offsets = [PAGE * n for n in random.Random(seed).sample(range(os.fstat(fd).st_size // PAGE), PAGES)]
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            pages = list(pool.map(lambda at: os.pread(fd, PAGE, at), offsets))
            return time.perf_counter() - start, dict(zip(offsets, pages))
    finally:
        os.close(fd)


# A loader runs in a fresh process, and has loaded all code before the clock starts.

READY = """
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter()
"""
PRETRAINED = f"""
import os, sys, time, warnings
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
warnings.simplefilter("ignore")
from transformers import AutoConfig, AutoModel
directory, config = sys.argv[1:]
AutoModel.from_config(AutoConfig.from_pretrained(config))
{READY}
AutoModel.from_pretrained(directory)
print(time.perf_counter() - start)
"""
MAPPED = f"""
import sys, time
import torch
from safetensors.torch import load_file
{READY}
tensors = {{name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}}  # cloned: every byte is read
print(time.perf_counter() - start)
"""


def loader(code, prepare, *words):
    def seconds():
        command = [sys.executable, "-c", code, *map(str, words)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        prepare()
        out, _ = process.communicate("go\n")
        if process.returncode:
            sys.exit("bench.sh read: loading failed (see above)")
        return float(out)

    return seconds


# ---- the models, in a repository and beside it


class Bench:
    def __init__(self, arguments, work, stack):
        self.arguments, self.work, self.stack, self.rounds = arguments, work, stack, arguments.rounds
        self.table, self.sources = Table(), {}
        self.plain, self.cases = work / "plain", arguments.models.parent / "lineages"
        self.mgit = self.repository("repo")

    def repository(self, name):
        mgit = Mgit(self.arguments.mgit, self.work / name, self.work / f"{name}.mount")
        run(mgit.binary, "init", mgit.repo)
        self.stack.callback(mgit.umount)
        return mgit

    def ours(self, name):
        return self.mgit.latest(name) / WEIGHTS

    def theirs(self, name):
        return self.plain / name / WEIGHTS

    def have(self, *names):
        """Copies, imports and compares those models that are not there yet, and first what they come from."""
        for name in names:
            if name in self.sources:
                continue
            parent = "base-bf16" if name.endswith("-bf16") else BASE
            parent = parent if name != parent else None
            self.have(*([parent] if parent else []))
            say(f"read: importing {name}")
            shutil.copytree(self.source(name), self.plain / name)
            self.mgit("import", self.plain / name, "--as", name, *(["--parent", parent] if parent else ["--no-parent"]))
            self.sources[name] = parent
            self.cold()
            self.compare(name)

    def source(self, name):
        if name in (BASE, TUNED):
            return self.arguments.models / name
        case = name.removesuffix("-bf16")  # only the base is there as bf16
        with open(self.cases.parent / "lock", "a") as lock, contextlib.redirect_stdout(sys.stderr):
            fcntl.flock(lock, fcntl.LOCK_EX)
            lineage_cases.main(self.arguments.models, self.cases, case)
        if name == case:
            return self.cases / case
        made = self.work / "cast" / name
        made.mkdir(parents=True)
        shutil.copy(self.cases / case / "config.json", made)
        tensors = lineage_cases.read(self.cases / case / WEIGHTS)
        lineage_cases.write(made / WEIGHTS, lineage_cases.floats(tensors, lambda _, t: lineage_cases.bf16(t)))
        return made

    def compare(self, name):
        for path in files(self.plain / name):
            ours = self.mgit.latest(name) / path.relative_to(self.plain / name)
            if not filecmp.cmp(path, ours, shallow=False):
                sys.exit(f"bench.sh read: {ours} has other bytes than {path}")

    def cold(self, *options):
        self.mgit.umount()
        forget(self.mgit.repo, self.plain)
        self.mgit.mount(*options)

    def beside(self, name):
        """Cold, but a sibling has been read through the mount."""
        self.cold()
        read_through(self.ours(name))

    def rates(self, title, names, goal, before=lambda: None, reader=read_through, rounds=None, **others):
        """A row in MB/s, our files one after the other beside the plain ones; others: name → its seconds."""
        say(f"read: {title}")
        contenders = {
            "mgit": lambda: sum(reader(self.ours(n)) for n in names),
            PLAIN: lambda: sum(reader(self.theirs(n)) for n in names),
            **others,
        }
        median = contend(rounds or self.rounds, contenders, before)
        raw = sum(self.theirs(n).stat().st_size for n in names)
        rates = {n: raw / seconds / 1e6 for n, seconds in median.items()}
        own = rates.pop("mgit")
        self.table.add(title, own, "MB/s", rates, goal and (f">= {goal}x", own >= goal * rates[PLAIN]))
        return rates[PLAIN]

    def warm(self, title, name, goal=0.98):
        for kind, reader in (("read", read_through), ("mmap", read_mapped)):
            reader(self.ours(name)), reader(self.theirs(name))
            self.rates(f"warm {kind}{title}", [name], goal, reader=reader, rounds=max(self.rounds, 15))

    def times(self, title, contenders, most, unit="s", beside=PLAIN, rounds=None):
        """A row in time, ours at most so many times the other's."""
        say(f"read: {title}")
        median = contend(rounds or self.rounds, contenders)
        scale = 1e3 if unit == "ms" else 1
        own, other = (scale * median[n] for n in ("mgit", "plain"))
        self.table.add(title, own, unit, {beside: other}, (f"<= {most:.3g}x", own <= most * other))


# ---- the rows


def cold(bench):
    """Cold sequential reads, fp32 and bf16."""
    bench.have(TUNED, TUNED_BF16)
    bench.rates("cold read, fp32, base cold too", [TUNED], 0.5, bench.cold)
    bench.rates("cold read, bf16, base cold too", [TUNED_BF16], 0.3, bench.cold)


def sibling(bench):
    """The same, a sibling of the same base read before."""
    fp32, bf16 = OTHERS[0], OTHERS_BF16[0]
    bench.have(TUNED, fp32, TUNED_BF16, bf16)
    bench.rates("cold read, fp32, sibling read before", [fp32], 0.9, lambda: bench.beside(TUNED))
    bench.rates("cold read, bf16, sibling read before", [bf16], 0.8, lambda: bench.beside(TUNED_BF16))


def held(bench):
    """The same of several versions, the disk held to 300 MB/s by a cgroup."""
    fp32, bf16 = OTHERS[: len(OTHERS_BF16) // 2], OTHERS_BF16  # as many bytes: the first 30 MB are not held
    bench.have(TUNED, *fp32, TUNED_BF16, *bf16)
    title = f"sibling read before, disk held to {HELD // 1_000_000} MB/s"
    bench.mgit.umount()  # a daemon is held if it starts held
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(disk_held(bench.work))
        except OSError as e:
            bench.table.without(title, f"no such cgroup: {e.strerror} ({e.filename})")
            return
        stack.callback(bench.mgit.umount)
        plain = [
            bench.rates(f"{len(fp32)} fp32, {title}", fp32, 2, lambda: bench.beside(TUNED)),
            bench.rates(f"{len(bf16)} bf16, {title}", bf16, 3, lambda: bench.beside(TUNED_BF16)),
        ]
    if max(plain) > 1.3 * HELD / 1e6:
        del bench.table.rows[-2:]
        bench.table.without(title, f"the disk is not held: plain files came at {max(plain):.0f} MB/s")


@contextlib.contextmanager
def disk_held(directory):
    """This process, and those that it starts, read that directory's disk no faster than HELD."""
    number = os.stat(directory).st_dev
    device = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve(strict=True)
    disk = ((device.parent if (device / "partition").exists() else device) / "dev").read_text().strip()
    own = dict(line.rstrip("\n").split(":", 2)[1:] for line in open("/proc/self/cgroup"))
    if "blkio" in own:
        root, home = pathlib.Path("/sys/fs/cgroup/blkio"), own["blkio"]
        setting, line = "blkio.throttle.read_bps_device", f"{disk} {HELD}"
    else:
        root, home = pathlib.Path("/sys/fs/cgroup"), own.get("", "/")
        setting, line = "io.max", f"{disk} rbps={HELD}"
    group = root / f"mgit-bench-{os.getpid()}"
    group.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(remove_group, group)
        (group / setting).write_text(line)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        stack.callback((root / home.lstrip("/") / "cgroup.procs").write_text, str(os.getpid()))
        yield


def remove_group(group):
    """Once the daemon that was in it has gone."""
    for _ in range(50):
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.1)


def mapped(bench):
    """safetensors.torch.load_file, cold, a sibling read before."""
    bench.have(TUNED, OTHERS[0])
    before = lambda: bench.beside(TUNED)
    contenders = {
        "mgit": loader(MAPPED, before, bench.ours(OTHERS[0])),
        "plain": loader(MAPPED, before, bench.theirs(OTHERS[0])),
    }
    bench.times("cold load_file, sibling read before", contenders, 1 / 0.8)


def warm(bench):
    """Warm read and mmap."""
    bench.have(TUNED)
    bench.cold()
    bench.warm("", TUNED)


def disk(bench):
    """With --disk-cache: the second cold read, and warm ones."""
    bench.have(TUNED)
    title = f"with {' '.join(DISK_CACHE)}"
    if DISK_CACHE[0] not in run(bench.mgit.binary, "mount", "--help").decode():
        bench.table.without(title, "this mgit has no such option")
        return
    again = lambda: bench.cold(*DISK_CACHE)
    again()
    read_through(bench.ours(TUNED))
    if not materialised(bench, bench.theirs(TUNED).stat().st_size):
        bench.table.without(title, "the file was not in the disk cache after 60 s")
        return
    again()
    bench.compare(TUNED)
    bench.rates(f"cold read again, {title}", [TUNED], 0.95, again)
    bench.warm(f", {title}", TUNED)


def materialised(bench, length):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(f["bytes"] >= length for f in bench.mgit.json("cache", "ls")["files"]):
            return True
        time.sleep(0.1)
    return False


def load(bench):
    """transformers' from_pretrained, cold and warm."""
    bench.have(TUNED)
    config = bench.work / "config"
    config.mkdir()
    shutil.copy(bench.plain / TUNED / "config.json", config)
    bench.cold()
    for kind, prepare, most in (("cold", bench.cold, 1.05), ("warm", lambda: None, 1.02)):
        contenders = {
            "mgit": loader(PRETRAINED, prepare, bench.mgit.latest(TUNED), config),
            "plain": loader(PRETRAINED, prepare, bench.plain / TUNED, config),
        }
        if kind == "warm":
            for contender in contenders.values():
                contender()
        bench.times(f"{kind} from_pretrained", contenders, most, beside="plain directory")


def ten(bench):
    """Ten siblings, one after the other, cold."""
    bench.have(*TEN)
    bench.rates("ten siblings one after the other, cold", TEN, 0.9, bench.cold)


def at_random(bench):
    """Pages at random offsets, cold, by 1 thread and by 8."""
    bench.have(TUNED)
    for threads, goal in ((1, 1500), (8, 2500)):
        title = f"{PAGES} random reads of 4 KiB, cold, {threads} thread{'s' if threads > 1 else ''}"
        say(f"read: {title}")
        pages = {"mgit": {}, "plain": {}}  # all of them, by offset

        def reader(name, path):
            seconds, read = read_pages(path, threads, seed=threads)
            pages[name].update(read)
            return seconds

        contenders = {
            "mgit": lambda: reader("mgit", bench.ours(TUNED)),
            "plain": lambda: reader("plain", bench.theirs(TUNED)),
        }
        median = contend(bench.rounds, contenders, bench.cold)
        if pages["mgit"] != pages["plain"]:
            sys.exit("bench.sh read: reads at random give other bytes than the plain file")
        own, other = (PAGES / median[n] for n in ("mgit", "plain"))
        bench.table.add(title, own, "/s", {PLAIN: other}, (f">= {goal}/s", own >= goal))


def eight(bench):
    """Eight readers of different versions at once, the base cold."""
    names = TEN[:8]
    bench.have(*names)
    title = "8 readers of 8 versions at once, cold"
    say(f"read: {title}")
    spread = {"mgit": [], "plain": []}

    def at_once(contender, paths):
        seconds, each = read_at_once(paths)
        spread[contender].append(max(each) / min(each))
        return seconds

    contenders = {
        "mgit": lambda: at_once("mgit", [bench.ours(n) for n in names]),
        "plain": lambda: at_once("plain", [bench.theirs(n) for n in names]),
        "one": lambda: read_through(bench.ours(TUNED)),
    }
    median = contend(bench.rounds, contenders, bench.cold)
    raw = {n: bench.theirs(n).stat().st_size for n in names}
    own, other = (sum(raw.values()) / median[n] / 1e6 for n in ("mgit", "plain"))
    one = raw[TUNED] / median["one"] / 1e6
    others = {"mgit, one reader": one, "8 plain, same disk": other}
    bench.table.add(title, own, "MB/s", others, (">= one reader's", own >= one))
    own, other = (statistics.median(spread[n]) for n in ("mgit", "plain"))
    bench.table.add("their slowest by their fastest", own, "x", {"8 plain, same disk": other})


def find(bench):
    """find -ls on many versions of ten files, and ls of as many models."""
    many, count = bench.repository("many"), bench.arguments.many
    say(f"read: importing {count} tiny models")
    sources = bench.work / "tiny"
    for n in range(count):
        tiny_model(sources / f"tiny{n:05}", n)
    many("import", "--each", sources, "--no-parent")
    many.mount()
    tree = bench.work / "tree"
    tree.mkdir()
    run("cp", "-a", many.mountpoint / "models", tree)
    for path in files(sources):
        model, file = path.relative_to(sources).parts
        if not filecmp.cmp(path, tree / "models" / model / "v1" / file, shallow=False):
            sys.exit(f"bench.sh read: {path} has other bytes in the mount")
    beside = "the same tree on the disk"
    for title, command, inside in (
        (f"find -ls, {count} versions of 10 files, warm", ("find", "-ls"), "models"),
        (f"ls models, {count} models, warm", ("ls",), "models"),
    ):
        word, *rest = command
        contenders = {
            "mgit": lambda: timed(word, many.mountpoint / inside, *rest),
            "plain": lambda: timed(word, tree / inside, *rest),
        }
        for contender in contenders.values():
            contender()
        bench.times(title, contenders, 2, "ms", beside, max(bench.rounds, 15))
    many.umount()


def tiny_model(directory, number):
    directory.mkdir(parents=True)
    lineage_cases.write(directory / WEIGHTS, {"t": np.array([number], np.int64)})
    for n in range(9):
        (directory / f"file{n}.json").write_text(json.dumps({"model": number, "file": n}))


def memory(bench):
    """The most memory that a daemon with --cache-size 256MiB takes when all this is read."""
    bench.have(*TEN)
    title = f"daemon's peak memory, --cache-size {CACHE_MIB}MiB"
    say(f"read: {title}")
    bench.cold("--cache-size", f"{CACHE_MIB}MiB")
    paths = [bench.ours(n) for n in TEN]
    for path in paths[:3]:
        read_through(path)
    read_at_once(paths[2:])
    read_pages(paths[0], 8, seed=1)
    for path in paths[:3]:
        read_mapped(path)
    try:
        peak = int(next(l for l in daemon_status(bench.mgit) if l.startswith("VmHWM:")).split()[1]) / 1024
    except StopIteration:
        bench.table.without(title, "no daemon to be seen in /proc")
        return
    most = CACHE_MIB + MORE_MIB
    bench.table.add(title, peak, "MiB", {f"the cache and {MORE_MIB} MiB": most}, ("<= 1x", peak <= most))


def daemon_status(mgit):
    """Lines of /proc/PID/status of the process that serves the mount: the one with --foreground."""
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if str(mgit.mountpoint) in words and "--foreground" in words:
                return (process / "status").read_text().splitlines()
    return []


def peers(bench):
    """A cold read beside squashfs, btrfs with zstd and lmzip's mount, those that are installed."""
    bench.have(TUNED)
    lmz, name = pathlib.Path(sys.executable).parent / "lmz", "lmzip, its mount"
    others = {}
    for title, tool, peer in (
        ("squashfs -comp zstd", shutil.which("mksquashfs"), squashfs),
        ("btrfs, zstd:3", shutil.which("mkfs.btrfs"), btrfs),
        (name, lmz.exists() and lmz, lmzip),
    ):
        try:
            if tool:
                others[title] = peer(bench, tool)
            else:
                bench.table.without(title, "not installed")
        except (OSError, subprocess.CalledProcessError) as e:
            bench.table.without(title, e)
    bench.rates("cold read, fp32, base cold too, beside peers", [TUNED], None, bench.cold, **others)


def peer_read(bench, mount, umount, mountpoint, path):
    """Compares once; then a reader that mounts afresh. The page cache is empty by then."""
    mountpoint.mkdir(exist_ok=True)

    def reader():
        run(*mount)
        try:
            return read_through(path)
        finally:
            run(*umount)

    run(*mount)
    try:
        same = filecmp.cmp(path, bench.theirs(TUNED), shallow=False)
    finally:
        run(*umount)
    if not same:
        sys.exit(f"bench.sh read: {path} has other bytes than the plain file")
    return reader


def squashfs(bench, tool):
    image, at = bench.work / "squashfs", bench.work / "squashfs.mount"
    run(tool, bench.plain / TUNED, image, "-comp", "zstd", "-quiet", "-no-progress")
    return peer_read(bench, ("mount", "-o", "loop,ro", image, at), ("umount", at), at, at / WEIGHTS)


def btrfs(bench, tool):
    image, at = bench.work / "btrfs", bench.work / "btrfs.mount"
    at.mkdir()
    run("truncate", "-s", "512M", image)
    run(tool, "-q", image)
    mount = "mount", "-o", "loop,compress-force=zstd:3", image, at
    run(*mount)
    try:
        shutil.copy(bench.theirs(TUNED), at)
    finally:
        run("umount", at)
    return peer_read(bench, mount, ("umount", at), at, at / WEIGHTS)


def lmzip(bench, tool):
    store, at = bench.work / "lmzip", bench.work / "lmzip.mount"
    run(tool, "add", "-q", bench.plain / TUNED, "--store", store)
    mount = tool, "mount", "-q", "-d", at, "--store", store
    return peer_read(bench, mount, (tool, "unmount", at), at, at / TUNED / WEIGHTS)


# ---- all of it

ROWS = {
    "cold": cold,
    "sibling": sibling,
    "held": held,
    "mmap": mapped,
    "warm": warm,
    "disk": disk,
    "load": load,
    "ten": ten,
    "random": at_random,
    "eight": eight,
    "find": find,
    "memory": memory,
    "peers": peers,
}


def main():
    about = "Reading through a mount beside the plain file on the same disk, each taking its turn."
    many = {"type": int, "default": 1000, "metavar": "N", "help": "tiny models for the row find (1000)"}
    run_rows("read", about, ROWS, Bench, many=many)


if __name__ == "__main__":
    main()
