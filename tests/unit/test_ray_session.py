"""A Ray that is to be joined and is not there is told at once."""

from __future__ import annotations

import socket

import pytest

from deployments.ray_session import check_address, joined_address
from rag.errors import SettingsError


def test_an_address_where_nobody_listens_is_refused_with_its_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SettingsError, match=rf"no Ray answers at 127\.0\.0\.1:{port} .*RAY_ADDRESS"):
        check_address(f"127.0.0.1:{port}")


def test_an_address_that_is_no_host_and_port_is_left_to_ray() -> None:
    check_address("auto")


def test_an_address_where_somebody_listens_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")


def test_an_empty_ray_address_names_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert joined_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert joined_address() == "ray.example:6379"
