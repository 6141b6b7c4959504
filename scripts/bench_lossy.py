"""The figures of bench.sh lossy: a real fine-tune and a graph of base, nine tasks and ten versions each, stored lossy by
mgit and as MGit does it (arXiv 2307.07507: the delta quantised, LZMA over the integers), and how fast they are read."""

import json
import lzma
import pathlib
import sys

from bench import TUNED, contend, forget, largest_weights, run_rows, say, size, timed
from bench_save import Bench as Saving

EPSILON = 1e-4
TASKS, VERSIONS = 9, 10
FLOATS = {"F32": "<f4", "F16": "<f2"}


class Bench(Saving):
    """A repository with the base in it, and its mount when it is wanted."""

    def __init__(self, arguments, work, stack):
        super().__init__(arguments, work, stack)
        self.mgit = self.repository(mount=False)
        stack.callback(self.mgit.umount)

    def stored(self, model):
        """Bytes that a model's weights take."""
        return max(self.mgit.json("show", model)["files"], key=lambda f: f["bytes"])["stored_bytes"]

    def store(self, directory, name, parent, *options):
        return self.mgit.json("import", directory, "--as", name, "--parent", parent, "--relation", "finetune", *options)


def tensors(path):
    """Name → array of the floats of a safetensors file."""
    import numpy

    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = {}
    for name, t in json.loads(raw[8:start]).items():
        if name != "__metadata__" and t["dtype"] in FLOATS:
            begin, end = t["data_offsets"]
            found[name] = numpy.frombuffer(raw[start + begin : start + end], FLOATS[t["dtype"]]).astype("f8")
    return found


def as_mgit_does(child, parent):
    """Bytes that the paper's scheme takes for a model, the order-0 entropy of its integers in bytes, and what it keeps."""
    import numpy

    step = 2 * numpy.log1p(EPSILON)
    packed, entropy, kept = 0, 0.0, {}
    for name, weights in child.items():
        base = parent.get(name)
        if base is None or base.shape != weights.shape:
            base = numpy.zeros_like(weights)
        integers = numpy.rint((weights - base) / step).astype("<i4")
        packed += len(lzma.compress(integers.tobytes()))
        counts = numpy.unique(integers, return_counts=True)[1]
        entropy -= (counts * numpy.log2(counts / counts.sum())).sum() / 8
        kept[name] = base + integers * step
    return packed, entropy, kept


def real(bench):
    """a real fine-tune at 1e-4"""
    source, base = bench.tuned, bench.base
    raw = largest_weights(source).stat().st_size
    bench.store(source, "lossy", "base", "--max-error", str(EPSILON), "--ungated")
    bench.store(source, "exact", "base")
    say("lossy: as MGit does it")
    packed, entropy, _ = as_mgit_does(tensors(largest_weights(source)), tensors(largest_weights(base)))
    own = raw / bench.stored("lossy")
    beside = {
        "order-0 entropy of the integers": raw / entropy,
        "MGit: LZMA of the integers": raw / packed,
        "mgit, exact": raw / bench.stored("exact"),
    }
    bench.table.add(f"{TUNED} within {EPSILON}", own, "x smaller", beside, (">= 14x", own >= 14))

    def read(name):
        def once():
            bench.mgit.mount("--cache-size", "0")
            seconds = timed("cat", bench.mgit.latest(name) / "model.safetensors")
            bench.mgit.umount()
            return seconds

        return once

    median = contend(bench.rounds, {"lossy": read("lossy"), "exact": read("exact")}, lambda: forget(bench.mgit.repo))
    rates = {name: raw / seconds / 1e6 for name, seconds in median.items()}
    met = rates["lossy"] >= rates["exact"]
    bench.table.add("read from a cold mount", rates["lossy"], "MB/s", {"exact": rates["exact"]}, (">= exact", met))


def gated(bench):
    """the largest bound with no flip"""
    source = bench.tuned
    raw = largest_weights(source).stat().st_size
    script = pathlib.Path(__file__).with_name("bench_lossy_gate.py").resolve()
    bench.mgit("test", "add", "neighbours", "--model", "gated", "--metric", "right", "--higher", "--", sys.executable, script, source)
    made = bench.store(source, "gated", "base", "--lossy-gate", "--max-negative-flips", "0")
    lossy = made["lossy"]
    bound, gate = lossy["bound"]["max_rel_error"], lossy["gate"][0]
    title = f"{TUNED}, gate: {gate['negative_flips']} of {gate['examples']} flip, within {bound:.3g} of the update's RMS, {lossy['max_error']:.2g}"
    bench.store(source, "not-gated", "base")
    bench.table.add(title, raw / bench.stored("gated"), "x smaller", {"mgit, exact": raw / bench.stored("not-gated")})


def graph(bench):
    """a base, nine tasks, ten versions each"""
    script = pathlib.Path(__file__).with_name("bench_lossy_graph.py").resolve()
    at = bench.work / "graph"
    say("lossy: training")
    timed(sys.executable, script, bench.base, at, str(TASKS), str(VERSIONS))
    mgit = bench.repository(mount=False, base=at / "base")
    raw = size(at / "base")
    for task in range(TASKS):
        for version in range(VERSIONS):
            source = at / f"task{task}-{version}"
            raw += size(source)
            parent = [] if version else ["--parent", "base", "--relation", "finetune"]
            parent += ["--parent", f"task{task}"] if version else []
            mgit("import", source, "--as", f"task{task}", *parent, "--max-error", str(EPSILON), "--ungated")
    stored = mgit.json("stats")["stored_bytes"]
    say("lossy: the graph as MGit does it")
    base = tensors(at / "base/model.safetensors")
    packed = size(at / "base")
    for task in range(TASKS):
        kept = base
        for version in range(VERSIONS):
            source = at / f"task{task}-{version}"
            took, _, kept = as_mgit_does(tensors(source / "model.safetensors"), kept)
            packed += took
    own = raw / stored
    title = f"base, {TASKS} tasks x {VERSIONS} versions ({raw / 1e6:.0f} MB) within {EPSILON}"
    bench.table.add(title, own, "x smaller", {"MGit: LZMA of the integers": raw / packed}, (">= 20x", own >= 20))


def main():
    about = "Lossy storage beside the scheme of the MGit paper, computed here in Python."
    run_rows("lossy", about, {"real": real, "gate": gated, "graph": graph}, Bench)


if __name__ == "__main__":
    main()
