"""Waiting by closed form and by simulation: stages as stations whose servers share a machine's cores."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import NamedTuple

from eval.load import percentile


def erlang_c(servers: int, offered: float) -> float:
    """The chance that a call has to wait in M/M/c; `offered` is arrival rate * mean service time, below `servers`.

    Source: Erlang's delay formula, here by the recurrence of Erlang B: B(k) = a B(k-1) / (k + a B(k-1)) and
    C = B / (1 - (a / c) (1 - B)) (Cooper, Introduction to Queueing Theory, 1981, chapter 3), which does not overflow.
    Raises ValueError for a load that the servers cannot carry.
    """
    if servers < 1 or offered < 0 or offered >= servers:
        raise ValueError(f"a load of {offered:g} needs more than {offered:g} servers, there are {servers}: add servers")
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


def mean_wait_s(servers: int, rate: float, service_s: float) -> float:
    """Mean seconds before service in M/M/c: C(c, a) * service / (c - a). Same source and errors as `erlang_c`."""
    offered = rate * service_s
    return erlang_c(servers, offered) * service_s / (servers - offered)


@dataclass(frozen=True, slots=True)
class Station:
    """A stage: `servers` calls or batches at once, first come, first served; None: a pause that takes no core.

    A free server takes up to `max_batch` waiting calls together: `fixed_s` of work beside the calls' own. Each server
    keeps so many cores busy at once as it has `threads`, its work the time of all of them with a core each.
    """

    name: str
    servers: int | None = 1
    max_batch: int = 1
    fixed_s: float = 0.0
    threads: int = 1


class Visit(NamedTuple):
    """Work in seconds of a server whose cores have nothing else to do."""

    station: str
    work_s: float


Branch = Sequence[Visit]  # one after the other
Phase = Sequence[Branch]  # at the same time; the next phase begins when all have ended
Flow = Callable[[Random], Sequence[Phase]]  # a request's way, drawn anew for each


@dataclass(slots=True)
class Simulated:
    """What came out, the warm-up left out."""

    seconds: float
    latencies_s: list[float]
    waits_s: dict[str, list[float]]  # by station, before service began
    batches: dict[str, list[int]]  # by station, the calls in each

    @property
    def per_s(self) -> float:
        """Requests answered in a second."""
        return len(self.latencies_s) / self.seconds

    def quantile_ms(self, percent: float) -> float | None:
        """Of the latencies."""
        return percentile([latency * 1000 for latency in self.latencies_s], percent)


@dataclass(slots=True)
class _Request:
    phases: Sequence[Phase]
    began: float
    phase: int = -1
    open_branches: int = 0


@dataclass(slots=True)
class _Call:
    request: _Request
    branch: Branch
    at: int
    arrived: float


@dataclass(slots=True)
class _Queue:
    station: Station
    waiting: deque[_Call] = field(default_factory=deque)
    busy: int = 0


def simulate_closed(
    stations: Sequence[Station],
    flow: Flow,
    *,
    clients: int,
    requests: int,
    speeds: Sequence[float] | None = None,
    seed: int = 0,
) -> Simulated:
    """`clients` that each send their next request when the last is answered, as eval.load's do.

    `speeds[n - 1]` is what n busy cores do in a second, together, beside what one alone does; more threads than that
    share them evenly (processor sharing). None: a core for each. The first tenth of the requests is the warm-up.
    """
    run = _Run(stations, flow, speeds, requests, seed, closed=True)
    for _ in range(clients):
        run.send()
    return run.result()


def simulate_open(
    stations: Sequence[Station],
    flow: Flow,
    *,
    rate: float,
    requests: int,
    speeds: Sequence[float] | None = None,
    seed: int = 0,
) -> Simulated:
    """The same with requests that come at random, `rate` a second (Poisson)."""
    run = _Run(stations, flow, speeds, requests, seed, closed=False)
    run.arrive(rate)
    return run.result()


class _Run:
    """One simulation. All threads on cores run at the same speed, so that they end in the order of the work that each
    will have had: one heap over a clock of work serves for all of them."""

    def __init__(
        self,
        stations: Sequence[Station],
        flow: Flow,
        speeds: Sequence[float] | None,
        requests: int,
        seed: int,
        *,
        closed: bool,
    ) -> None:
        self._queues = {station.name: _Queue(station) for station in stations}
        self._flow, self._speeds, self._closed = flow, speeds, closed
        self._random = Random(seed)
        self._wanted, self._warm_up = requests, requests // 10
        self._now = self._work_done = self._measured_from = 0.0
        self._order = count()
        self._on_cores: list[tuple[float, int, _Queue, list[_Call]]] = []
        self._busy = 0  # their threads
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._ended = 0
        self._found = Simulated(0.0, [], {name: [] for name in self._queues}, {name: [] for name in self._queues})

    def send(self) -> None:
        """A request begins."""
        self._next_phase(_Request(self._flow(self._random), self._now))

    def arrive(self, rate: float) -> None:
        """Requests begin from now on."""
        self.send()
        self._after(self._random.expovariate(rate), lambda: self.arrive(rate))

    def result(self) -> Simulated:
        """Runs until so many requests have ended as were wanted."""
        while self._ended < self._wanted:
            self._step()
        self._found.seconds = self._now - self._measured_from
        return self._found

    def _step(self) -> None:
        busy = self._busy
        speed = self._speed(busy) if busy else 1.0
        core_at = self._now + (self._on_cores[0][0] - self._work_done) / speed if busy else float("inf")
        timer_at = self._timers[0][0] if self._timers else float("inf")
        if timer_at <= core_at:
            self._work_done += (timer_at - self._now) * speed
            self._now, _, fire = heapq.heappop(self._timers)
            fire()
            return
        self._now = core_at
        self._work_done, _, queue, calls = heapq.heappop(self._on_cores)
        # The server is free when all of them have gone on: who comes back at once is in the next batch with the rest.
        for call in calls:
            self._advance(call)
        queue.busy -= 1
        self._busy -= queue.station.threads
        self._serve(queue)

    def _speed(self, busy: int) -> float:
        """Of each of so many busy threads."""
        return 1.0 if self._speeds is None else self._speeds[min(busy, len(self._speeds)) - 1] / busy

    def _after(self, seconds: float, fire: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self._now + seconds, next(self._order), fire))

    def _next_phase(self, request: _Request) -> None:
        request.phase += 1
        if request.phase == len(request.phases):
            self._end(request)
            return
        branches = request.phases[request.phase]
        request.open_branches = len(branches)
        for branch in branches:
            self._visit(_Call(request, branch, 0, self._now))

    def _visit(self, call: _Call) -> None:
        visit = call.branch[call.at]
        queue = self._queues[visit.station]
        if queue.station.servers is None:
            self._after(visit.work_s, lambda: self._advance(call))
            return
        call.arrived = self._now
        queue.waiting.append(call)
        self._serve(queue)

    def _serve(self, queue: _Queue) -> None:
        station = queue.station
        assert station.servers is not None
        while queue.waiting and queue.busy < station.servers:
            calls = [queue.waiting.popleft() for _ in range(min(station.max_batch, len(queue.waiting)))]
            if self._ended >= self._warm_up:
                self._found.waits_s[station.name].extend(self._now - call.arrived for call in calls)
                self._found.batches[station.name].append(len(calls))
            work_s = station.fixed_s + sum(call.branch[call.at].work_s for call in calls)
            queue.busy += 1
            self._busy += station.threads
            own = self._speed(station.threads) / self._speed(1)  # that its threads slow each other its work knows
            heapq.heappush(self._on_cores, (self._work_done + work_s * own, next(self._order), queue, calls))

    def _advance(self, call: _Call) -> None:
        call.at += 1
        if call.at < len(call.branch):
            self._visit(call)
            return
        call.request.open_branches -= 1
        if not call.request.open_branches:
            self._next_phase(call.request)

    def _end(self, request: _Request) -> None:
        self._ended += 1
        if self._ended == self._warm_up:
            self._measured_from = self._now
        if self._ended > self._warm_up:
            self._found.latencies_s.append(self._now - request.began)
        if self._closed:
            self.send()
