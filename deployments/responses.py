"""What the routes answer, for their OpenAPI description."""

from __future__ import annotations

from typing import Any

from deployments.errors import MEDIA_TYPE
from rag.wire import Problem


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a route."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {status: {"description": "Problem", "content": content} for status in statuses}
