"""Loads a model from two directories with transformers and compares every tensor, bit for bit: same_tensors.py A B"""

import os
import pathlib
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
warnings.simplefilter("ignore")

from safetensors import safe_open  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def different(a, b):
    return sorted(name for name in a.keys() | b.keys() if not (name in a and name in b and same_bits(a[name], b[name])))


def on_disk(directory):
    """Every tensor of the safetensors files, by file and name."""
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            tensors |= {f"{path.name}:{name}": f.get_tensor(name) for name in f.keys()}
    return tensors


def main(a, b):
    model, original = AutoModel.from_pretrained(a), AutoModel.from_pretrained(b)
    parameters = model.state_dict()
    wrong = different(parameters, original.state_dict())
    stored = on_disk(a)
    wrong += different(stored, on_disk(b))
    text = "To version a model is to know where it came from."
    if AutoTokenizer.from_pretrained(a)(text) != AutoTokenizer.from_pretrained(b)(text):
        wrong.append("the tokenizer")
    if wrong or not parameters or not stored:
        sys.exit(f"same_tensors.py: {len(wrong)} differ: {', '.join(wrong[:5])}")
    numbers = sum(t.numel() for t in model.parameters())
    print(f"{type(model).__name__} of {numbers / 1e6:.1f} M parameters loaded; tensors equal bit for bit: "
          f"{len(parameters)} of {len(parameters)} in the model, {len(stored)} of {len(stored)} in the files")


if __name__ == "__main__":
    main(*sys.argv[1:])
