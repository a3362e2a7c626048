"""What a service sets for Ray and Serve, and the ports that are its own."""

from __future__ import annotations

import os
import socket

import pytest

from deployments.environment import BLOCKS, FAST_PATH, reserved_ports, serve_environment
from rag.config import load_settings
from rag.errors import StageError


def listening(environment: dict[str, str]) -> dict[str, int]:
    """The ports at which one process or another listens, by variable."""
    return {name: int(value) for name, value in environment.items() if name.endswith("_PORT")}


def test_two_services_with_the_same_port_setting_share_no_port() -> None:
    settings = load_settings(profile="embedded")
    before = dict(os.environ)
    with serve_environment(settings):
        first = {name: value for name, value in os.environ.items() if before.get(name) != value}
        for name in first:
            del os.environ[name]  # another process has it not
        with serve_environment(settings):
            second = {name: os.environ[name] for name in first}
        os.environ.update(first)
    ports = [listening(one) for one in (first, second)]
    assert {"RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_HAPROXY_STATS_PORT"} <= ports[0].keys()
    assert not set(ports[0].values()) & set(ports[1].values())
    assert max(max(one.values()) for one in ports) < 32768
    assert dict(os.environ) == before


def test_what_is_set_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", "7")
    for name in FAST_PATH:
        monkeypatch.delenv(name, raising=False)
    with serve_environment(load_settings(profile="embedded")):
        assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "7"
        assert FAST_PATH.items() <= os.environ.items()
    assert os.environ["RAY_SERVE_HAPROXY_STATS_PORT"] == "7"
    assert not FAST_PATH.keys() & os.environ.keys()


def test_a_block_in_which_somebody_listens_is_passed_over_and_a_block_is_given_back() -> None:
    with reserved_ports(5) as ports:
        pass
    with socket.create_server(("127.0.0.1", ports[3])), reserved_ports(5) as others:
        assert not set(others) & set(ports)
    with reserved_ports(5) as again:
        assert again == ports


def test_a_machine_without_a_free_block_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.environment.BLOCKS", BLOCKS[3:4])
    with reserved_ports(0), pytest.raises(StageError, match="end other services"), reserved_ports(0):
        raise AssertionError("two services have the same ports")
