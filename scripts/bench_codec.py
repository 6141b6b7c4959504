"""The figures of `bench.sh codec`: what each model of a lineage costs, its parents being there.

mgit's figure is what `mgit import` adds to the packs, all overheads in. Beside it, on the weights' files: the codec
alone on one thread and XOR + byte planes + zstd -3 (both by codec_bench), zstd, and the peers from PyPI that there
are. Everything is decoded back and compared. MB/s are by CPU seconds; mgit's own is by the clock, on all cores.
"""

import argparse
import contextlib
import fcntl
import filecmp
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import lineage_cases
from bench import largest_weights, machine, run, say, zipnn_dtype, zipnn_of

WEIGHTS = "*.safetensors"
COLUMNS = ["mgit", "codec", "xor", "zstd -3", "patch-from", "zipnn", "lmzip", "z4ai"]
Z4AI_DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "I8": "int8", "U8": "uint8"}
PEER_SECONDS = 600
PREFIXES = ("bert.", "model.text_encoder.", "model.")  # what saving a model inside another puts before its names

# Goals: % of the raw bytes that an import may add, by the start of the model's name.
GOALS = {"sre": 33.5, "kind-v1": 12.0, "kind-v2": 5.0, "pruned90": 5.0, "avg": 1.0, "fedavg": 1.0, "lora": 15.0}
CAST_GOAL = 0.1
LAYOUT_GOAL, LAYOUTS = 0.01, ("renamed", "resharded", "duplicate")  # and the headers of the files
ALONE_GOALS = {"BF16": 66.3, "F32": 81.8}
BLOCKS_GOAL = 1.5  # % more than whole tensors
ENCODE_GOAL, DECODE_GOALS = 120, {"F32": 1200, "BF16": 850}
PORTABLE_GOALS = {"F32": 500, "BF16": 300}


# ---- models and their parents


class Node:
    def __init__(self, name, directory, parents, relation):
        self.name, self.directory, self.parents, self.relation = name, directory, parents, relation
        self.weights = sorted(directory.glob(WEIGHTS))

    @property
    def title(self):
        return self.name.replace("/", ".")

    def raw(self):
        return sum(p.stat().st_size for p in self.weights)

    def tensors(self):
        """name → (dtype, file, begin, end)"""
        out = {}
        for path in self.weights:
            with path.open("rb") as f:
                length = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(length))
            header.pop("__metadata__", None)
            for name, t in header.items():
                begin, end = (8 + length + at for at in t["data_offsets"])
                out[name] = t["dtype"], path, begin, end
        return out

    def dtype(self):
        share = {}
        for dtype, _, begin, end in self.tensors().values():
            share[dtype] = share.get(dtype, 0) + end - begin
        return max(share, key=share.get)

    def overhead(self):
        """Bytes of the directory that are no tensor's."""
        whole = sum(p.stat().st_size for p in self.directory.iterdir())
        return whole - sum(end - begin for _, _, begin, end in self.tensors().values())

    def touched(self, base):
        """Bytes of the tensors that are not those of the base."""
        theirs = base.tensors()
        same = lambda name, t: name in theirs and content(t) == content(theirs[name])
        return sum(t[3] - t[2] for name, t in self.tensors().items() if not same(name, t))


def content(tensor):
    dtype, path, begin, end = tensor
    with path.open("rb") as f:
        f.seek(begin)
        return dtype, f.read(end - begin)


def lineage(directory):
    """The models of a folder with a lineage.json; a path is below that folder, or below the one around it."""
    nodes = []
    for n in json.loads((directory / "lineage.json").read_text()):
        path = next((d / n["path"] for d in (directory, directory.parent) if (d / n["path"]).is_dir()), None)
        if path:
            nodes.append(Node(n["name"], path, n["parents"], n.get("relation")))
    return nodes


