"""Lineages made from a real model, for `bench.sh codec`: lineage_cases.py MODELS OUT [NAME]…

Fine-tunes by real gradients, merges, casts, pruning, quantization and changes of layout, each an ordinary model
directory below OUT, and OUT/lineage.json, which names the parents. Everything is seeded. What is there is kept.
With names, only those are made.
"""

import json
import pathlib
import re
import shutil
import sys
import tempfile

import numpy as np

BASE, TUNED = "all-minilm-l6-v2", "sre-embedding"
CLIENTS = {1: 1200, 2: 640, 3: 2100, 4: 333, 5: 960}  # seed → how many samples it counts for
DTYPES = {"float32": "F32", "uint16": "BF16", "int64": "I64", "int8": "I8"}  # numpy has no bf16: its bits
WEIGHTS = "model.safetensors"
EMBEDDING = "embeddings.word_embeddings.weight"
LORA = re.compile(r"attention\.self\.(query|value)\.weight$")
LINEAR = re.compile(r"encoder\..*(query|key|value|dense)\.weight$")

# name, directory, parents, relation. A directory may be listed more than once, with other parents.
# What is "alone" is measured without parents, though it has some; a "part" is not measured, for it is like others.
NODES = [
    ("base", "base", [], "root"),
    ("fp32-alone", "base", [], "alone"),
    ("bf16-alone", "base-bf16", [], "alone"),
    ("base-bf16", "base-bf16", ["base"], "cast"),
    ("sre", "sre", ["base"], "finetune"),
    ("ft1", "ft1", ["base"], "finetune"),
    ("ft2", "ft2", ["base"], "finetune"),
    *((f"client{k}", f"client{k}", ["base"], "part") for k in CLIENTS),
    ("avg", "avg", ["ft1", "ft2"], "merge"),
    ("fedavg", "fedavg", [f"client{k}" for k in CLIENTS], "merge"),
    ("task", "task", ["base", "ft1", "ft2"], "merge"),
    ("interp", "interp", ["ft1", "ft2"], "merge"),
    ("lora", "lora", ["base"], "lora"),
    ("lora-bf16", "lora-bf16", ["base-bf16"], "lora"),
    ("pruned90", "pruned90", ["base"], "prune"),
    ("pruned90-ft1", "pruned90", ["ft1"], "prune"),
    ("renamed", "renamed", ["base"], "layout"),
    ("resharded", "resharded", ["base"], "layout"),
    ("duplicate", "duplicate", ["base"], "layout"),
    ("resized", "resized", ["base"], "layout"),
    ("resized-ft1", "resized-ft1", ["base"], "finetune"),
    ("transposed", "transposed", ["base"], "layout"),
    ("int8", "int8", ["base"], "quantize"),
    ("int8-sibling", "int8-sibling", ["int8"], "finetune"),
]


# ---- safetensors as numpy


def read(path):
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    numpy = {dtype: name for name, dtype in DTYPES.items()}
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, t in header.items():
        begin, end = t["data_offsets"]
        tensors[name] = np.frombuffer(raw[start + begin : start + end], numpy[t["dtype"]]).reshape(t["shape"])
    return tensors


def write(path, tensors):
    """In the order in which the safetensors library lays tensors out."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    for name in order:
        t = tensors[name]
        header[name] = {"dtype": DTYPES[t.dtype.name], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            f.write(np.ascontiguousarray(tensors[name]).tobytes())


def write_sharded(directory, tensors):
    """Two shards of about the same size, and the index that transformers writes."""
    names, total = sorted(tensors), sum(t.nbytes for t in tensors.values())
    shards, first = ({}, {}), 0
    for name in names:
        shards[first >= total / 2][name] = tensors[name]
        first += tensors[name].nbytes
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, shard in enumerate(shards, 1):
        file = f"model-0000{i}-of-00002.safetensors"
        write(directory / file, shard)
        index["weight_map"].update({name: file for name in shard})
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def floats(tensors, change):
    """The same tensors, the float ones changed: change(name, tensor)."""
    return {n: change(n, t) if t.dtype == np.float32 else t for n, t in tensors.items()}


def bf16(t):
    """Rounds to nearest even."""
    u = t.view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def fp32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---- training


def pairs(vocabulary, rng, topics=400, words=24):
    """Endless pairs of texts on one topic, as token ids: words by Zipf's law, for most are rare in real text too."""
    rank = 1.0 / np.arange(8, len(vocabulary) + 8)
    bag = rng.choice(vocabulary, (topics, words), p=rank / rank.sum())
    while True:
        topic = bag[rng.integers(topics)]
        yield rng.choice(topic, 14), rng.choice(topic, 14)


