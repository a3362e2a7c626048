"""All lines of one request in the replicas' logs on this disk, of the session of Ray that runs and of those before."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deployments.ray_session import joined_address, ray_dir_of
from rag.config import Settings
from rag.errors import SettingsError, StageError


def read_request(settings: Settings, request_id: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The request's lines in the logs of the service of `data_dir`, in time order; `say` is told of damaged ones.

    Raises StageError when no service has been started there, and SettingsError for a Ray that others run, whose nodes
    have the logs.
    """
    if (address := joined_address()) is not None:
        raise SettingsError(
            f"the Ray at {address} has its nodes' logs, not this machine; ask Loki for {loki_query(request_id)}, "
            "or unset RAY_ADDRESS for a service that `rag serve` started here"
        )
    ray_dir = ray_dir_of(settings, "ray")
    logs = sorted(ray_dir.glob("session_2*/logs/serve/replica_*.log"))
    if not logs:
        raise StageError("logs", f"no service has been started in {settings.data_dir}; set RAG_DATA_DIR as it has it")
    lines = [line for log in logs for line in lines_of(log, request_id, say)]
    return sorted(lines, key=lambda line: int(line["timestamp_ns"]))


def loki_query(request_id: str) -> str:
    """The same as LogQL, by the labels of infra/observability/promtail.yaml."""
    return f'{{job="rag"}} | request_id={json.dumps(request_id, ensure_ascii=False)}'


def lines_of(log: Path, request_id: str, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Those of a log and of what was rotated away from it (`.1`, `.2`), read a line at a time."""
    wanted = json.dumps(request_id).encode()
    seen: set[int] = set()
    # The newest first: one that is rotated meanwhile is met again under the next number, and never missed.
    for number in itertools.count():
        path = log.with_name(f"{log.name}.{number}") if number else log
        try:
            file = path.open("rb")
        except FileNotFoundError:
            if number:
                return
            continue
        with file:
            inode = os.fstat(file.fileno()).st_ino
            if inode in seen:
                continue
            seen.add(inode)
            for raw in file:
                if wanted not in raw:
                    continue
                try:
                    line: dict[str, Any] = json.loads(raw)
                except ValueError:
                    say(f"left out: a line of {path} that names the request and is no JSON")
                    continue
                if line.get("request_id") == request_id:
                    yield line
