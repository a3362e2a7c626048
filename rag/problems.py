"""What a service refused or could not do, as a client's error; the root of all is rag.errors'.

ProblemError               carries the service's problem object (RFC 9457)
├── RefusedError           also an InputError: sent again as it is, the request would be refused again
├── UnavailableError       also a StoreUnavailableError: overloaded, out of quota, a part is down, a bug
└── TooLateError           also a DeadlineError: the deadline passed
"""

from __future__ import annotations

from rag.errors import DeadlineError, InputError, RagError, StoreUnavailableError
from rag.wire import Problem


class ProblemError(RagError):
    """A service answered with a problem; `problem` has its status, type, request id and more."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem

    def __reduce__(self) -> tuple[type[ProblemError], tuple[Problem]]:
        return type(self), (self.problem,)


class RefusedError(ProblemError, InputError):
    """The service refuses what it was asked."""


class UnavailableError(ProblemError, StoreUnavailableError):
    """The service cannot do it now."""


class TooLateError(ProblemError, DeadlineError):
    """The deadline passed in the service."""


def problem_error(problem: Problem) -> ProblemError:
    """The error for a problem, by its status."""
    if problem.status == 504:
        return TooLateError(problem)
    refused = problem.status < 500 and problem.status != 429
    return RefusedError(problem) if refused else UnavailableError(problem)