def train(config, tensors, seed, steps, rate=4e-5, decay=0.01, batch=16, masks=None):
    """AdamW on a contrastive loss, with warm-up and linear decay of the rate, as sentence encoders are tuned.
    masks: name → which weights may be other than zero."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    torch.set_num_threads(1)  # sums in one order
    torch.nn.functional.linear = linear
    rng = np.random.default_rng(seed)
    model = BertModel(BertConfig.from_json_file(config))
    model.load_state_dict({n: torch.from_numpy(t.copy()) for n, t in tensors.items()}, strict=False)
    model.train()
    vocabulary = rng.permutation(np.arange(1996, tensors[EMBEDDING].shape[0] - 8))  # where the words are
    parameters = dict(model.named_parameters())
    masks = {n: torch.from_numpy(m) for n, m in (masks or {}).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    source = pairs(vocabulary, rng)
    for step in range(steps):
        share = min((step + 1) / (steps / 10), 1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate * share
        both = zip(*(next(source) for _ in range(batch)))
        left, right = (embed(model, torch.from_numpy(np.array(ids))) for ids in both)
        loss = torch.nn.functional.cross_entropy(20 * left @ right.T, torch.arange(batch))
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for name, mask in masks.items():
            if parameters[name].grad is not None:  # the pooler has no part in the loss
                parameters[name].grad.mul_(mask)
        optimizer.step()
        for name, mask in masks.items():
            parameters[name].data.mul_(mask)
    print(f"  loss {loss.item():.3f}", flush=True)
    state = model.state_dict()
    return floats(tensors, lambda n, t: state[n].numpy() if n in state else t)


def linear(x, w, bias=None):
    """Debian's torch multiplies matrices by the plainest of loops, but convolves twenty times as fast."""
    import torch

    y = torch.nn.functional.conv1d(x.transpose(1, 2) if x.dim() == 3 else x[..., None], w[..., None], bias)
    return y.transpose(1, 2) if x.dim() == 3 else y[..., 0]


def embed(model, ids):
    import torch

    ends = [torch.full((len(ids), 1), token) for token in (101, 102)]  # [CLS] and [SEP]
    states = model(input_ids=torch.cat([ends[0], ids, ends[1]], 1)).last_hidden_state
    return torch.nn.functional.normalize(states.mean(1), dim=1)


# ---- what becomes of a model


def weighted(models, weights):
    """A sum in fp32, one model after the other."""
    first = models[0]
    return floats(first, lambda n, t: sum((w * m[n] for w, m in zip(weights[1:], models[1:])), weights[0] * t))


def average(models):
    return floats(models[0], lambda n, t: sum((m[n] for m in models[1:]), t) / len(models))


def task(base, tuned, share=0.4):
    return floats(base, lambda n, t: sum((share * (m[n] - t) for m in tuned), t))


def lora(base, rank=8, alpha=16):
    """An adapter merged into the query and value matrices: W + (B @ A) * alpha / rank, all in fp32."""
    rng = np.random.default_rng(8)

    def merged(name, w):
        if not LORA.search(name):
            return w
        a = rng.normal(0, w.shape[1] ** -0.5, (rank, w.shape[1])).astype(np.float32)
        rows = rng.lognormal(0, 0.5, (w.shape[0], 1))
        b = (rng.normal(0, 2e-3, (w.shape[0], rank)) * rows).astype(np.float32)
        return w + (b @ a) * np.float32(alpha / rank)

    return {n: merged(n, base[n]) for n in sorted(base)}


def lora_bf16(base):
    return floats(lora({n: widened(t) for n, t in base.items()}), lambda _, t: bf16(t))


def widened(t):
    return fp32(t) if t.dtype == np.uint16 else t


