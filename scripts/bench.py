"""The figures of bench.sh, which see. Rates are medians over rounds in which every contender takes its turn."""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

BASE, TUNED = "all-minilm-l6-v2", "sre-embedding"
FAMILIES = [  # directory, model[@version], parent, relation
    (BASE, BASE, None, None),
    (TUNED, TUNED, BASE, "finetune"),
    ("chgnet-0.2.0", "chgnet@0.2.0", None, None),
    ("chgnet-0.3.0", "chgnet@0.3.0", "chgnet@0.2.0", None),
    ("chgnet-r2scan", "chgnet-r2scan", "chgnet@0.3.0", "finetune"),
]
PIECE = 1 << 20
ZIPNN_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def run(*command, **more):
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, **more).stdout


def timed(*command):
    start = time.perf_counter()
    run(*command)
    return time.perf_counter() - start


def files(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file())


def size(directory):
    return sum(p.stat().st_size for p in files(directory))


def largest_weights(directory):
    return max(directory.glob("*.safetensors"), key=lambda p: p.stat().st_size)


def forget(*directories):
    """Empties the page cache; where only root may, of these directories' files."""
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        for path in (p for d in directories for p in files(d)):
            with open(path, "rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def contend(rounds, contenders, before=lambda: None):
    """Median seconds of each contender, a dict of name → function that returns its seconds; the order turns."""
    seconds = {name: [] for name in contenders}
    names = list(contenders)
    for round in range(rounds):
        for name in names[round % len(names) :] + names[: round % len(names)]:
            before()
            seconds[name].append(contenders[name]())
    return {name: statistics.median(values) for name, values in seconds.items()}


class Mgit:
    def __init__(self, binary, repo, mount):
        self.binary, self.repo, self.mountpoint = binary, repo, mount

    def __call__(self, *arguments):
        return run(self.binary, "--repo", self.repo, *arguments)

    def json(self, *arguments):
        return json.loads(self(*arguments, "--json"))

    def mount(self, *options):
        self.mountpoint.mkdir(exist_ok=True)
        self("mount", self.mountpoint, *options)

    def umount(self):
        with open("/proc/self/mounts") as mounts:
            if any(line.split()[1] == str(self.mountpoint) for line in mounts):
                self("umount", self.mountpoint)

    def latest(self, model):
        return self.mountpoint / "models" / model / "latest"


def import_arguments(directory, name, parent, relation):
    arguments = ["import", directory, "--as", name]
    arguments += ["--parent", parent] if parent else []
    return arguments + (["--relation", relation] if relation else [])


# ---- the table


class Table:
    def __init__(self):
        self.rows, self.missing = [], []

    def without(self, figure, why):
        self.missing.append(f"{figure}: {why}")

    def add(self, figure, value, unit, others, goal=None):
        """others: name → value in the same unit. goal: (text, met)."""
        self.rows.append(
            {
                "figure": figure,
                "mgit": value,
                "unit": unit,
                "beside": {n: {"value": v, "ratio": value / v if v else None} for n, v in others.items()},
                "goal": {"text": goal[0], "met": goal[1]} if goal else None,
            }
        )

    def __str__(self):
        lines = [("figure", "mgit", "beside", "", "mgit is", "goal")]
        for row in self.rows:
            goal = row["goal"]
            verdict = f"{goal['text']}: {'met' if goal['met'] else 'MISSED'}" if goal else ""
            head = row["figure"], number(row["mgit"], row["unit"])
            for name, other in row["beside"].items():
                ratio = f"{other['ratio']:.2f}x" if other["ratio"] is not None else ""
                lines.append((*head, name, number(other["value"], row["unit"]), ratio, verdict))
                head, verdict = ("", ""), ""
        widths = [max(len(line[i]) for line in lines) for i in range(6)]
        right = (1, 3, 4)
        cells = [[c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(l, widths))] for l in lines]
        cells.insert(1, ["-" * w for w in widths])
        return "\n".join("  ".join(line).rstrip() for line in cells)


def number(value, unit):
    return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"


# ---- import


