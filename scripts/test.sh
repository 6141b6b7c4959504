#!/usr/bin/env bash
# Everything: format, lints, unit, property, tidy and FUSE tests, and unmodified frameworks through a real mount.
# With MGIT_REQUIRE_FUSE=1, a machine where nothing can be mounted fails instead of leaving those tests out.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

step() { printf '\n== %s\n' "$*"; }

cd "$ROOT"
need shellcheck
need_rust
if [ "${MGIT_REQUIRE_FUSE:-0}" = 1 ]; then
    need_fuse
fi

step "Scripts: shellcheck"
shellcheck scripts/*.sh .ci/run

step "Format: cargo fmt --check"
cargo fmt --check

step "Lints: cargo clippy"
cargo clippy --all-targets --locked -- -D warnings

step "Tests: cargo test"
cargo test --locked --no-fail-fast

step "Frameworks through a mount"
if ! fuse_usable; then
    echo "NOT RUN: /dev/fuse cannot be used here"
    exit
fi
build_release
get_models
"$PYTHON" tests/frameworks/run.py "$MGIT" "$MODELS"
