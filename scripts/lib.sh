# shellcheck shell=bash
# What the scripts share: finding what they need, the Python environment, the binary, the models.
# Everything fetched lives in .cache/, and is used again when it is there.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=$ROOT/.cache
VENV=$CACHE/venv
PYTHON=$VENV/bin/python
# shellcheck disable=SC2034 # read by the scripts that source this file
MODELS=$CACHE/models
RUST_MIN=1.90

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# need PACKAGE…: Debian packages. Installed when this is root on a Debian; otherwise what is missing is said in one line.
need() {
    local package missing=()
    for package in "$@"; do
        have_package "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ] && command -v apt-get >/dev/null; then
        echo "installing: ${missing[*]}"
        if { [ -n "${APT_UPDATED:-}" ] || apt-get -qq update; } &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${missing[@]}" >/dev/null; then
            APT_UPDATED=1
            return
        fi
        die "could not install ${missing[*]}"
    fi
    die "missing: ${missing[*]} (names of Debian packages; run as root on Debian, this script installs them)"
}

have_package() {
    case $1 in
        python3-torch) /usr/bin/python3 -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' ;;
        python3-venv) /usr/bin/python3 -c 'import ensurepip, venv' ;;
        fuse3) command -v fusermount3 ;;
        python3-dev) [ -f "$(/usr/bin/python3 -c 'import sysconfig as s; print(s.get_path("include"))')/Python.h" ] ;;
        libc6-dev) [ -f /usr/include/stdio.h ] ;;
        attr) command -v getfattr ;;
        *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

# warn_of_space GIB: says where there is less free than what is built and written takes; without it, tests fail one by one.
warn_of_space() {
    local dir free
    for dir in "$ROOT" "${CARGO_TARGET_DIR:-$ROOT}" "${TMPDIR:-/tmp}"; do
        free=$(df --output=avail -BG "$dir" 2>/dev/null | tail -n1 | tr -dc 0-9) || continue
        [ "${free:-$1}" -ge "$1" ] || echo "WARNING: $dir has $free GiB free; the tests take up to $1 GiB"
    done
}

# need_rust: a cargo of at least RUST_MIN. Debian's own may be older, so this is never installed for you.
need_rust() {
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || die "missing: Rust $RUST_MIN or newer (https://rustup.rs)"
    local have
    have=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$RUST_MIN" "$have" | sort -V | head -n1)" = "$RUST_MIN" ] ||
        die "missing: Rust $RUST_MIN or newer (this is $have; https://rustup.rs)"
    need gcc libc6-dev
}

# build_release: sets MGIT to the release binary.
build_release() {
    need_rust
    (cd "$ROOT" && cargo build --release --locked)
    # shellcheck disable=SC2034 # read by the scripts that source this file
    MGIT=$(cd "$ROOT" && realpath "${CARGO_TARGET_DIR:-target}")/release/mgit
}

# Root mounts without a helper; others need fuse3's fusermount3.
fuse_usable() {
    [ -c /dev/fuse ] && { [ "$(id -u)" -eq 0 ] || { [ -w /dev/fuse ] && command -v fusermount3 >/dev/null; }; }
}

need_fuse() {
    [ "$(id -u)" -eq 0 ] || need fuse3
    fuse_usable || die "missing: a usable /dev/fuse (load the fuse module; a container needs --device /dev/fuse --cap-add SYS_ADMIN)"
}

# python_env: Debian's torch (CPU only, so no gigabytes of CUDA) under a virtual environment with the rest.
python_env() {
    need python3-venv python3-torch
    local wanted=('transformers==4.44.2' 'safetensors==0.8.0' 'numpy<2' 'accelerate==0.34.2') stamp
    stamp="${wanted[*]} $(/usr/bin/python3 --version)"
    mkdir -p "$CACHE"
    # shellcheck disable=SC2016 # the inner shell expands it
    flock "$CACHE/lock" bash -euo pipefail -c '
        venv=$1 stamp=$2 wanted=("${@:3}")
        [ "$(cat "$venv/.complete" 2>/dev/null)" = "$stamp" ] && exit
        echo "preparing Python: ${wanted[*]}"
        rm -rf "$venv"
        /usr/bin/python3 -m venv --system-site-packages "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"
        echo "$stamp" >"$venv/.complete"
    ' - "$VENV" "$stamp" "${wanted[@]}" || die "the Python environment could not be made (see above)"
}

# python_alone PACKAGE==VERSION: one more, built from source, without its dependencies (they would bring PyPI's torch).
python_alone() {
    python_env
    need gcc libc6-dev python3-dev
    # shellcheck disable=SC2016 # the inner shell expands it
    flock "$CACHE/lock" bash -euo pipefail -c '
        [ -e "$1/.has-$2" ] && exit
        echo "preparing Python: $2"
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 --no-deps "$2"
        touch "$1/.has-$2"
    ' - "$VENV" "$1" || die "$1 could not be installed (see above)"
}

# get_models: the real models, as ordinary directories below MODELS.
get_models() {
    python_env
    flock "$CACHE/lock" "$PYTHON" "$ROOT/scripts/models.py" "$MODELS"
}

# let_go DIR: unmounts DIR when something is mounted there, whatever state its daemon is in.
let_go() {
    mountpoint -q "$1" 2>/dev/null || stat "$1" 2>&1 | grep -q 'not connected' || return 0
    "$MGIT" umount "$1" 2>/dev/null || fusermount3 -u -z "$1" 2>/dev/null || umount -l "$1"
}