def own_cases(arguments):
    """Made at the first run. Models given by hand need no more of them than what they may come from."""
    cases = arguments.models.parent / "lineages"
    names = ["base", "base-bf16"] if arguments.more and not arguments.all else []
    with open(arguments.models.parent / "lock", "a") as lock, contextlib.redirect_stdout(sys.stderr):
        fcntl.flock(lock, fcntl.LOCK_EX)
        lineage_cases.main(arguments.models, cases, *names)
        return lineage(cases)


def gather(arguments):
    """All models by name, and those to measure."""
    known = {n.name: n for n in own_cases(arguments)}
    wanted = list(known.values()) if arguments.all or not arguments.more else []
    for more in arguments.more:
        directory, _, parents = more.partition(":")
        directory = pathlib.Path(directory).resolve()
        if (directory / "lineage.json").is_file():
            for other in sorted(directory.parent.glob("*/lineage.json")):
                known.update({n.name: n for n in lineage(other.parent)})
            wanted += lineage(directory)
        elif list(directory.glob(WEIGHTS)):
            node = Node(directory.name, directory, [p for p in parents.split(",") if p], None)
            known[node.name] = node
            wanted.append(node)
        else:
            sys.exit(f"bench.sh codec: {directory} has neither a lineage.json nor weights")
    alone = {n.directory for n in wanted if n.relation == "alone"}
    wanted = [n for n in wanted if n.relation != "part" and (n.relation != "root" or n.directory not in alone)]
    if arguments.only:
        wanted = [n for n in wanted if n.name in arguments.only.split(",")]
    for node in wanted:
        for parent in node.parents:
            if parent not in known:
                sys.exit(f"bench.sh codec: no model {parent}, parent of {node.name}")
    return known, wanted


# ---- mgit


class Repositories:
    """Repositories with a model's ancestors, each copied from the one with fewer of them."""

    def __init__(self, binary, work, known):
        self.binary, self.work, self.known, self.made = binary, work, known, {}

    def ancestors(self, node):
        out = []
        for parent in node.parents:
            parent = self.known[parent]
            out += [n for n in [*self.ancestors(parent), parent] if n not in out]
        return tuple(out)

    def having(self, nodes):
        if nodes not in self.made:
            path = self.work / f"repo{len(self.made)}"
            self.made[nodes] = path
            if nodes:
                shutil.copytree(self.having(nodes[:-1]), path)
                self.load(path, nodes[-1])
            else:
                run(self.binary, "init", path)
        return self.made[nodes]

    def load(self, path, node):
        parents = [word for p in node.parents for word in ("--parent", self.known[p].title)]
        parents = parents or ["--no-parent"]
        out = run(self.binary, "--repo", path, "import", node.directory, "--as", node.title, *parents, "--json")
        return json.loads(out)

    def measure(self, node):
        """Bytes that an import adds, and MB/s of it by the clock; then all of it is verified."""
        path = self.work / "repo"
        shutil.copytree(self.having(self.ancestors(node)), path)
        os.sync()
        start = time.perf_counter()
        report = self.load(path, node)
        seconds = time.perf_counter() - start
        run(self.binary, "--repo", path, "verify", node.directory, node.title)
        shutil.rmtree(path)
        return {"bytes": report["new_stored_bytes"], "import": node.raw() / seconds / 1e6}


# ---- the others; each gives bytes, and MB/s by CPU seconds


def codec(arguments, node, bases):
    """codec_bench takes one file: of a model in shards, nothing."""
    if len(node.weights) != 1:
        return None, None
    bases = [p for b in bases for p in b.weights]
    report = json.loads(run(arguments.codec, *node.weights, *bases))
    return report["mgit"], report["xor"]


