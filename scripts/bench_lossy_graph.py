"""bench_lossy_graph.py BASE OUT TASKS VERSIONS: the shape of MGit's G2 from a real small model. The first layer and the
embeddings of the first words of BASE are fine-tuned on tasks that a random teacher labels, the first version for long, each
next one for a while more."""

import json
import pathlib
import shutil
import sys

WORDS, LENGTH, BATCH = 1000, 12, 8
FIRST, NEXT, RATE = 60, 6, 3e-5


def base_model(source):
    import torch
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(source)
    config.num_hidden_layers, config.vocab_size = 1, WORDS
    model = BertModel(config, add_pooling_layer=False)
    own = model.state_dict()
    for name, weights in load_file(source / "model.safetensors").items():
        if name in own and own[name].dtype.is_floating_point:
            own[name].copy_(weights[: own[name].shape[0]])
    return config, model


def train(model, head, teacher, optimizer, steps):
    import torch

    for _ in range(steps):
        words = torch.randint(0, WORDS, (BATCH, LENGTH))
        labels = (teacher[words].sum(1) > 0).long()
        loss = torch.nn.functional.cross_entropy(head(model(words).last_hidden_state.mean(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(model, config, directory):
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"architectures": ["BertModel"], **config.to_dict()}))


def main():
    import torch

    source, out, tasks, versions = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    shutil.rmtree(out, ignore_errors=True)
    torch.manual_seed(1)
    config, model = base_model(source)
    save(model, config, out / "base")
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for task in range(tasks):
        model.load_state_dict(start)
        head, teacher = torch.nn.Linear(config.hidden_size, 2), torch.randn(WORDS)
        optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=RATE, weight_decay=0.01)
        for version in range(versions):
            train(model, head, teacher, optimizer, NEXT if version else FIRST)
            save(model, config, out / f"task{task}-{version}")


if __name__ == "__main__":
    main()
