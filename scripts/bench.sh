#!/usr/bin/env bash
# Figures: mgit beside what one would use instead, measured interleaved in one run. A missed goal is said, not failed.
#   scripts/bench.sh [--rounds N] [--only import,space] [--dir DIR] [--json] [MODEL_DIR[:PARENT]]…
# A MODEL_DIR is one more model to import; PARENT names what it came from, for instance all-minilm-l6-v2.
#   scripts/bench.sh codec [--only MODEL,…] [--peers zipnn,lmzip,z4ai] [--all] [--json] [DIR…]
# What each model of a lineage costs, its parents being there. A DIR is a folder whose lineage.json names them, or
# MODEL_DIR:PARENT,…; without one, the lineages that lineage_cases.py makes (--all: those as well).
#   scripts/bench.sh read [--rounds N] [--only ROW,…] [--json] [--dir DIR] [--many N]
# Reading through a mount beside the plain file on the same disk: cold, warm, held to 300 MB/s, mapped, loaded, at
# random, by many at once. --help names the rows.
#   scripts/bench.sh lineage [--only accuracy|costs] [--rounds N] [--json]
# Parents found by content on a lineage of 123 models whose truth is known, and what a search costs.
#   scripts/bench.sh save [--rounds N] [--only ROW,…] [--size MB] [--json]
# Writing a checkpoint through a mount beside the plain file, committing it beside an import, and what readers keep.
#   scripts/bench.sh merge [--rounds N] [--only METHOD,…] [--json]
# Two models merged cold beside reading both from a cold mount; the memory that takes, and what the result adds.
#   scripts/bench.sh lossy [--rounds N] [--only ROW,…] [--json]
# Lossy storage within 1e-4 and at the largest bound that a test lets pass, beside the scheme of the MGit paper.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# peers PACKAGE==VERSION…: prints the names of those that cannot be installed; why is for standard error.
peers() {
    local peer
    for peer in "$@"; do
        (python_alone "$peer") >&2 || echo "${peer%%=*}"
    done
}

codec() {
    local missing
    {
        need zstd
        build_release
        (cd "$ROOT" && cargo build --release --locked --example codec_bench)
        get_models
    } >&2
    missing=$(peers zipnn==0.5.4 lmzip==1.3.0 zstandard==0.25.0 z4ai==0.2.0)
    export PYTHONDONTWRITEBYTECODE=1 # one script imports another: no __pycache__ in the source tree
    exec "$PYTHON" "$ROOT/scripts/bench_codec.py" --mgit "$MGIT" --codec "${MGIT%/*}/examples/codec_bench" \
        --models "$MODELS" --missing "$missing" --dir "$CACHE" "$@"
}

reading() {
    {
        need_fuse
        build_release
        get_models
        peers lmzip==1.3.0
    } >&2
    export PYTHONDONTWRITEBYTECODE=1
    exec "$PYTHON" "$ROOT/scripts/bench_read.py" --mgit "$MGIT" --models "$MODELS" --dir "$CACHE" "$@"
}

lineage() {
    {
        build_release
        get_models
    } >&2
    export PYTHONDONTWRITEBYTECODE=1
    exec "$PYTHON" "$ROOT/scripts/bench_lineage.py" --mgit "$MGIT" --models "$MODELS" --dir "$CACHE" "$@"
}

# through_mount SCRIPT ARGUMENT…: what writes or reads through a mount.
through_mount() {
    {
        need_fuse
        build_release
        get_models
    } >&2
    export PYTHONDONTWRITEBYTECODE=1
    exec "$PYTHON" "$ROOT/scripts/bench_$1.py" --mgit "$MGIT" --models "$MODELS" --dir "$CACHE" "${@:2}"
}

case ${1:-} in
    codec) shift && codec "$@" ;;
    read) shift && reading "$@" ;;
    lineage) shift && lineage "$@" ;;
    save | merge | lossy) through_mount "$@" ;;
esac

# Only the table, or the JSON, is for standard output.
{
    need zstd
    build_release
    get_models
    python_alone zipnn==0.5.4
} >&2
exec "$PYTHON" "$ROOT/scripts/bench.py" --mgit "$MGIT" --models "$MODELS" --dir "$CACHE" "$@"