def cpu(command):
    """CPU seconds of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def zstd(path, work, base=None):
    packed, back = work / "packed.zst", work / "back"
    more = [f"--patch-from={base}", "--long=31"] if base else []
    encode = cpu(["zstd", "-q", "-f", "-3", *more, path, "-o", packed])
    decode = cpu(["zstd", "-q", "-f", "-d", *more, packed, "-o", back])
    if not filecmp.cmp(path, back, shallow=False):
        sys.exit(f"bench.sh codec: zstd does not give {path} back")
    out = {"bytes": packed.stat().st_size, "encode": encode, "decode": decode}
    packed.unlink(), back.unlink()
    return out


def whole(node, of_file):
    """The sum over a model's files, in which seconds become MB/s; of_file may give None."""
    parts = [of_file(path) for path in node.weights]
    if None in parts:
        return None
    total = {key: sum(p[key] for p in parts) for key in parts[0]}
    rates = {key: node.raw() / 1e6 / max(total[key], 1e-9) for key in ("encode", "decode")}
    return {"bytes": total["bytes"], **rates}


def patched(node, bases, work):
    """From whichever parent gives the smallest patch."""
    tried = [whole(node, lambda p: zstd(p, work, largest_weights(b.directory))) for b in bases]
    return min(tried, key=lambda t: t["bytes"], default=None)


def peer(name, node, bases, missing):
    def of_file(path):
        base = [largest_weights(b.directory) for b in bases[:1]]
        command = [sys.executable, __file__, "--peer", name, path, *base]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS)
        except subprocess.TimeoutExpired:
            missing.append(f"{name}, {node.name}: took more than {PEER_SECONDS} s")
            return None
        if done.returncode:
            missing.append(f"{name}, {node.name}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
            return None
        return json.loads(done.stdout.splitlines()[-1])

    return whole(node, of_file)


# ---- peers, each in a process of its own: --peer NAME FILE [BASE]


def with_clock(work):
    start = time.process_time()
    return work(), time.process_time() - start


def packed(raw, encode, decode):
    blob, encoding = with_clock(encode)
    back, decoding = with_clock(lambda: decode(blob))
    if bytes(back) != raw:
        sys.exit("does not give the bytes back")
    return {"bytes": len(blob), "encode": encoding, "decode": decoding}


def zipnn_peer(path, base):
    raw = path.read_bytes()
    dtype = zipnn_dtype(raw)
    if not dtype:
        sys.exit("knows no such type")
    zipnn = zipnn_of(dtype)
    return packed(raw, lambda: zipnn.compress(bytearray(raw)), zipnn.decompress)  # a copy, for it reorders its input


def z4ai_peer(path, base):
    """A delta needs a base of the same length: the base's tensors, laid out as the child's are."""
    import z4ai

    raw, node = path.read_bytes(), Node(path.name, path.parent, [], None)
    dtype = Z4AI_DTYPES.get(node.dtype())
    reference = base and aligned(len(raw), path, node, Node(base.name, base.parent, [], None))
    if not reference:
        return packed(raw, lambda: z4ai.compress(raw, dtype=dtype, threads=1), z4ai.decompress)
    encode = lambda: z4ai.compress_delta(raw, reference, dtype=dtype, threads=1)
    return packed(raw, encode, lambda blob: z4ai.decompress_delta(blob, reference))


def aligned(length, path, child, base):
    """The base's tensors where the child's of the same name and type are; None where there are none."""
    theirs = {stripped(name): tensor for name, tensor in base.tensors().items()}
    out, found = bytearray(length), False
    for name, (dtype, file, begin, end) in child.tensors().items():
        other = theirs.get(stripped(name))
        if file == path and other and (other[0], other[3] - other[2]) == (dtype, end - begin):
            out[begin:end] = content(other)[1]
            found = True
    return bytes(out) if found else None


def stripped(name):
    return next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)


