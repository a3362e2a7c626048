"""A Ray that is to be joined and is not there is told at once; one of our own leaves those alone that still run."""

from __future__ import annotations

import platform
import re
import socket
import tempfile
from pathlib import Path

import pytest
import ray
from ray._private.utils import check_version_info

from deployments.ray_session import blaming_the_setting, check_address, drop_old_sessions, join_ray, joined_address
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


@pytest.mark.parametrize(
    ("given", "joined"), [(None, None), ("", None), ("local", None), ("ray.example:6379", "ray.example:6379")]
)
def test_an_empty_or_local_ray_address_names_no_ray(
    given: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ADDRESS", given)
    assert joined_address() == joined


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


def test_what_is_no_address_is_refused_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(SettingsError, match=r"the Ray at nowhere cannot be joined \(.+\); correct RAY_ADDRESS"):
        join_ray("nowhere")


def test_a_ray_of_another_version_is_refused_with_both_versions() -> None:
    its = {"ray_version": "2.9.3", "python_version": platform.python_version()}
    both = rf"Ray: 2\.9\.3 .*Ray: {re.escape(ray.__version__)} .*RAY_ADDRESS"
    with pytest.raises(SettingsError, match=both), blaming_the_setting("ray.example:6379"):
        check_version_info(its, "node 127.0.0.1")