def pruned(config, tuned, share=0.9):
    """The smallest weights of each matrix become zero, by multiplication, so of either sign; then on with the rest."""

    def keep(t):
        size = np.abs(t)
        return (size > np.partition(size.ravel(), int(share * t.size))[int(share * t.size)]).astype(np.float32)

    masks = {n: keep(t) for n, t in tuned.items() if t.dtype == np.float32 and t.ndim == 2}
    cut = {n: t * masks[n] if n in masks else t for n, t in tuned.items()}
    return train(config, cut, seed=90, steps=12, masks=masks)


def resized(model, more=8):
    """New tokens start near the mean of the others."""
    rng = np.random.default_rng(3)
    old = model[EMBEDDING]
    new = old.mean(0) + rng.normal(0, 0.02, (more, old.shape[1]))
    return {**model, EMBEDDING: np.concatenate([old, new.astype(np.float32)])}


def int8(model):
    """Matrices by row: a scale, and integers from -127 to 127."""
    out = dict(model)
    for name, t in model.items():
        if t.dtype == np.float32 and t.ndim == 2:
            scale = (np.abs(t).max(1) / 127).astype(np.float32)
            scale[scale == 0] = 1
            out[name] = np.rint(t / scale[:, None]).astype(np.int8)
            out[f"{name}.scale"] = scale
    return out


class Maker:
    """Makes the model of a directory, and first those that it is made of."""

    def __init__(self, models, out):
        self.models, self.out = models, out
        self.config = models / BASE / "config.json"

    def load(self, name):
        self.directory(name)
        return read(self.out / name / WEIGHTS)

    def directory(self, name):
        if (self.out / name).is_dir():
            return
        with tempfile.TemporaryDirectory(dir=self.out, prefix=".making-") as temp:
            made = pathlib.Path(temp) / name
            made.mkdir()
            self.fill(name, made)
            made.rename(self.out / name)

    def fill(self, name, made):
        source = {"base": BASE, "duplicate": BASE, "sre": TUNED}.get(name)
        if source:
            shutil.copyfile(self.models / source / WEIGHTS, made / WEIGHTS)
            shutil.copyfile(self.models / source / "config.json", made / "config.json")
            return
        print(f"making {name}", flush=True)
        tensors = self.tensors(name)
        if name == "resharded":
            write_sharded(made, tensors)
        else:
            write(made / WEIGHTS, tensors)
        config = json.loads(self.config.read_text())
        config["vocab_size"] = len(tensors.get(EMBEDDING, tensors.get(f"bert.{EMBEDDING}")))
        (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def tensors(self, name):
        load = self.load
        if name.startswith("client"):
            return train(self.config, load("base"), seed=int(name[-1]), steps=20)
        made_by = {
            "ft1": lambda: train(self.config, load("base"), seed=11, steps=40),
            "ft2": lambda: train(self.config, load("base"), seed=12, steps=40, rate=2e-5, decay=0),
            "avg": lambda: average([load("ft1"), load("ft2")]),
            "fedavg": lambda: weighted(
                [load(f"client{k}") for k in CLIENTS], [n / sum(CLIENTS.values()) for n in CLIENTS.values()]
            ),
            "task": lambda: task(load("base"), [load("ft1"), load("ft2")]),
            "interp": lambda: weighted([load("ft1"), load("ft2")], [0.7, 0.3]),
            "base-bf16": lambda: floats(load("base"), lambda _, t: bf16(t)),
            "lora": lambda: lora(load("base")),
            "lora-bf16": lambda: lora_bf16(load("base-bf16")),
            "pruned90": lambda: pruned(self.config, load("ft1")),
            "renamed": lambda: {f"bert.{n}": t for n, t in load("base").items()},
            "resharded": lambda: load("base"),
            "resized": lambda: resized(load("base")),
            "resized-ft1": lambda: resized(load("ft1")),
            "transposed": lambda: floats(load("base"), lambda n, t: t.T if LINEAR.search(n) else t),
            "int8": lambda: int8(load("base")),
            "int8-sibling": lambda: int8(load("ft1")),
        }
        return made_by[name]()


def main(models, out, *names):
    models, out = pathlib.Path(models), pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    maker = Maker(models, out)
    for path in names or dict.fromkeys(path for _, path, _, _ in NODES):
        maker.directory(path)
    keys = ("name", "path", "parents", "relation")
    (out / "lineage.json").write_text(json.dumps([dict(zip(keys, node)) for node in NODES], indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
