#!/usr/bin/env bash
# Everything: format, lints, unit, property, tidy and FUSE tests, and unmodified frameworks through a real mount.
# With MGIT_REQUIRE_FUSE=1, a machine where nothing can be mounted fails instead of leaving those tests out.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

step() { printf '\n== %s\n' "$*"; }

cd "$ROOT"
need shellcheck fuse3
need_rust
warn_of_space 8
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
if [ "$(id -u)" = 0 ] && fuse_usable; then
    # One test mounts as an ordinary user, who must be able to open /dev/fuse: in a namespace of its own, it can.
    node=$(mktemp -d)
    trap 'rm -rf "$node"' EXIT
    mknod -m 666 "$node/fuse" c 10 229
    # shellcheck disable=SC2016 # $0 is the inner shell's.
    unshare --mount sh -ec 'mount --bind "$0" /dev/fuse; exec cargo test --locked --no-fail-fast' "$node/fuse"
else
    cargo test --locked --no-fail-fast
fi

step "Interleavings: cargo test --features shuttle"
cargo test --locked --features shuttle --lib interleavings

step "Frameworks through a mount"
if ! fuse_usable; then
    echo "NOT RUN: /dev/fuse cannot be used here"
    exit
fi
build_release
get_models
"$PYTHON" tests/frameworks/saving.py "$MGIT" "$MODELS"
"$PYTHON" tests/frameworks/run.py "$MGIT" "$MODELS"
