"""A Ray that is to be joined and is not there is told at once; one of our own leaves those alone that still run."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from deployments.ray_session import check_address, drop_old_sessions, joined_address
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


def test_of_old_sessions_only_those_go_whose_raylet_has_ended() -> None:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        sessions = [Path(folder, f"session_2026-01-0{day}") for day in range(1, 7)]
        for session in sessions:
            (session / "sockets").mkdir(parents=True)
        running, ended, *_ = sessions
        with socket.socket(socket.AF_UNIX) as raylet, socket.socket(socket.AF_UNIX) as killed:
            raylet.bind(str(running / "sockets" / "raylet"))
            raylet.listen()
            killed.bind(str(ended / "sockets" / "raylet"))
            killed.close()
            drop_old_sessions(Path(folder))
        assert sorted(Path(folder).iterdir()) == [running, *sessions[3:]]
