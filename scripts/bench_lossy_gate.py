"""A test for bench.sh lossy, `bench_lossy_gate.py REFERENCE`: sentences, each right where its nearest neighbour among the
model's embeddings is the one that it has among the reference's."""

import json
import os
import sys

TOPICS = [
    "the price of copper", "a broken dishwasher", "a marathon in the rain", "learning the violin", "the moons of Jupiter",
    "growing tomatoes", "a delayed flight", "medieval castles", "a toothache", "voting by mail", "sourdough bread",
    "electric cars", "a lost cat", "a chess opening", "wildfires in summer", "the Roman army", "a software update",
    "coral reefs", "a tax refund", "knitting a scarf", "night shifts", "an old bicycle", "whales", "a court ruling",
    "mountain weather", "the stock market", "a family recipe", "vaccines", "a train strike", "desert plants",
]
FRAMES = [
    "I read a long article about {}.", "Tell me more about {}.", "We argued about {} all evening.",
    "She wrote a letter on {}.", "Nobody expected {} to matter.", "My neighbour only talks of {}.",
    "There is a documentary on {} tonight.", "What do you think of {}?",
]


def neighbours(path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    batch = tokenizer([f.format(t) for t in TOPICS for f in FRAMES], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    alike = vectors @ vectors.T
    alike.fill_diagonal_(-2)
    return alike.argmax(1).tolist()


def main():
    right = [a == b for a, b in zip(neighbours(os.environ["MGIT_PATH"]), neighbours(sys.argv[1]))]
    with open(os.environ["MGIT_EXAMPLES"], "w") as out:
        out.writelines(json.dumps({"id": i, "ok": ok}) + "\n" for i, ok in enumerate(right))
    print(json.dumps({"right": sum(right) / len(right)}))


if __name__ == "__main__":
    main()
