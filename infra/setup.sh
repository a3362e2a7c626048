#!/usr/bin/env bash
# The environment in .venv and the embedded profile's models; done twice it does nothing. A model whose copy has been
# deleted since is made again by whatever needs it first.
# Called by `make setup`. PYTHON names another interpreter; pip's own settings decide where packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=infra/locks/cpu.lock
need_gib=8
fail() { echo "setup: $*" >&2; exit 2; }

want=$(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)
if [ ! -f .venv/ready ] || [ "$(cat .venv/ready)" != "$want" ]; then
  python=${PYTHON:-}
  if [ -z "$python" ]; then
    for name in python3.11 python3; do
      if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
        python=$name
        break
      fi
    done
  fi
  [ -n "$python" ] || fail "no Python 3.11 found ($(python3 --version 2>&1 || echo 'no python3')); the lock file is for 3.11: install it, or name it: make setup PYTHON=/path/to/python3.11"
  "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || fail "$python is $("$python" --version 2>&1); the lock file is for Python 3.11"
  "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "$python has no venv module; install it (Debian: apt-get install python3.11-venv)"
  [ "$(uname -m)" = x86_64 ] || fail "the lock file is for x86-64, this machine is $(uname -m); use the GPU image or your own environment with pip install '.[cpu]'"
  "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || fail "the library libnuma.so.1 is missing, vLLM's CPU kernels need it; install it (Debian: apt-get install libnuma1)"
  free_gib=$(( $(df -Pk . | awk 'NR == 2 {print $4}') / 1048576 ))
  [ "$free_gib" -ge "$need_gib" ] || fail "$free_gib GiB are free here, $need_gib GiB are needed; free some space"

  echo "setup: making .venv with $("$python" --version)" >&2
  "$python" -m venv .venv
  mkdir -p build
  echo "setup: installing $(grep -cE '^[A-Za-z]' "$lock") pinned packages, about 5 GB (2 to 5 minutes; log: build/setup.log)" >&2
  # The pip that comes with Python 3.11.7 (23.2) takes twice as long to look up these packages; without a newer one it
  # goes on with that.
  .venv/bin/python -m pip install --no-input --require-hashes -r infra/locks/pip.lock >build/setup.log 2>&1 \
    || echo "setup: pip itself could not be renewed (build/setup.log); going on with the one that is there" >&2
  if ! .venv/bin/python -m pip install --no-input --no-deps --require-hashes -r "$lock" >>build/setup.log 2>&1; then
    tail -n 3 build/setup.log >&2
    if grep -q 'torch==2.13.0+cpu' build/setup.log; then
      fail "torch 2.13.0+cpu is on none of pip's indexes; name PyTorch's CPU index in PIP_EXTRA_INDEX_URL and run make setup again"
    fi
    fail "pip failed; the whole log is build/setup.log"
  fi
  .venv/bin/python -m pip install --no-input --no-deps --no-build-isolation -e . >>build/setup.log 2>&1 \
    || { tail -n 3 build/setup.log >&2; fail "installing the project itself failed; the whole log is build/setup.log"; }
  # pip compiles the packages, but not an editable project; where PYTHONDONTWRITEBYTECODE is set each of the service's
  # processes would do it anew.
  .venv/bin/python -m compileall -q rag ingest deployments eval
  TQDM_DISABLE=1 .venv/bin/python -m rag.models --quiet
  echo "$want" > .venv/ready
fi