def bench_import(table, arguments, work):
    """Whole commands, until the bytes are on the disk; the sources are in the page cache."""
    cases = [(BASE, None), (TUNED, BASE)]
    for directory, parent in cases:
        source = arguments.models / directory
        raw = size(source)
        say(f"import: {directory}")
        into = work / "import"

        def fresh():
            shutil.rmtree(into, ignore_errors=True)
            into.mkdir()
            os.sync()
            for path in files(source):
                path.read_bytes()

        def ours():
            mgit = Mgit(arguments.mgit, into / "repo", None)
            run(arguments.mgit, "init", into / "repo")
            if parent:
                mgit(*import_arguments(arguments.models / parent, parent, None, None))
                os.sync()
            command = import_arguments(source, directory, parent, "finetune" if parent else None)
            return timed(arguments.mgit, "--repo", into / "repo", *command)

        def sh(script):
            return lambda: timed("sh", "-ec", script, "sh", source, into)

        median = contend(
            arguments.rounds,
            {
                "mgit": ours,
                "cp -r": sh('cp -r "$1" "$2"'),
                "cp -r, synced": sh('cp -r "$1" "$2"; sync -f "$2"'),
                "zstd -3 -T0, synced": sh('tar -C "$1" -cf - . | zstd -q -3 -T0 -o "$2/t.zst"; sync -f "$2"'),
            },
            before=fresh,
        )
        rates = {name: raw / seconds / 1e6 for name, seconds in median.items()}
        own = rates.pop("mgit")
        title = f"import {directory}" + (f", against {parent}" if parent else "")
        table.add(title, own, "MB/s", rates, (">= 100 MB/s", own >= 100))
        shutil.rmtree(into)


# ---- space


def zstd_size(path, parent=None):
    """Bytes of zstd -3, alone or as a patch from the largest weights of the parent."""
    command = ["zstd", "-q", "-3", "-c"]
    if parent:
        window = max(path.stat().st_size, parent.stat().st_size).bit_length()
        command += [f"--patch-from={parent}", f"--long={min(max(window, 10), 31)}"]
    process = subprocess.Popen([*command, path], stdout=subprocess.PIPE)
    count = 0
    while piece := process.stdout.read(PIECE):
        count += len(piece)
    if process.wait() != 0:
        sys.exit(f"bench.py: zstd failed on {path}")
    return count


def zipnn_dtype(raw):
    """What zipnn calls the type of most of the bytes, None where it has no name for it."""
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    share = {}
    for tensor in (t for k, t in header.items() if k != "__metadata__"):
        begin, end = tensor["data_offsets"]
        share[tensor["dtype"]] = share.get(tensor["dtype"], 0) + end - begin
    return ZIPNN_DTYPES.get(max(share, key=share.get, default="F32"))


def zipnn_of(dtype):
    import torch

    for name in ("float8_e4m3fn", "float8_e5m2"):  # zipnn names them, Debian's torch has none
        if not hasattr(torch, name):
            setattr(torch, name, object())
    from zipnn import ZipNN

    return ZipNN(input_format="byte", bytearray_dtype=dtype)


def zipnn_size(path):
    """Bytes of PyPI's zipnn, checked by a round trip."""
    raw = path.read_bytes()
    dtype = zipnn_dtype(raw)
    if not dtype:
        return zstd_size(path)
    zipnn = zipnn_of(dtype)
    packed = zipnn.compress(bytearray(raw))  # a copy, for it reorders what it is given
    if bytes(zipnn.decompress(packed)) != raw:
        sys.exit(f"bench.py: zipnn does not give {path} back")
    return len(packed)


def bench_space(table, arguments, mgit, models):
    """What each model adds, its parents being there; files that are not weights go through zstd -3 for the others."""
    totals = {}
    reports = {}
    for directory, name, parent, relation in models:
        say(f"space: {name}")
        reports[name] = mgit.json(*import_arguments(directory, name, parent, relation))
    repo = int(run("du", "-sb", mgit.repo).split()[0])
    by_name = {name: directory for directory, name, _, _ in models}
    for directory, name, parent, _ in models:
        say(f"space of the others: {name}")
        raw = size(directory)
        own = reports[name]["new_stored_bytes"]
        others = {"zstd -3": 0, "zipnn": 0, **({"zstd -3 --patch-from": 0} if parent else {})}
        source = largest_weights(by_name[parent]) if parent else None
        for path in files(directory):
            alone = zstd_size(path)
            weights = path.suffix == ".safetensors"
            others["zstd -3"] += alone
            others["zipnn"] += zipnn_size(path) if weights else alone
            if parent:
                others["zstd -3 --patch-from"] += zstd_size(path, source) if weights else alone
        goal = ("<= 42 % of raw", own <= 0.42 * raw) if name == TUNED else None
        percent = {n: 100 * v / raw for n, v in others.items()}
        title = f"space {name}" + (f", against {parent}" if parent else "")
        table.add(title, 100 * own / raw, "% of raw", {"plain files": 100.0, **percent}, goal)
        totals["plain files"] = totals.get("plain files", 0) + raw
        for tool in ("zstd -3", "zipnn"):
            totals[tool] = totals.get(tool, 0) + others[tool]
        best = min(others.get("zstd -3 --patch-from", others["zstd -3"]), others["zstd -3"])
        totals["zstd -3, --patch-from where smaller"] = totals.get("zstd -3, --patch-from where smaller", 0) + best
    table.add("space of the whole repository", repo / 1e6, "MB", {n: v / 1e6 for n, v in totals.items()})


