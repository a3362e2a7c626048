"""What Ray raises, as an error with its remedy."""

from __future__ import annotations

import pytest
from ray.data import DataContext
from ray.data._internal.execution.no_progress_guard import NoProgressGuard
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import NodeDiedError

from deployments.bulk import failures_named, set_up
from rag.errors import StageError


def test_a_run_may_make_no_progress_for_as_long_as_a_document_takes() -> None:
    context = DataContext()
    assert NoProgressGuard({}, context.execution_no_progress_timeout_s).enabled
    set_up(context)
    assert not NoProgressGuard({}, context.execution_no_progress_timeout_s).enabled


@pytest.mark.parametrize("kind", [ExecutionTimeoutError, NodeDiedError, ConnectionError])
def test_what_ray_raises_names_its_logs(kind: type[Exception]) -> None:
    with pytest.raises(StageError, match="ingest: it broke; look there"), failures_named("look there"):
        raise kind("it broke")


def test_what_joining_raises_names_the_logs_and_what_is_not_rays_is_left_as_it_is() -> None:
    joining = failures_named("look there", RuntimeError)
    with pytest.raises(StageError, match="ingest: Version mismatch; look there"), joining:
        raise RuntimeError("Version mismatch")
    with pytest.raises(RuntimeError, match="ours"), failures_named("look there"):
        raise RuntimeError("ours")