def lmzip_peer(path, base):
    """What it adds to an archive that has the base."""
    import lmz

    with tempfile.TemporaryDirectory(dir=path.parent.parent) as temp:
        archive, child, back = (os.path.join(temp, name) for name in ("a.lmz", "child.safetensors", "back"))
        os.symlink(path.resolve(), child)
        before = 0
        if base:
            lmz.compress(str(base), archive)
            before = os.path.getsize(archive)
            _, encode = with_clock(lambda: lmz.append(archive, child))
            _, decode = with_clock(lambda: lmz.extract(archive, os.path.basename(child), back))
        else:
            _, encode = with_clock(lambda: lmz.compress(child, archive))
            _, decode = with_clock(lambda: lmz.decompress(archive, back))
        if not filecmp.cmp(path, back, shallow=False):
            sys.exit("does not give the bytes back")
        return {"bytes": os.path.getsize(archive) - before, "encode": encode, "decode": decode}


PEERS = {"zipnn": zipnn_peer, "lmzip": lmzip_peer, "z4ai": z4ai_peer}


# ---- goals


def limit(node, bases, dtype):
    """The goal in bytes, and in words."""
    name = node.name.split("/")[-1]
    if not bases:
        share = ALONE_GOALS.get(dtype)
        return share and (share / 100 * node.raw(), f"{share} %")
    if node.relation == "cast":
        return CAST_GOAL / 100 * node.raw(), f"{CAST_GOAL} %"
    if name in LAYOUTS:
        headers = node.overhead()
        return LAYOUT_GOAL / 100 * node.raw() + headers, f"{LAYOUT_GOAL} % and {headers} bytes of headers"
    share = next((share for start, share in GOALS.items() if name.startswith(start)), None)
    if name.startswith("lora"):
        touched = node.touched(bases[0])
        return share / 100 * touched, f"{share} % of the {touched} bytes of touched matrices"
    return share and (share / 100 * node.raw(), f"{share} %")


def missed(row):
    """A line for each goal that a row misses."""
    out, own, codec = [], row["of"]["mgit"], row["of"]["codec"]
    if row["goal"] and own["bytes"] > row["goal"]["bytes"]:
        by = f", {100 * own['bytes'] / row['touched']:.2f} % of the touched" if row["touched"] else ""
        share = 100 * own["bytes"] / row["raw"]
        out.append(f"{row['model']}: adds {own['bytes']} bytes, {share:.3f} % of raw{by}; goal {row['goal']['text']}")
    if not codec:
        return out
    more = 100 * (codec["bytes"] / max(codec["whole"], 1) - 1)
    if more > BLOCKS_GOAL and codec["bytes"] > row["raw"] / 1000:
        out.append(f"{row['model']}: blocks cost {more:.2f} % more than whole tensors; goal {BLOCKS_GOAL} %")
    speeds = [("encode", ENCODE_GOAL), ("decode", DECODE_GOALS.get(row["dtype"]))]
    speeds.append(("decode_portable", PORTABLE_GOALS.get(row["dtype"])))
    for key, goal in speeds:
        if goal and codec.get(key, goal) < goal:
            out.append(f"{row['model']}: {key} {codec[key]:.0f} MB/s of {row['dtype']}, goal {goal}")
    return out


# ---- all of it


def measure(arguments, repositories, node, work, missing):
    bases = [repositories.known[p] for p in node.parents]
    say(f"codec: {node.name}")
    dtype = node.dtype()
    goal = limit(node, bases, dtype)
    ours, xor = codec(arguments, node, bases)
    of = {
        "mgit": repositories.measure(node),
        "codec": ours,
        "xor": xor,
        "zstd -3": whole(node, lambda p: zstd(p, work)),
        "patch-from": patched(node, bases, work),
        **{name: peer(name, node, bases, missing) if name in arguments.peers else None for name in PEERS},
    }
    return {
        "model": node.name,
        "parents": node.parents,
        "dtype": dtype,
        "raw": node.raw(),
        "touched": node.touched(bases[0]) if node.name.split("/")[-1].startswith("lora") else None,
        "goal": goal and {"bytes": goal[0], "text": goal[1]},
        "of": of,
    }


