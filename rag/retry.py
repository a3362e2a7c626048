"""When a call is made again: how often, after how long, and never beyond its time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from rag.errors import DeadlineError

RETRIED_STATUSES = (429, 503)  # with Retry-After: the service says when it may do it
SHORTEST_S = 0.001  # a socket takes no timeout below 0
CONNECT_PAUSE_S = 0.1  # after the first connection that could not be made, twice that after the next
LATER_FRACTION = 0.25  # clients that were refused together come back spread over this part of their wait
FIRST_LOOK_S, LONGEST_LOOK_S, LOOK_GROWTH = 0.1, 2.0, 1.5


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that a response asks to wait for, at least 0; None where it does not, or not readably.

    A date is taken relative to the response's own `Date`, since clocks differ; to `now` where it has none.
    Source: RFC 9110, sections 10.2.3 and 5.6.7.
    """
    given = headers.get("retry-after", "").strip()
    if given.isascii() and given.isdigit():
        return float(given)
    until = _date(given)
    if until is None:
        return None
    return max(0.0, (until - (_date(headers.get("date", "")) or now)).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class Attempts:
    """The attempts at one call: at most `1 + max_retries` of them within `timeout_s`, waits among them.

    `answered` becomes true with a response that asks for another attempt: unlike a connection that could not be made,
    it says no more than that the call may not be done.
    """

    def __init__(self, max_retries: int, timeout_s: float, now: Callable[[], float]) -> None:
        self._retries_left = max_retries
        self._now = now
        self._ends_at = now() + timeout_s
        self._connect_pause_s = CONNECT_PAUSE_S
        self.answered = False

    def left_s(self) -> float:
        """Seconds that the next attempt may take; above 0 also where a sleep took longer than was asked."""
        return max(self._ends_at - self._now(), SHORTEST_S)

    def pause_after_no_connection_s(self) -> float | None:
        """Seconds until the next attempt; None where there is to be none."""
        pause_s = self._connect_pause_s
        self._connect_pause_s *= 2
        return self._pause_s(pause_s)

    def pause_after_response_s(self, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds until the next attempt, at least those that the response asks for; None where there is to be none."""
        if status not in RETRIED_STATUSES:
            return None
        asked_s = retry_after_s(headers, datetime.now(UTC))
        if asked_s is None:
            return None
        self.answered = True
        return self._pause_s(asked_s)

    def _pause_s(self, least_s: float) -> float | None:
        pause_s = least_s * (1 + LATER_FRACTION * random.random())
        if not self._retries_left or pause_s >= self.left_s():
            return None
        self._retries_left -= 1
        return pause_s


class Looks:
    """The pauses between looks at something that takes its time: ever longer ones, within `timeout_s`."""

    def __init__(self, subject: str, timeout_s: float, now: Callable[[], float]) -> None:
        self._subject = subject
        self._timeout_s = timeout_s
        self._now = now
        self._ends_at = now() + timeout_s
        self._pause_s = FIRST_LOOK_S

    def pause_s(self) -> float:
        """Seconds until the next look. Raises DeadlineError once the time is over."""
        left_s = self._ends_at - self._now()
        if left_s <= 0:
            raise DeadlineError(f"{self._subject} is not done after {self._timeout_s:g} s; look at it again later")
        pause_s = min(self._pause_s, left_s)
        self._pause_s = min(self._pause_s * LOOK_GROWTH, LONGEST_LOOK_S)
        return pause_s
