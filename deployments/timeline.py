"""A request's log lines as a timeline: what each replica did, what each stage took, what was left out and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rag.clock import NOT_STAGES

# What Serve writes when a call or an HTTP request ends: `CALL embed OK 170.3ms`, `POST /ask 200 497.0ms`.
_ENDED = re.compile(r"(?P<kind>[A-Z]+) (?P<name>\S+) (?P<status>\S+) (?P<ms>[\d.]+)ms")
_FACTS = ("outcome", "answer_source", "reason", "model", "cached", "confidence", "collection", "index_version", "usage")
# Lines further apart than this belong to two requests with the same id, such as one and its retry.
APART_MS = 1000.0
_BAR_CHARS = 30
_LEVELS = ("WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True)
class Interval:
    """Something that took time, `start_ms` after the request's first.

    `kind`: the HTTP `request`, a replica's `call`, or a `stage`, of which the log has how long it took and not when:
    it is put behind those before it. Replicas of several nodes have clocks of their own.
    """

    kind: Literal["request", "call", "stage"]
    name: str
    replica: str
    start_ms: float
    duration_ms: float
    status: str | None = None


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning or an error in the log, `at_ms` after the request's first interval began."""

    at_ms: float
    replica: str
    stage: str | None
    message: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A stage that the answer had to do without, and what the log says of it; nothing where it has no word."""

    stage: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request; `facts` are the outcome's own, empty where it has none in the log. Intervals are by their start."""

    started_at: str
    duration_ms: float
    facts: Mapping[str, Any]
    intervals: tuple[Interval, ...]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[Warned, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "facts": dict(self.facts)}


@dataclass(slots=True)
class _Request:
    """What is gathered of a request; times are milliseconds since the epoch."""

    ends_ms: float
    intervals: list[Interval] = field(default_factory=list)
    outcomes: list[Mapping[str, Any]] = field(default_factory=list)
    warned: list[Warned] = field(default_factory=list)


def timelines(lines: Sequence[Mapping[str, Any]]) -> list[Timeline]:
    """The requests that had the id of these lines, in time order; there are several where an id was used again."""
    found = [(_intervals(line), line) for line in lines]
    requests: list[_Request] = []
    for intervals, line in sorted(found, key=lambda one: _start_ms(*one)):
        if not requests or _start_ms(intervals, line) > requests[-1].ends_ms + APART_MS:
            requests.append(_Request(_at_ms(line)))
        request = requests[-1]
        request.ends_ms = max(request.ends_ms, _at_ms(line))
        request.intervals += intervals
        if "outcome" in line:
            request.outcomes.append(line)
        if line["levelname"] in _LEVELS:
            request.warned.append(Warned(_at_ms(line), _replica(line), line.get("stage"), line["message"]))
    return [_timeline(request) for request in requests]


def table(found: Timeline) -> Iterator[str]:
    """The lines that a person reads; `~` is before the start of a stage, which the log does not have."""
    facts = ", ".join(f"{name} {value}" for name, value in found.facts.items() if name != "usage")
    yield facts or "no outcome in the log: the question has not ended, or its orchestrator's replica was killed"
    yield ""
    yield f"{'start ms':>11}  {'took ms':>10}  {'what':26}  replica"
    for one in found.intervals:
        start = f"{'~' if one.kind == 'stage' else ''}{one.start_ms:,.1f}"
        name = f"  {one.name}()" if one.kind == "call" else one.name
        what = name if one.status in (None, "OK") else f"{name} {one.status}"
        bar = _bar(one.start_ms, one.duration_ms, found.duration_ms)
        yield f"{start:>11}  {one.duration_ms:>10,.1f}  {what:26}  {one.replica:32}  {bar}"
    told: set[str] = set()
    for left_out in found.left_out:
        told.update(left_out.reasons)
        yield f"left out: {left_out.stage}: {'; '.join(left_out.reasons) or 'no line of the log says why'}"
    for warned in found.warnings:
        if warned.message not in told:
            yield f"at {warned.at_ms:,.1f} ms, {warned.replica}: {warned.message}"


def _bar(start_ms: float, duration_ms: float, whole_ms: float) -> str:
    scale = _BAR_CHARS / whole_ms if whole_ms else 0.0
    before = min(int(start_ms * scale), _BAR_CHARS - 1)
    return " " * before + "█" * max(1, min(round(duration_ms * scale), _BAR_CHARS - before))


def _timeline(request: _Request) -> Timeline:
    starts_ms = min([one.start_ms for one in request.intervals] + [one.at_ms for one in request.warned])
    intervals = [
        Interval(one.kind, one.name, one.replica, round(one.start_ms - starts_ms, 1), one.duration_ms, one.status)
        for one in request.intervals
    ]
    warned = [Warned(round(one.at_ms - starts_ms, 1), one.replica, one.stage, one.message) for one in request.warned]
    outcome = request.outcomes[-1] if request.outcomes else {}
    return Timeline(
        datetime.fromtimestamp(starts_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        round(request.ends_ms - starts_ms, 1),
        {name: outcome[name] for name in _FACTS if outcome.get(name) is not None},
        tuple(sorted(intervals, key=lambda one: one.start_ms)),
        tuple(LeftOut(name, tuple(_reasons(name, warned))) for name in outcome.get("degraded", ())),
        tuple(sorted(warned, key=lambda one: one.at_ms)),
    )


def _reasons(left_out: str, warned: Sequence[Warned]) -> Iterator[str]:
    """`generate:NAME` is an LLM in whose place another answered."""
    stage, _, llm = left_out.partition(":")
    return (one.message for one in warned if one.stage == stage and llm in one.message)


def _start_ms(intervals: Sequence[Interval], line: Mapping[str, Any]) -> float:
    return min((one.start_ms for one in intervals), default=_at_ms(line))


def _at_ms(line: Mapping[str, Any]) -> float:
    return int(line["timestamp_ns"]) / 1e6


def _replica(line: Mapping[str, Any]) -> str:
    name = str(line.get("deployment", "?")).removeprefix(f"{line.get('application', '')}_")
    return f"{name} {line.get('replica', '?')}"


def _intervals(line: Mapping[str, Any]) -> list[Interval]:
    """What a line says of time: of a call or request that has just ended, or of a question's or search's stages."""
    if "timings_ms" in line:
        return list(_stages(line))
    if (ended := _ENDED.fullmatch(line["message"])) is None:
        return []
    duration_ms = float(ended["ms"])
    is_call = ended["kind"] == "CALL"
    return [
        Interval(
            "call" if is_call else "request",
            ended["name"] if is_call else f"{ended['kind']} {ended['name']}",
            _replica(line),
            _at_ms(line) - duration_ms,
            duration_ms,
            ended["status"],
        )
    ]


def _stages(line: Mapping[str, Any]) -> Iterator[Interval]:
    """The stages one behind the other, in the order of their first ends; word search runs beside the other one."""
    timings_ms: Mapping[str, float] = line["timings_ms"]
    at_ms = _at_ms(line) - timings_ms["total"]
    searches_at_ms = lexical_ends_ms = at_ms
    for name, duration_ms in timings_ms.items():
        if name in NOT_STAGES:
            continue
        if name == "lexical":
            lexical_ends_ms = searches_at_ms + duration_ms
            yield Interval("stage", name, _replica(line), searches_at_ms, duration_ms)
            continue
        if name not in ("embed", "dense"):
            at_ms = max(at_ms, lexical_ends_ms)
        yield Interval("stage", name, _replica(line), at_ms, duration_ms)
        at_ms += duration_ms
        if name not in ("embed", "dense"):
            searches_at_ms = at_ms
