"""Waiting by closed form: known values; by simulation: the closed forms, and the laws that hold for any queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from statistics import mean, stdev

import pytest

from eval.queueing import Flow, Phase, Simulated, Station, Visit, erlang_c, mean_wait_s, simulate_closed, simulate_open


def exponential(station: str, mean_s: float) -> Flow:
    def flow(random: Random) -> Sequence[Phase]:
        return [[[Visit(station, random.expovariate(1 / mean_s))]]]

    return flow


def fixed(*phases: Phase) -> Flow:
    return lambda _: phases


def standard_error(values: list[float], batches: int = 30) -> float:
    """Of a mean of values that hang on their neighbours, by the means of long runs of them."""
    size = len(values) // batches
    means = [mean(values[number * size : (number + 1) * size]) for number in range(batches)]
    return stdev(means) / math.sqrt(batches)


@pytest.mark.parametrize(
    ("servers", "offered", "chance"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (5, 0.0, 0.0)],
)
def test_erlangs_formula_by_hand(servers: int, offered: float, chance: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(chance)


def test_many_servers_do_not_overflow() -> None:
    assert 0 < erlang_c(5000, 4900.0) < 1


@pytest.mark.parametrize(("servers", "offered"), [(1, 1.0), (2, 2.5), (0, 0.0), (2, -0.1)])
def test_a_load_that_is_too_much_is_refused(servers: int, offered: float) -> None:
    with pytest.raises(ValueError, match="add servers"):
        erlang_c(servers, offered)


def test_one_server_waits_as_the_textbook_says() -> None:
    assert mean_wait_s(1, 0.8, 1.0) == pytest.approx(0.8 / (1 - 0.8))  # rho / (mu - lambda)


@pytest.mark.parametrize(("servers", "rate"), [(1, 0.7), (2, 1.5), (4, 3.0)])
def test_the_simulation_waits_as_the_closed_form_says(servers: int, rate: float) -> None:
    found = simulate_open([Station("s", servers)], exponential("s", 1.0), rate=rate, requests=40_000, seed=servers)
    waits = found.waits_s["s"]
    assert mean(waits) == pytest.approx(mean_wait_s(servers, rate, 1.0), abs=3 * standard_error(waits))


def test_processor_sharing_has_the_mean_of_one_queue() -> None:
    # M/M/1 under processor sharing: mean time in the system 1 / (mu - lambda), as first come, first served.
    found = simulate_open(
        [Station("s", 10_000)], exponential("s", 1.0), rate=0.6, requests=40_000, speeds=[1.0], seed=3
    )
    assert mean(found.latencies_s) == pytest.approx(2.5, abs=3 * standard_error(found.latencies_s))


def test_littles_law_holds_in_a_closed_loop() -> None:
    found = simulate_closed([Station("s", 2)], exponential("s", 0.1), clients=5, requests=20_000)
    assert found.per_s * mean(found.latencies_s) == pytest.approx(5, rel=0.01)
    assert found.per_s == pytest.approx(20, rel=0.03)  # both servers are always busy


@pytest.mark.parametrize(("clients", "per_s"), [(1, 10.0), (2, 20.0), (4, 20.0)])
def test_two_cores_are_shared(clients: int, per_s: float) -> None:
    stations = [Station("a", 4), Station("b", 4)]
    flow = fixed([[Visit("a", 0.05)]], [[Visit("b", 0.05)]])
    assert run(stations, flow, clients, [1.0, 2.0]).per_s == pytest.approx(per_s, rel=0.01)


def test_two_busy_cores_may_do_less_than_twice() -> None:
    assert run([Station("a", 4)], fixed([[Visit("a", 0.1)]]), 4, [1.0, 1.3]).per_s == pytest.approx(13, rel=0.01)


@pytest.mark.parametrize("threads", [1, 2])
def test_work_on_half_a_core_takes_twice_as_long(threads: int) -> None:
    found = run([Station("a", threads=threads)], fixed([[Visit("a", 0.1)]]), 1, [0.5, 1.0])
    assert found.per_s == pytest.approx(5, rel=0.01)


@pytest.mark.parametrize("speeds", [[1.0, 2.0], [1.0, 1.3]])
def test_a_server_of_two_threads_has_its_time_alone_and_slows_others(speeds: list[float]) -> None:
    llm, other = Station("llm", threads=2), Station("other")
    alone = run([llm], fixed([[Visit("llm", 0.1)]]), 1, speeds)
    assert alone.per_s == pytest.approx(10, rel=0.01)
    # While both work three threads share the cores, so that each has a third of what they do.
    beside = run([llm, other], fixed([[Visit("llm", 0.1)], [Visit("other", 10.0)]]), 1, speeds)
    slowed_s = 0.1 * (speeds[1] / 2) / (speeds[1] / 3)
    assert mean(beside.latencies_s) == pytest.approx(slowed_s + 10.0 - slowed_s * speeds[1] / 3, rel=0.01)


def test_branches_run_side_by_side_and_a_phase_waits_for_all() -> None:
    stations = [Station("a"), Station("b"), Station("pause", None)]
    flow = fixed([[Visit("a", 0.1)], [Visit("b", 0.3)]], [[Visit("pause", 0.2)]])
    assert mean(run(stations, flow, 1, None).latencies_s) == pytest.approx(0.5)
    assert mean(run(stations, flow, 1, [1.0]).latencies_s) == pytest.approx(0.6)  # one core: 0.1 + 0.3, then the pause


def test_a_batch_pays_its_own_part_once() -> None:
    flow = fixed([[Visit("a", 0.01)]])
    alone = run([Station("a", 1, 8, 0.09)], flow, 1, None)
    shared = run([Station("a", 1, 8, 0.09)], flow, 8, None)
    assert alone.per_s == pytest.approx(10, rel=0.01)
    assert set(shared.batches["a"]) == {8}
    assert shared.per_s == pytest.approx(8 / 0.17, rel=0.01)


def run(stations: list[Station], flow: Flow, clients: int, speeds: list[float] | None) -> Simulated:
    return simulate_closed(stations, flow, clients=clients, requests=2000, speeds=speeds)