# ---- all of it


def machine(arguments, work):
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    fs = run("stat", "-f", "-c", "%T", work).decode().strip()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "filesystem": fs,
        "cold": "drop_caches" if os.getuid() == 0 else "fadvise (not root)",
        "rounds": arguments.rounds,
        "load before": f"{arguments.load:.1f}",
    }


def report(arguments, about, table):
    if arguments.json:
        print(json.dumps({"machine": about, "rows": table.rows, "no_figure": table.missing}, indent=1))
        return
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    print(table)
    for line in table.missing:
        print(f"no figure: {line}")
    goals = [row["goal"]["met"] for row in table.rows if row["goal"]]
    if goals:
        print(f"\n{sum(goals)} of {len(goals)} goals met")


def run_rows(command, description, rows, bench_of, **options):
    """bench.sh COMMAND: of `rows`, name → function of a bench, those that --only names, each measured in turn.

    bench_of: arguments, directory to work in, ExitStack → a bench, which has a `table`. options: name → add_argument's.
    """
    parser = argparse.ArgumentParser(
        prog=f"bench.sh {command}",
        description=description,
        epilog="rows:\n" + "\n".join(f"  {name:<8} {row.__doc__}" for name, row in rows.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for hidden in ("mgit", "models"):
        parser.add_argument(f"--{hidden}", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=pathlib.Path, help="where to work; its disk is measured (.cache)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender takes its turn (5)")
    parser.add_argument("--only", default=",".join(rows), metavar="ROW,…", help="some of the rows below")
    for name, how in options.items():
        parser.add_argument(f"--{name}", **how)
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    arguments = parser.parse_args()
    arguments.models = arguments.models.resolve()
    arguments.load = os.getloadavg()[0]
    only = arguments.only.split(",")
    if unknown := set(only) - set(rows):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(rows)}")

    with contextlib.ExitStack() as stack:
        work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=arguments.dir)).resolve()
        stack.callback(shutil.rmtree, work)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        bench = bench_of(arguments, work, stack)
        for name, row in rows.items():
            if name in only:
                say(f"{command}: {name}")
                row(bench)
        about = machine(arguments, work)
    report(arguments, about, bench.table)


def main():
    parser = argparse.ArgumentParser(prog="bench.sh")
    parser.add_argument("--mgit", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=pathlib.Path, help="where to work; its disk is measured (.cache)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender takes its turn (5)")
    parser.add_argument("--only", default="import,space", help="some of import,space")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("more", nargs="*", metavar="MODEL_DIR[:PARENT]", help="more models for the rows on space")
    arguments = parser.parse_args()
    arguments.models = arguments.models.resolve()
    arguments.load = os.getloadavg()[0]  # a busy machine's figures say little; let it be seen
    only = set(arguments.only.split(","))

    models = [(arguments.models / d, *rest) for d, *rest in FAMILIES]
    for more in arguments.more:
        directory, _, parent = more.partition(":")
        directory = pathlib.Path(directory).resolve()
        if parent and parent not in (name for _, name, _, _ in models):
            parser.error(f"no model {parent} before {directory}")
        models.append((directory, directory.name, parent or None, "finetune" if parent else None))

    with contextlib.ExitStack() as stack:
        work = pathlib.Path(tempfile.mkdtemp(prefix="bench.", dir=arguments.dir))
        stack.callback(shutil.rmtree, work)
        table = Table()
        if "import" in only:
            bench_import(table, arguments, work)
        if "space" in only:
            run(arguments.mgit, "init", work / "repo")
            bench_space(table, arguments, Mgit(arguments.mgit, work / "repo", None), models)
        about = machine(arguments, work)
    report(arguments, about, table)


if __name__ == "__main__":
    main()
