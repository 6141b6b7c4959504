"""Unmodified frameworks read models through a real mount, each bit as it was imported: run.py MGIT MODELS

MGIT is the binary; MODELS holds what scripts/models.py gets. Ends with "N passed, M failed"; exits 1 when any failed.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.simplefilter("ignore")

import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from transformers import AutoModel, AutoTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()

BASE, TUNED, SHARDED = "all-minilm-l6-v2", "sre-embedding", "sharded"
MGIT, MODELS, WORK, MOUNT, IMPORTED = None, None, None, None, {}


def mgit(*arguments, check=True):
    done = subprocess.run([MGIT, *map(str, arguments)], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"mgit {' '.join(map(str, arguments))}: exit {done.returncode}: {done.stderr.strip()}")
    return done


def report(*arguments):
    return json.loads(mgit(*arguments, "--json").stdout)


def original(model):
    return WORK / SHARDED if model == SHARDED else MODELS / model


def mounted(model):
    return MOUNT / "models" / model / "latest"


def files(directory):
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def weights(directory):
    return sorted(directory.glob("*.safetensors"))


def bits(tensor):
    """A tensor's dtype, shape and the digest of its bytes, so that -0.0, NaNs and all compare as what they are."""
    return str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def setUpModule():
    global WORK, MOUNT
    WORK = pathlib.Path(tempfile.mkdtemp(prefix="mgit-frameworks."))
    MOUNT = WORK / "mount"
    MOUNT.mkdir()
    os.environ["MGIT_REPO"] = str(WORK / "repo")
    mgit("init")
    IMPORTED[BASE] = report("import", MODELS / BASE)
    IMPORTED[TUNED] = report("import", MODELS / TUNED, "--parent", BASE, "--relation", "finetune")
    mgit("mount", MOUNT)
    # A sharded copy, made from the mount and imported while it is mounted.
    AutoModel.from_pretrained(mounted(TUNED)).save_pretrained(WORK / SHARDED, max_shard_size="20MB")
    AutoTokenizer.from_pretrained(mounted(TUNED)).save_pretrained(WORK / SHARDED)
    IMPORTED[SHARDED] = report("import", WORK / SHARDED, "--parent", TUNED, "--relation", "reshard")
    deadline = time.monotonic() + 10
    while not mounted(SHARDED).exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def is_mounted():
    """Also when its daemon is gone, which os.path.ismount cannot tell."""
    with open("/proc/self/mounts") as mounts:
        return any(line.split()[1] == str(MOUNT) for line in mounts)


def tearDownModule():
    mgit("umount", MOUNT, check=False)
    if is_mounted():
        subprocess.run(["umount", "-l", MOUNT] if os.getuid() == 0 else ["fusermount3", "-uz", MOUNT])
        raise AssertionError("mgit umount left the mount")
    shutil.rmtree(WORK)