def table(title, rows, columns, cell):
    lines = [("model", "parents", "raw MB", *columns)]
    for row in rows:
        parents = ",".join(row["parents"])
        parents = parents if len(parents) < 24 else f"{row['parents'][0]} and {len(row['parents']) - 1} more"
        lines.append((row["model"], parents, f"{row['raw'] / 1e6:.1f}", *(cell(row, c) for c in columns)))
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * w for w in widths])
    print(f"\n{title}")
    for line in lines:
        print("  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip())


def figure(key, form):
    def cell(row, column):
        value = (row["of"][column] or {}).get(key)
        return "-" if value is None else form(value, row)

    return cell


def report(about, rows, missing):
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    table("% of raw", rows, COLUMNS, figure("bytes", lambda v, row: f"{100 * v / row['raw']:.3f}"))
    table("bytes", rows, COLUMNS, figure("bytes", lambda v, row: f"{v}"))
    rate = lambda v, row: f"{v:.0f}"
    table("encode, MB/s of one core", rows, COLUMNS[1:], figure("encode", rate))
    table("decode, MB/s of one core", rows, COLUMNS[1:], figure("decode", rate))
    table("decode without vector instructions", rows, COLUMNS[1:2], figure("decode_portable", rate))
    blocks = figure("whole", lambda v, row: f"{100 * (row['of']['codec']['bytes'] / max(v, 1) - 1):.2f}")
    table("blocks, % more than whole tensors", rows, COLUMNS[1:2], blocks)
    table("import, MB/s by the clock", rows, COLUMNS[:1], figure("import", rate))
    print("\nmgit: what an import adds. codec: mgit's, the tensors alone. xor: XOR, byte planes, zstd -3.")
    print("zipnn knows no base; lmzip and z4ai are given the first parent.")
    for row in rows:
        if row["touched"]:
            share = 100 * row["of"]["mgit"]["bytes"] / row["touched"]
            print(f"{row['model']}: {share:.2f} % of the {row['touched']} bytes of touched matrices")
    for line in missing:
        print(f"no figure: {line}")
    lines = [line for row in rows for line in missed(row)]
    for line in lines:
        print(f"MISSED {line}")
    if not lines:
        print("all goals met")


def main():
    if sys.argv[1:2] == ["--peer"]:
        name, path, *base = sys.argv[2:]
        print(json.dumps(PEERS[name](pathlib.Path(path), pathlib.Path(base[0]) if base else None)))
        return
    parser = argparse.ArgumentParser(prog="bench.sh codec")
    for hidden in ("mgit", "codec", "models"):
        parser.add_argument(f"--{hidden}", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--missing", default="", help=argparse.SUPPRESS)
    parser.add_argument("--dir", type=pathlib.Path, help="where to work (.cache)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--only", help="names of models, with commas between")
    parser.add_argument("--all", action="store_true", help="the project's own cases too")
    parser.add_argument("--json", action="store_true", help="JSON instead of the tables")
    parser.add_argument("more", nargs="*", metavar="DIR", help="one with a lineage.json, or MODEL_DIR:PARENT,…")
    arguments = parser.parse_args()
    arguments.load, arguments.rounds = os.getloadavg()[0], 1
    known, wanted = gather(arguments)

    missing = [f"{name}: could not be installed" for name in arguments.missing.split()]
    arguments.peers = set(arguments.peers.split(",")) - set(arguments.missing.split())
    with tempfile.TemporaryDirectory(prefix="bench.", dir=arguments.dir) as work:
        work = pathlib.Path(work)
        repositories = Repositories(arguments.mgit, work, known)
        rows = [measure(arguments, repositories, node, work, missing) for node in wanted]
        about = machine(arguments, work)
    if arguments.json:
        goals = [line for row in rows for line in missed(row)]
        print(json.dumps({"machine": about, "rows": rows, "no_figure": missing, "missed": goals}, indent=1))
    else:
        report(about, rows, missing)


if __name__ == "__main__":
    main()
