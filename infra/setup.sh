#!/usr/bin/env bash
# The environment in .venv and the embedded profile's models; done twice it does nothing. A model whose copy has been
# deleted since is made again by whatever needs it first.
# Called by `make setup`. PYTHON names another interpreter; pip's settings, or uv's variables, decide where packages come
# from.
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
  .venv/bin/python -m pip install --no-input --no-deps --require-hashes -r infra/locks/uv.lock >build/setup.log 2>&1 \
    || { tail -n 3 build/setup.log >&2; fail "installing uv failed; the whole log is build/setup.log"; }

  # uv installs in a third of pip's time. Where packages come from stays pip's own settings, a variable before a file.
  pip_settings=$(.venv/bin/python -m pip config list)
  pip_setting() { sed -n "s/^[^=]*\.$1='\(.*\)'$/\1/p" <<<"$pip_settings" | head -n 1 | sed 's/\\n/ /g; s/^ *//; s/ *$//'; }
  take() { if [ -z "${!1:-}" ] && [ -n "$2" ]; then export "$1=$2"; fi; }
  take UV_DEFAULT_INDEX "$(pip_setting index-url)"
  take UV_INDEX "$(pip_setting extra-index-url)"
  take UV_FIND_LINKS "$(pip_setting find-links | tr -s ' ' ,)"
  take UV_NO_INDEX "$(pip_setting no-index)"
  take SSL_CERT_FILE "$(pip_setting cert)"
  # As pip does, and safe with hashes: the first index that knows a package need not have this version.
  export UV_INDEX_STRATEGY=unsafe-best-match
  uv() { .venv/bin/uv pip install --python .venv/bin/python --cache-dir .venv/uv-cache --link-mode hardlink --no-deps "$@"; }

  echo "setup: installing $(grep -cE '^[A-Za-z]' "$lock") pinned packages, about 5 GB (1 to 4 minutes; log: build/setup.log)" >&2
  if ! uv --require-hashes -r "$lock" >>build/setup.log 2>&1; then
    tail -n 3 build/setup.log >&2
    if grep -q 'torch==2.13.0+cpu' build/setup.log; then
      fail "torch 2.13.0+cpu is on none of the indexes; name PyTorch's CPU index in PIP_EXTRA_INDEX_URL and run make setup again"
    fi
    fail "installing failed; the whole log is build/setup.log"
  fi
  uv --no-build-isolation -e . >>build/setup.log 2>&1 \
    || { tail -n 3 build/setup.log >&2; fail "installing the project itself failed; the whole log is build/setup.log"; }
  rm -rf .venv/uv-cache
  # Not left to the first import: where PYTHONDONTWRITEBYTECODE is set each of the service's processes would do it anew.
  # torch carries a file for Python 3.12 alone.
  echo "setup: compiling them" >&2
  .venv/bin/python -m compileall -q -j 0 -x '/tests?/|py312_intrinsics' .venv/lib/python3.11/site-packages >>build/setup.log 2>&1 \
    || { tail -n 3 build/setup.log >&2; fail "compiling the packages failed; the whole log is build/setup.log"; }
  .venv/bin/python -m compileall -q rag ingest deployments eval
  TQDM_DISABLE=1 .venv/bin/python -m rag.models --quiet
  echo "$want" > .venv/ready
fi
