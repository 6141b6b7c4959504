#!/usr/bin/env bash
# Figures: mgit beside what one would use instead, measured interleaved in one run. A missed goal is said, not failed.
#   scripts/bench.sh [--rounds N] [--only import,space,read,load] [--dir DIR] [--json] [MODEL_DIR[:PARENT]]…
# A MODEL_DIR is one more model to import; PARENT names what it came from, for instance all-minilm-l6-v2.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# Only the table, or the JSON, is for standard output.
{
    need zstd
    need_fuse
    build_release
    get_models
    python_alone zipnn==0.5.4
} >&2
exec "$PYTHON" "$ROOT/scripts/bench.py" --mgit "$MGIT" --models "$MODELS" --dir "$CACHE" "$@"
