#!/usr/bin/env bash
# Resolve an install for one Python without installing anything, and print what it would take, a version in each line:
#   docker/pins.sh EXTRA PYTHON                 with the pins of EXTRA (cpu or gpu); fails where something is not pinned
#   docker/pins.sh EXTRA PYTHON --upgrade       without them: the newest versions that fit together
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1 python=$2 pins=constraints.txt work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
options=(--quiet --no-header --no-annotate --overrides overrides.txt --python-platform x86_64-manylinux_2_28
    --extra "$extra" --extra capability --extra dev --extra docs)

if [ "$extra" = gpu ]; then
    pins=constraints-gpu.txt
elif [ -n "${PIP_FIND_LINKS:-}" ]; then
    # A folder of wheels has PyTorch for one Python. The metadata, all that is read here, is the same for the others.
    IFS=. read -r major minor _ <<< "$python"
    tag=cp$major$minor
    for wheel in "$PIP_FIND_LINKS"/torch-*.whl; do
        ln --symbolic "$wheel" "$work/$(basename "$wheel" | sed -E "s/-cp3[0-9]+-cp3[0-9]+-/-$tag-$tag-/")"
    done
    options+=(--find-links "$work")
else
    options+=(--torch-backend cpu)
fi
[ "${3:-}" = --upgrade ] || options+=(--constraints "$pins")

.venv/bin/uv pip compile pyproject.toml "${options[@]}" --python-version "$python" --output-file "$work/resolved"
cat "$work/resolved"
if [ "${3:-}" != --upgrade ] && grep --line-regexp --fixed-strings --invert-match --file "$pins" "$work/resolved" >&2; then
    echo "these versions are not in $pins (Python $python)" >&2
    exit 1
fi
