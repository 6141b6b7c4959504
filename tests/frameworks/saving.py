"""Frameworks save models into a mount, and they become versions: saving.py MGIT MODELS, the write half of run.py.

Needs what run.py needs, and accelerate (0.34.2) for the real Trainer. Exits 1 when any test failed.
"""

import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import unittest

import torch
import safetensors.torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import run
from run import bits, digests, mgit

SETTLE = 2


class Saving(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = pathlib.Path(tempfile.mkdtemp(prefix="mgit-saving."))
        cls.repo, cls.mount = cls.work / "repo", cls.work / "mount"
        cls.mount.mkdir()
        mgit("init", cls.repo)
        mgit("--repo", cls.repo, "mount", cls.mount, "--settle", SETTLE)
        cls.models = cls.mount / "models"

    @classmethod
    def tearDownClass(cls):
        mgit("--repo", cls.repo, "umount", cls.mount, check=False)
        shutil.rmtree(cls.work)

    def mgit(self, *arguments):
        return mgit("--repo", self.repo, *arguments).stdout

    def versions(self, model):
        listed = json.loads(self.mgit("ls", "--json"))["versions"]
        return [v["version"] for v in listed if v["model"] == model]

    def wait(self, what, seconds=60):
        deadline = time.monotonic() + seconds
        while not what():
            self.assertLess(time.monotonic(), deadline, "it does not come")
            time.sleep(0.2)

    def check_state(self, directory, want):
        got, want = AutoModel.from_pretrained(directory).state_dict(), want.state_dict()
        self.assertEqual({k: bits(v) for k, v in got.items()}, {k: bits(v) for k, v in want.items()})

    def test_save_pretrained(self):
        model = AutoModel.from_pretrained(run.MODELS / run.BASE)
        draft = self.models / "single" / "v1"
        model.save_pretrained(draft)
        AutoTokenizer.from_pretrained(run.MODELS / run.BASE).save_pretrained(draft)
        self.check_state(draft, model)
        self.mgit("seal", draft)
        self.check_state(self.models / "single" / "latest", model)

    def test_save_pretrained_in_shards(self):
        model = AutoModel.from_pretrained(run.MODELS / run.TUNED)
        draft = self.models / "sharded" / "v1"
        model.save_pretrained(draft, max_shard_size="20MB")
        saved = digests(draft)
        self.assertGreater(len([f for f in saved if f.endswith(".safetensors")]), 2)
        self.wait(lambda: self.versions("sharded") == ["v1"])
        self.check_state(self.models / "sharded" / "latest", model)
        self.assertEqual(digests(self.models / "sharded" / "v1"), saved)

    def test_save_file_and_torch_save(self):
        tensors = {f"layer.{i}": torch.randn(300, 70) for i in range(4)}
        draft = self.models / "files" / "v1"
        os.makedirs(draft)
        safetensors.torch.save_file(tensors, draft / "model.safetensors")
        torch.save(tensors, draft / "pytorch_model.bin")
        self.mgit("seal", draft)
        version = self.models / "files" / "v1"
        for got in (safetensors.torch.load_file(version / "model.safetensors"), torch.load(version / "pytorch_model.bin")):
            self.assertEqual({k: bits(v) for k, v in got.items()}, {k: bits(v) for k, v in tensors.items()})

    def test_hub_layout(self):
        draft = self.models / "hub" / "v1"
        (draft / "blobs").mkdir(parents=True)
        (draft / "snapshots" / "abc").mkdir(parents=True)
        safetensors.torch.save_file({"w": torch.randn(64, 64)}, draft / "blobs" / "1234")
        os.symlink("../../blobs/1234", draft / "snapshots" / "abc" / "model.safetensors")
        before = digests(draft)
        self.mgit("seal", draft)
        self.assertEqual(digests(draft), before)

    def test_trainer(self):
        """The real one: it saves each ten steps and keeps two, with logs and final weights beside them."""
        out = self.models / "trained"
        config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=200)
        model = BertForSequenceClassification(config)
        rows = [{"input_ids": torch.randint(0, 200, (16,)), "labels": torch.tensor(i % 2)} for i in range(64)]

        class Slow(Trainer):
            """Leaves what was saved the time to settle, as training on real data does."""

            def _save_checkpoint(self, *arguments, **named):
                super()._save_checkpoint(*arguments, **named)
                time.sleep(2 * SETTLE + 1)

        arguments = TrainingArguments(
            str(out), max_steps=40, save_steps=10, save_total_limit=2, logging_steps=5, report_to=[],
            per_device_train_batch_size=4, disable_tqdm=True, use_cpu=True, save_safetensors=True,
        )  # fmt: skip
        trainer = Slow(model, arguments, train_dataset=rows)
        trainer.train()
        trainer.save_model()
        self.wait(lambda: set(self.versions("trained")) == {"checkpoint-30", "checkpoint-40"})
        self.assertEqual({p.name for p in out.glob("checkpoint-*")}, {"checkpoint-30", "checkpoint-40"})
        latest = BertForSequenceClassification.from_pretrained(out / "checkpoint-40").state_dict()
        self.assertEqual({k: bits(v) for k, v in latest.items()}, {k: bits(v) for k, v in model.state_dict().items()})
        # Training goes on from a version.
        again = TrainingArguments(
            str(out), max_steps=45, save_steps=45, save_total_limit=2, report_to=[], disable_tqdm=True, use_cpu=True,
            per_device_train_batch_size=4,
        )  # fmt: skip
        Trainer(model, again, train_dataset=rows).train(resume_from_checkpoint=str(out / "checkpoint-40"))
        self.wait(lambda: set(self.versions("trained")) == {"checkpoint-40", "checkpoint-45"})
        # The final weights lie loose until they get a name.
        self.mgit("seal", out, "--as", "trained@final")
        self.assertIn("model.safetensors", os.listdir(out / "final"))
        self.assertTrue(json.loads(self.mgit("fsck", "--json"))["ok"])


if __name__ == "__main__":
    run.MGIT, run.MODELS = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Saving)
    sys.exit(0 if unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite).wasSuccessful() else 1)
