#!/bin/sh
# Run a command with everything this project needs: `sh scripts/env.sh python train.py`.
# The first call makes .venv beside the repository's files and installs the pinned versions.
set -eu
cd "$(dirname "$0")/.."
if ! cmp -s requirements.txt .venv/requirements.txt; then
    python=$(command -v python3 || command -v python)
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
    "$python" -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
    cp requirements.txt .venv/requirements.txt # last: an interrupted installation is repeated
fi
PATH="$PWD/.venv/bin:$PATH" exec "$@"
