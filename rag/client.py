"""The service as a client sees it: what the `rag` command asks over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from rag.errors import DeadlineError, InputError, StoreUnavailableError

TIMEOUT = httpx.Timeout(330.0, connect=5.0)  # the longest deadline that the service gives, and a little

_NOBODY = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError, httpx.InvalidURL)


class ServiceClient:
    """Calls one service. Raises InputError for what it refuses, StoreUnavailableError when it is not to be had."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /ask`: the response object."""
        return self._post("/ask", body)

    def search(self, body: dict[str, Any]) -> dict[str, Any]:
        """`POST /search`: the response object."""
        return self._post("/search", body)

    def info(self) -> dict[str, Any]:
        """`GET /info`."""
        with self._reached():
            return self._checked(httpx.get(f"{self._url}/info", timeout=5.0))

    def stream(self, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """`POST /ask` as events (name, data); the last is `done`."""
        with (
            self._reached(),
            httpx.stream("POST", f"{self._url}/ask", json={**body, "stream": True}, timeout=TIMEOUT) as response,
        ):
            if response.status_code != 200:
                response.read()
                self._checked(response)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise self._no_service(response)
            name = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data: dict[str, Any] = json.loads(value)
                    if name == "error":
                        raise _as_error(data)
                    yield name, data
            if name != "done":
                raise StoreUnavailableError(f"the service at {self._url} broke off its answer; ask again")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._reached():
            return self._checked(httpx.post(f"{self._url}{path}", json=body, timeout=TIMEOUT))

    def _reached(self) -> _Reached:
        return _Reached(self._url)

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        kind = response.headers.get("content-type", "").partition(";")[0]
        if response.status_code == 200 and kind == "application/json":
            content: dict[str, Any] = response.json()
            return content
        if kind == "application/problem+json":
            raise _as_error(response.json())
        raise self._no_service(response)

    def _no_service(self, response: httpx.Response) -> StoreUnavailableError:
        kind = response.headers.get("content-type", "no content")
        return StoreUnavailableError(
            f"{self._url} answered {response.status_code} with {kind} and is no rag service; check --url"
        )


class _Reached:
    """Turns a connection's failure into a sentence that says what to do."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _NOBODY):
            raise StoreUnavailableError(
                f"no service answers at {self._url} ({error or type(error).__name__}); "
                "start one with `rag serve`, or set --url"
            ) from error
        if isinstance(error, httpx.HTTPError):
            raise StoreUnavailableError(
                f"the connection to {self._url} broke ({error or type(error).__name__}); ask again"
            ) from error


def _as_error(problem: dict[str, Any]) -> Exception:
    sentence = f"{problem['title']}: {problem['detail']}"
    if problem["status"] == 504:
        return DeadlineError(sentence)
    return InputError(sentence) if problem["status"] < 500 else StoreUnavailableError(sentence)
