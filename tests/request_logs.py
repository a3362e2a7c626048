"""Logs of replicas as Serve and the orchestrator write them, without a Ray: what the tests of `rag trace` read."""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import access_log_msg, configure_component_logger
from ray.serve.context import _RequestContext, _serve_request_context
from ray.serve.schema import LoggingConfig

from deployments.options import JSON_LOGS

logger = logging.getLogger("ray.serve")


@contextmanager
def replica_log(ray_dir: Path, session: str, deployment: str, replica: str, max_bytes: int = 2**20) -> Iterator[None]:
    """What is logged inside goes where that replica's lines go; a file is rotated beyond `max_bytes`."""
    handlers, propagate, level = logger.handlers[:], logger.propagate, logger.level
    with pytest.MonkeyPatch.context() as kept:
        kept.setattr(logging.getLogger("rag"), "parent", logger)  # as the orchestrator does
        # A replica's output becomes lines of its log.
        kept.setattr(builtins, "print", print)
        for name in ("stdout", "stderr"):
            kept.setattr(sys, name, getattr(sys, name))
        logs = ray_dir / session / "logs" / "serve"
        configure_component_logger(
            component_name=f"rag_{deployment}",
            component_id=replica,
            component_type=ServeComponentType.REPLICA,
            logging_config=LoggingConfig(**JSON_LOGS, logs_dir=str(logs)),
            max_bytes=max_bytes,
            backup_count=20,
        )
        try:
            yield
        finally:
            for handler in logger.handlers:
                handler.flush()
                handler.close()
            logger.handlers[:] = handlers
            logger.propagate = propagate
            logger.setLevel(level)


@contextmanager
def serving(request_id: str) -> Iterator[None]:
    """Inside, the request of this id is worked on."""
    token = _serve_request_context.set(_RequestContext(route="/ask", request_id=request_id, app_name="rag"))
    try:
        yield
    finally:
        _serve_request_context.reset(token)


def note_end(kind: str, name: str, duration_ms: float, status: str = "OK") -> None:
    """The line of a call, `CALL`, or of an HTTP request."""
    message = access_log_msg(method=kind, route=name, status=status, latency_ms=duration_ms)
    logger.info(message, extra={"serve_access_log": True})
