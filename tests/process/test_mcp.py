"""`rag mcp` as a client of the protocol's own SDK finds it: over stdin and stdout, and over HTTP."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from eval.ports import free_ports
from tests.http_fake import Reply, answered, citation, found, hit, problem, reply, serving

RAG = str(Path(sys.executable).with_name("rag"))
ANSWER = answered("It is 8000. [1]", citations=[citation(title="Guide", source="guide.pdf")])
ABSTAINED = answered("The documents hold no answer.", status="abstained", answer_source=None, reason="no_evidence")
HITS = found(
    hit(title="Guide", source="guide.pdf", page=3, text="The service listens on port 8000."),
    hit(title="Notes", source="notes.md", page=None, text="Another port is 8001."),
)


def over_stdio(url: str) -> Any:
    return stdio_client(StdioServerParameters(command=RAG, args=["mcp", "--url", url]))


def text_of(result: Any) -> str:
    (content,) = result.content
    text: str = content.text
    return text


async def test_the_tools_ask_and_search_over_stdin_and_stdout() -> None:
    with serving(ask=reply(ANSWER), search=reply(HITS)) as service:
        async with Client(over_stdio(service.url)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            answered = await client.call_tool("ask", {"question": "Which port?", "filter": 'lang == "en"'})
            found = await client.call_tool("search", {"query": "port", "collection": "notes", "top_k": 2})
            refused = await client.call_tool("search", {"query": "port", "top_k": 500})
    assert set(tools) == {"ask", "search"}
    assert tools["ask"].input_schema["required"] == ["question"]
    assert tools["ask"].annotations is not None
    assert tools["ask"].annotations.read_only_hint is True
    assert (answered.is_error, answered.structured_content) == (False, ANSWER)
    assert text_of(answered) == "It is 8000. [1]\n[1] “The service listens on port 8000.” (Guide, page 3, guide.pdf)"
    assert found.structured_content == HITS
    assert text_of(found).split("\n\n")[1] == "Notes, notes.md\nAnother port is 8001."
    assert refused.is_error
    assert "top_k" in text_of(refused)
    assert service.asked == [
        ("/ask", {"question": "Which port?", "collection": "default", "filter": 'lang == "en"'}),
        ("/search", {"query": "port", "collection": "notes", "filter": None, "top_k": 2}),
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        pytest.param(problem(422, "Input cannot be used", "no field 'acl'"), "no field 'acl'", id="refused"),
        pytest.param(problem(503, "Overloaded", "the queue is full"), "the queue is full", id="overloaded"),
    ],
)
async def test_what_the_service_refuses_is_the_tool_s_error_in_its_words(given: Reply, told: str) -> None:
    with serving(ask=given) as service:
        async with Client(over_stdio(service.url)) as client:
            result = await client.call_tool("ask", {"question": "Which port?"})
    assert result.is_error
    assert told in text_of(result)
    assert "Traceback" not in text_of(result)


async def test_an_abstention_is_no_error_and_a_missing_service_says_how_to_start_one() -> None:
    with serving(ask=reply(ABSTAINED)) as service:
        async with Client(over_stdio(service.url)) as client:
            abstained = await client.call_tool("ask", {"question": "Which port?"})
    async with Client(over_stdio(service.url)) as client:
        gone = await client.call_tool("ask", {"question": "Which port?"})
    assert (abstained.is_error, text_of(abstained)) == (False, "The documents hold no answer.")
    assert gone.is_error
    assert "rag serve" in text_of(gone)


def test_over_http_until_it_is_interrupted() -> None:
    async def ask() -> Any:
        async with Client(streamable_http_client(f"http://127.0.0.1:{port}/mcp")) as client:
            return await client.call_tool("ask", {"question": "Which port?"})

    (port,) = free_ports(1)
    with serving(ask=reply(ANSWER)) as service:
        command = [RAG, "mcp", "--url", service.url, "--http", "--port", str(port)]
        # As a shell starts it in the background: with SIGINT ignored.
        behind = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
        process = subprocess.Popen(behind, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            _wait_for(port, process)
            answered = asyncio.run(ask())
            taken = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        finally:
            process.send_signal(signal.SIGINT)
            out, told = process.communicate(timeout=30)
    assert answered.structured_content == ANSWER
    assert (process.returncode, taken.returncode, out) == (130, 2, "")
    assert "--port" in taken.stderr
    assert "Traceback" not in taken.stderr + told


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    ends_at = time.monotonic() + 60
    while True:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends_at, "it does not listen"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
