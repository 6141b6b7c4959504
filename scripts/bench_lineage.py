"""Parents found by content, on lineages whose truth is known: bench_lineage.py --mgit MGIT --models MODELS --dir DIR

A lineage of real weights (all-MiniLM-L6-v2 cut to two layers and some words, chgnet) is grown by what people do to
models: fine-tunes with small noise scaled by a rate, chains of versions, frozen layers, heads, merged adapters, merges,
federated rounds, pruning, casts, int8, renaming, resharding, resizing; and unrelated copies initialised anew. All models
are imported without a word about parents, once in order and once shuffled, and the edges compared with the truth.
Then what a search costs: the same import into repositories of 10 and of 1,000 versions, and a search among sketches
of 10,000.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from lineage_cases import DTYPES, average, bf16, fp32, read, write

DTYPES.setdefault("float16", "F16")
WORDS, LAYERS = 1500, 2


# ---- models: dictionaries of tensors; "uint16" holds bf16


def cut(model):
    """Two layers and some words of a real model."""
    keep = {}
    for name, t in model.items():
        if "encoder.layer." in name and int(name.split("encoder.layer.")[1].split(".")[0]) >= LAYERS:
            continue
        keep[name] = t[2000 : 2000 + WORDS].copy() if "word_embeddings" in name else t
    return keep


def is_weight(t):
    return t.dtype in (np.float32, np.uint16, np.float16)


def wide(t):
    return fp32(t) if t.dtype == np.uint16 else t.astype(np.float32)


def like(t, values):
    return bf16(np.ascontiguousarray(values.astype(np.float32))) if t.dtype == np.uint16 else values.astype(t.dtype)


def step(rng, t, rate):
    """About what some steps of Adam do: a similar size everywhere in a tensor, larger in some rows."""
    w = wide(t)
    rows = rng.lognormal(0, 0.4, w.shape[:1] + (1,) * (w.ndim - 1))
    return like(t, w + (rate * rng.normal(0, 1, w.shape) * rows).astype(np.float32))


def tune(rng, model, rate, touch=lambda name: True):
    return {n: step(rng, t, rate) if is_weight(t) and touch(n) else t for n, t in model.items()}


def head(rng, model, classes):
    width = next(t.shape[-1] for n, t in model.items() if t.ndim == 2)
    some = next(iter(model.values()))
    w = rng.normal(0, 0.02, (classes, width)).astype(np.float32)
    out = {n: t for n, t in model.items() if not n.startswith("classifier.")}
    out["classifier.weight"] = like(some, w) if some.dtype == np.uint16 else w
    out["classifier.bias"] = np.zeros(classes, out["classifier.weight"].dtype)
    return out


def prefixed(model):
    return {n if n.startswith(("bert.", "classifier.")) else f"bert.{n}": t for n, t in model.items()}


def pruned(model, share):
    def zeroed(t):
        w = np.abs(wide(t))
        return np.where(w > np.quantile(w, share), t, np.zeros((), t.dtype))

    return {n: zeroed(t) if is_weight(t) and t.ndim == 2 else t for n, t in model.items()}


def adapted(rng, model, rank=4):
    def merged(n, t):
        if t.ndim != 2 or "query" not in n and "value" not in n:
            return t
        b, a = rng.normal(0, 3e-3, (t.shape[0], rank)), rng.normal(0, t.shape[1] ** -0.5, (rank, t.shape[1]))
        return like(t, wide(t) + (b @ a).astype(np.float32))

    return {n: merged(n, t) for n, t in model.items()}


def int8(model):
    out = {}
    for n, t in model.items():
        if is_weight(t) and t.ndim == 2:
            w = wide(t)
            scale = np.maximum(np.abs(w).max(1), 1e-9) / 127
            out[n], out[f"{n}.scale"] = np.rint(w / scale[:, None]).astype(np.int8), scale.astype(np.float32)
        else:
            out[n] = t
    return out


def resized(rng, model, more):
    name = next(n for n in model if "word_embeddings" in n)
    old = model[name]
    new = wide(old).mean(0) + rng.normal(0, 0.02, (more, old.shape[1]))
    return {**model, name: np.concatenate([old, like(old, new)])}


def mixed(models, weights):
    def sum_of(n, t):
        if not is_weight(t):
            return t
        return like(t, sum(np.float32(w) * wide(m[n]) for w, m in zip(weights, models)))

    return {n: sum_of(n, t) for n, t in models[0].items()}


def fresh(rng, model):
    def init(n, t):
        if not is_weight(t):
            return t
        if t.ndim < 2:
            return np.full(t.shape, 1.0 if n.endswith("weight") else 0.0, t.dtype)
        return rng.normal(0, 0.02, t.shape).astype(t.dtype)

    return {n: init(n, t) for n, t in model.items()}


# ---- the lineage


class Lineage:
    """Model directories below `out`, and the truth: name → parents. A name is `model@version`."""

    def __init__(self, out, seed):
        self.out, self.rng = out, np.random.default_rng(seed)
        self.truth, self.kind, self.tensors, self.same, self.order = {}, {}, {}, {}, []

    def add(self, name, parents, kind, tensors, shards=1, config=None, same=None):
        """`same`: a version with the same tensors; either is right as a parent."""
        directory = self.out / name
        directory.mkdir(parents=True)
        names = sorted(tensors)
        for i in range(shards):
            part = {n: tensors[n] for n in names[i::shards]}
            file = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
            write(directory / file, part)
        (directory / "config.json").write_text(json.dumps(config or {"hidden_size": 384}) + "\n")
        self.truth[name], self.kind[name], self.tensors[name] = parents, kind, tensors
        self.same[name] = self.same.get(same, same) or name
        self.order.append(name)
        return name

    def child(self, name, parent, kind, change, **how):
        return self.add(f"{name}@v1", [parent], kind, change(self.tensors[parent]), **how)

    def grow(self, root, tag):
        rng, child, t = self.rng, self.child, self.tensors
        tunes = []
        for i in range(6):
            rate = [3e-4, 1e-4, 3e-5, 1e-3, 2e-4, 5e-5][i]
            change = lambda m, rate=rate: head(rng, prefixed(tune(rng, m, rate)), 2 + i % 3)
            tunes.append(child(f"{tag}-task{i}", root, "finetune", change))
        for i, first in enumerate(tunes[:3]):  # versions of one model
            last = first
            for v in range(2, 5):
                name = f"{tag}-task{i}@v{v}"
                last = self.add(name, [last], "version", tune(rng, t[last], [1e-4, 3e-5, 1e-5][i]))
        one, two, three = tunes[:3]
        child(f"{tag}-headonly", root, "finetune", lambda m: head(rng, m, 5))
        child(f"{tag}-lastlayer", one, "finetune", lambda m: tune(rng, m, 2e-4, lambda n: f"layer.{LAYERS - 1}" in n or "class" in n))
        child(f"{tag}-second", two, "finetune", lambda m: head(rng, tune(rng, m, 8e-5), 7))
        child(f"{tag}-lora", root, "adapter", lambda m: adapted(rng, m))
        child(f"{tag}-lora-ft", three, "adapter", lambda m: adapted(rng, m, 8))
        plain = [child(f"{tag}-plain{i}", root, "finetune", lambda m: tune(rng, m, 2e-4)) for i in range(3)]
        self.add(f"{tag}-avg2@v1", plain[:2], "merge", mixed([t[p] for p in plain[:2]], [0.5, 0.5]))
        self.add(f"{tag}-avg3@v1", plain, "merge", mixed([t[p] for p in plain], [1 / 3] * 3))
        self.add(f"{tag}-interp@v1", [plain[0], plain[2]], "merge", mixed([t[plain[0]], t[plain[2]]], [0.8, 0.2]))
        self.add(f"{tag}-wise@v1", [root, plain[1]], "merge", mixed([t[root], t[plain[1]]], [0.4, 0.6]))
        self.add(f"{tag}-arith@v1", [root, *plain[:2]], "merge", mixed([t[root], t[plain[0]], t[plain[1]]], [0.2, 0.4, 0.4]))
        for share in (30, 50, 70, 90):
            child(f"{tag}-pruned{share}", one, "prune", lambda m: pruned(m, share / 100))
        child(f"{tag}-regrown", f"{tag}-pruned50@v1", "finetune", lambda m: {n: np.where(m[n] == 0, m[n], x) if is_weight(x) else x for n, x in tune(rng, m, 1e-4).items()})
        child(f"{tag}-int8", two, "quantize", int8)
        child(f"{tag}-renamed", root, "rename", lambda m: {f"model.{n}": x for n, x in m.items()}, same=root)
        child(f"{tag}-sharded", one, "reshard", lambda m: m, shards=3, same=one)
        child(f"{tag}-config", two, "derived", lambda m: m, config={"id2label": ["a", "b"]}, same=two)
        grown = child(f"{tag}-resized", root, "resize", lambda m: resized(rng, m, 8))
        child(f"{tag}-resized-ft", grown, "finetune", lambda m: tune(rng, m, 1e-4))
        self.add(f"{tag}-copy@v1", [], "duplicate", t[three], same=three)
        half = lambda m: {n: bf16(x) if x.dtype == np.float32 else x for n, x in m.items()}
        low = child(f"{tag}-bf16", root, "cast", half)
        child(f"{tag}-f16", one, "cast", lambda m: {n: x.astype(np.float16) if x.dtype == np.float32 else x for n, x in m.items()})
        lows = [child(f"{tag}-low{i}", low, "finetune", lambda m: tune(rng, m, 1e-3)) for i in range(2)]
        self.add(f"{tag}-low0@v2", [lows[0]], "version", tune(rng, t[lows[0]], 5e-4))
        self.add(f"{tag}-lowavg@v1", lows, "merge", mixed([t[p] for p in lows], [0.5, 0.5]))
        for r in range(2):  # federated rounds
            start = root if r == 0 else f"{tag}-global@v1"
            clients = [self.add(f"{tag}-client{k}@v{r + 1}", [start], "client", tune(rng, t[start], 1.5e-4)) for k in range(5)]
            share = np.array([1200, 640, 2100, 333, 960], float)
            self.add(f"{tag}-global@v{r + 1}", clients, "merge", mixed([t[c] for c in clients], share / share.sum()))


def made(models, out, seed):
    lineage = Lineage(out, seed)
    base = cut(read(models / "all-minilm-l6-v2" / "model.safetensors"))
    root = lineage.add("minilm@v1", [], "root", base)
    for i in range(3):
        lineage.add(f"fresh{i}@v1", [], "root", fresh(lineage.rng, base))
    lineage.grow(root, "a")
    lineage.grow("fresh0@v1", "b")
    for name, parents in (("chgnet-0.2.0", []), ("chgnet-0.3.0", []), ("chgnet-r2scan", ["chgnet-0.3.0@v1"])):
        lineage.add(f"{name}@v1", parents, "root" if not parents else "finetune", read(models / name / "model.safetensors"))
    return lineage


# ---- what mgit finds


class Repo:
    def __init__(self, mgit, directory):
        self.mgit, self.env = mgit, {**os.environ, "MGIT_REPO": str(directory)}
        shutil.rmtree(directory, ignore_errors=True)
        self.run("init")

    def run(self, *args):
        done = subprocess.run([self.mgit, *args, "--json"], env=self.env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"mgit {args}: {done.stderr}")
        return json.loads(done.stdout) if done.stdout.startswith("{") else None

    def edges(self):
        """Child → parents, the predecessor among them, as they are when all is imported."""
        graph = self.run("log", "--graph")
        names = {n["id"]: f"{n['model']}@{n['version']}" for n in graph["nodes"]}
        found = {name: [] for name in names.values()}
        for e in graph["links"]:
            found[names[e["target"]]].append(names[e["source"]])
        return found


def imported(mgit, lineage, order, directory):
    repo = Repo(mgit, directory)
    seconds = []
    for name in order:
        start = time.monotonic()
        repo.run("import", str(lineage.out / name), "--as", name)
        seconds.append(time.monotonic() - start)
    return repo.edges(), seconds


def judge(lineage, found, undirected):
    """Edges right and all, by the number of parents that there should be; and edges where there should be none."""
    same = lambda n: lineage.same[n]
    pair = (lambda a, b: frozenset((same(a), same(b)))) if undirected else (lambda a, b: (same(a), same(b)))
    got = {pair(p, c) for c, parents in found.items() for p in parents}
    single, several, wrong, false = [0, 0], [0, 0], [], []
    for child, parents in lineage.truth.items():
        for p in parents:
            score = single if len(parents) == 1 else several
            score[1] += 1
            if pair(p, child) in got or same(p) == same(child):
                score[0] += 1
            else:
                wrong.append(f"{p} -> {child} ({lineage.kind[child]}): found {found[child]}")
    family = {n: n for n in lineage.truth}
    for child, parents in lineage.truth.items():
        for p in parents:
            old, new = family[same(child)], family[same(p)]
            family = {n: new if f == old else f for n, f in family.items()}
    for child, parents in found.items():
        false.extend(f"{p} -> {child}" for p in parents if family[same(p)] != family[same(child)])
    return single, several, wrong, false


def accuracy(a, lineage):
    rows = []
    shuffled = list(lineage.order)
    np.random.default_rng(a.seed + 1).shuffle(shuffled)
    # A version of a model is imported after those before it: their names say so.
    for how, order in (("in order", lineage.order), ("shuffled", shuffled)):
        if how not in a.orders.split(","):
            continue
        found, seconds = imported(a.mgit, lineage, order, a.dir / "lineage-repo")
        single, several, wrong, false = judge(lineage, found, how == "shuffled")
        rows.append({
            "how": how, "models": len(order), "single": single, "several": several, "false_edges": false, "wrong": wrong,
            "seconds": round(statistics.median(seconds), 3),
        })
    return rows


def costs(a, models):
    """The same import into a repository of few and of many versions, interleaved."""
    rng = np.random.default_rng(5)
    base = cut(read(models / "all-minilm-l6-v2" / "model.safetensors"))
    small = {n: t[:64, :64].copy() if t.ndim == 2 else t[:64].copy() for n, t in base.items() if is_weight(t)}
    with tempfile.TemporaryDirectory(dir=a.dir) as temp:
        temp = pathlib.Path(temp)
        for i in range(1000):
            (temp / f"many/m{i}").mkdir(parents=True)
            write(temp / f"many/m{i}/model.safetensors", tune(rng, small, 1e-4))
        few, many = Repo(a.mgit, temp / "few"), Repo(a.mgit, temp / "repo")
        for i in range(10):
            few.run("import", str(temp / f"many/m{i}"))
        many.run("import", "--each", str(temp / "many"))
        times = {"few": [], "many": []}
        for i in range(a.rounds + 1):
            new = temp / f"new{i}"
            new.mkdir()
            write(new / "model.safetensors", tune(rng, base, 1e-4))
            for name, repo in (("few", few), ("many", many)):
                start = time.monotonic()
                repo.run("import", str(new), "--as", f"new{i}")
                times[name].append(time.monotonic() - start)
        return {k: statistics.median(v[1:]) for k, v in times.items()}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--mgit", required=True)
    p.add_argument("--models", type=pathlib.Path, required=True)
    p.add_argument("--dir", type=pathlib.Path, required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--orders", default="in order,shuffled")
    p.add_argument("--rounds", type=int, default=9)
    p.add_argument("--only", choices=["accuracy", "costs"])
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    a.dir.mkdir(parents=True, exist_ok=True)
    result = {}
    if a.only != "costs":
        with tempfile.TemporaryDirectory(dir=a.dir) as temp:
            result["accuracy"] = accuracy(a, made(a.models, pathlib.Path(temp), a.seed))
    if a.only != "accuracy":
        result["costs"] = costs(a, a.models)
    if a.json:
        print(json.dumps(result, indent=1))
        return
    for row in result.get("accuracy", []):
        percent = lambda s: f"{s[0]} of {s[1]} ({100 * s[0] / max(s[1], 1):.1f} %)"
        print(f"{row['models']} models, imported {row['how']}: single-parent edges {percent(row['single'])}, "
              f"edges of merges {percent(row['several'])}, false edges between families {len(row['false_edges'])}; "
              f"{row['seconds']} s a model")
        for line in row["wrong"] + row["false_edges"]:
            print(f"    {line}")
    if "costs" in result:
        c = result["costs"]
        print(f"one import (17 MB) into 10 versions {c['few']:.3f} s, into 1,000 {c['many']:.3f} s: {c['many'] / c['few']:.2f} x")


if __name__ == "__main__":
    main()