class Frameworks(unittest.TestCase):
    def check_model(self, name):
        got, want = AutoModel.from_pretrained(mounted(name)), AutoModel.from_pretrained(original(name))
        got, want = got.state_dict(), want.state_dict()
        self.assertEqual(list(got), list(want))
        self.assertGreater(len(got), 50)
        for key in got:
            self.assertEqual(bits(got[key]), bits(want[key]), key)

    def test_transformers_single_file(self):
        self.check_model(BASE)
        self.check_model(TUNED)

    def test_transformers_sharded(self):
        self.assertGreater(len(weights(mounted(SHARDED))), 2)
        self.check_model(SHARDED)
        # Cut into shards it is still the model that it was.
        got = AutoModel.from_pretrained(mounted(SHARDED)).state_dict()
        want = AutoModel.from_pretrained(original(TUNED)).state_dict()
        self.assertEqual({k: bits(v) for k, v in got.items()}, {k: bits(v) for k, v in want.items()})

    def test_transformers_answers_the_same(self):
        import torch

        text = "the disk of the build machine is full"
        answers = []
        for directory in (mounted(TUNED), original(TUNED)):
            tokens = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt")
            with torch.no_grad():
                answers.append(bits(AutoModel.from_pretrained(directory).eval()(**tokens).last_hidden_state))
        self.assertEqual(*answers)

    def test_safe_open(self):
        for name in (BASE, TUNED, SHARDED):
            for path in weights(original(name)):
                with safe_open(mounted(name) / path.name, "pt") as got, safe_open(path, "pt") as want:
                    self.assertEqual(list(got.keys()), list(want.keys()))
                    self.assertEqual(got.metadata(), want.metadata())
                    for key in want.keys():
                        self.assertEqual(bits(got.get_tensor(key)), bits(want.get_tensor(key)), key)

    def test_safe_open_slices(self):
        """Parts of tensors in no helpful order, each through a mapping that has read nothing else."""
        sliced = 0
        for path in weights(original(TUNED)):
            with safe_open(path, "pt") as want:
                for key in reversed(list(want.keys())):
                    with safe_open(mounted(TUNED) / path.name, "pt") as got:
                        a, b = got.get_slice(key), want.get_slice(key)
                        shape = b.get_shape()
                        self.assertEqual(a.get_shape(), shape)
                        if not shape:
                            continue
                        n = shape[0]
                        for rows in (slice(n - 1, n), slice(0, 1), slice(n // 3, n // 3 + 2)):
                            self.assertEqual(bits(a[rows]), bits(b[rows]), (key, rows))
                            sliced += 1
                        if len(shape) == 2:
                            columns = slice(shape[1] // 2, shape[1] // 2 + 3)
                            self.assertEqual(bits(a[:, columns]), bits(b[:, columns]), (key, columns))
                            sliced += 1
        self.assertGreater(sliced, 100)

    def test_load_file(self):
        for name in (BASE, TUNED, SHARDED):
            for path in weights(original(name)):
                got, want = safetensors.torch.load_file(mounted(name) / path.name), safetensors.torch.load_file(path)
                self.assertEqual({k: bits(v) for k, v in got.items()}, {k: bits(v) for k, v in want.items()})

    def test_numpy(self):
        for name in (BASE, TUNED, SHARDED):
            for path in weights(original(name)):
                got = np.memmap(mounted(name) / path.name, np.uint8, "r")
                want = np.fromfile(path, np.uint8)
                self.assertTrue(np.array_equal(got, want))
                # Back to front, and read() beside the mapping.
                with open(mounted(name) / path.name, "rb") as f:
                    for at in range(len(want) - 1, 0, -(len(want) // 17)):
                        f.seek(at)
                        self.assertEqual(f.read(70_000), want[at : at + 70_000].tobytes())

    def test_every_file(self):
        for name in (BASE, TUNED, SHARDED):
            self.assertEqual(files(mounted(name)), files(original(name)))
            for file in files(original(name)):
                got, want = (mounted(name) / file).read_bytes(), (original(name) / file).read_bytes()
                self.assertEqual(hashlib.sha256(got).digest(), hashlib.sha256(want).digest(), file)
                self.assertEqual((mounted(name) / file).stat().st_size, len(want))

    def test_four_processes_at_once(self):
        """Two on one version, two on others, over a daemon that has decoded nothing yet."""
        mgit("umount", MOUNT)
        mgit("mount", MOUNT)
        load = "import sys, run; run.hashes(sys.argv[1])"
        environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
        readers = [
            (name, subprocess.Popen([sys.executable, "-c", load, mounted(name)], env=environment, text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE))
            for name in (TUNED, TUNED, BASE, SHARDED)
        ]  # fmt: skip
        outputs = [(name, *reader.communicate(timeout=300), reader.returncode) for name, reader in readers]
        for name, out, err, status in outputs:
            self.assertEqual(status, 0, err)
            self.assertEqual(json.loads(out), digests(original(name)), name)


class Reports(unittest.TestCase):
    """The keys of --json are part of the contract."""

    REFERENCE = {"model", "version", "id"}

    def check_reference(self, value, *more):
        self.assertEqual(set(value), self.REFERENCE | set(more))
        self.assertRegex(value["id"], r"^[0-9a-f]{64}$")

    def test_import(self):
        keys = {"parents", "previous", "logical_bytes", "new_stored_bytes", "seconds"}
        for name, value in IMPORTED.items():
            self.assertLessEqual(self.REFERENCE | keys, set(value))
            self.assertEqual((value["model"], value["version"]), (name, "v1"))
            self.assertIsNone(value["previous"])
            total = sum((original(name) / f).stat().st_size for f in files(original(name)))
            self.assertEqual(value["logical_bytes"], total)
        self.assertEqual(IMPORTED[BASE]["parents"], [])
        for child, parent, relation in ((TUNED, BASE, "finetune"), (SHARDED, TUNED, "reshard")):
            (edge,) = IMPORTED[child]["parents"]
            self.check_reference(edge, "relation")
            self.assertEqual((edge["model"], edge["id"], edge["relation"]), (parent, IMPORTED[parent]["id"], relation))
        # Shards of what is there already share its tensors.
        self.assertLess(IMPORTED[SHARDED]["new_stored_bytes"], IMPORTED[SHARDED]["logical_bytes"] / 20)
        self.assertLess(IMPORTED[TUNED]["new_stored_bytes"], IMPORTED[TUNED]["logical_bytes"] / 2)

    def test_stats(self):
        value = report("stats")
        sizes = {"logical_bytes", "stored_bytes", "pack_bytes", "catalog_bytes", "draft_bytes"}
        self.assertLessEqual({"models", "versions"} | sizes, set(value))
        self.assertEqual((value["models"], value["versions"], value["draft_bytes"]), (3, 3, 0))
        self.assertEqual(value["logical_bytes"], sum(v["logical_bytes"] for v in IMPORTED.values()))
        self.assertLess(value["stored_bytes"], value["logical_bytes"])
        self.assertLessEqual(value["pack_bytes"], value["stored_bytes"])

    def test_show(self):
        value = report("show", TUNED)
        lists = {"parents", "next", "children", "files", "tags"}
        self.assertLessEqual(self.REFERENCE | lists | {"created", "message", "lossy", "previous"}, set(value))
        self.assertEqual(value["id"], IMPORTED[TUNED]["id"])
        self.assertRegex(value["created"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
        self.assertIsNone(value["lossy"])
        (parent,), (child,) = value["parents"], value["children"]
        self.check_reference(parent, "relation")
        self.check_reference(child, "relation")
        self.assertEqual((parent["model"], child["model"]), (BASE, SHARDED))
        self.assertEqual(sorted(f["path"] for f in value["files"]), files(original(TUNED)))
        for file in value["files"]:
            self.assertLessEqual({"path", "bytes", "stored_bytes", "blake3"}, set(file))
            self.assertEqual(file["bytes"], (original(TUNED) / file["path"]).stat().st_size)
            self.assertRegex(file["blake3"], r"^[0-9a-f]{64}$")

    def test_fsck(self):
        value = report("fsck")
        self.assertLessEqual({"ok", "findings", "blocks_checked", "versions_checked"}, set(value))
        self.assertEqual((value["ok"], value["findings"], value["versions_checked"]), (True, [], 3))
        self.assertGreater(value["blocks_checked"], 0)

    def test_export_and_verify(self):
        out = WORK / "exported"
        mgit("export", TUNED, out)
        self.assertEqual(digests(out), digests(original(TUNED)))
        mgit("verify", out, TUNED)
        with open(out / "model.safetensors", "r+b") as f:
            f.seek(-1, os.SEEK_END)
            last = f.read(1)
            f.seek(-1, os.SEEK_END)
            f.write(bytes([last[0] ^ 1]))
        self.assertEqual(mgit("verify", out, TUNED, check=False).returncode, 1)


def digests(directory):
    directory = pathlib.Path(directory)
    return {f: hashlib.sha256((directory / f).read_bytes()).hexdigest() for f in files(directory)}


def hashes(directory):
    """What a reader process does: loads the model, reads every tensor, prints the digest of every file."""
    model = AutoModel.from_pretrained(directory).state_dict()
    for path in weights(pathlib.Path(directory)):
        for key, tensor in safetensors.torch.load_file(path).items():
            assert key not in model or bits(model[key]) == bits(tensor), key
    print(json.dumps(digests(directory)))


class Result(unittest.TextTestResult):
    """One line for each test, and no summary: main prints the one that counts."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1

    def getDescription(self, test):
        return re.sub(r"^test_", "", test._testMethodName).replace("_", " ")


def main():
    global MGIT, MODELS
    MGIT, MODELS = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=Result).run(suite)
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    passed = result.passed
    print(f"{passed} passed, {failed} failed")
    sys.exit(0 if failed == 0 and passed == suite.countTestCases() else 1)


if __name__ == "__main__":
    main()
