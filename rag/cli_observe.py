"""`rag trace` and `rag profile-memory`: where a request's time went, and a replica's memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rag.cli_edge import edge, print_json, read_settings, say, settings_options

if TYPE_CHECKING:
    from deployments.timeline import Timeline

BAR_CHARS = 30
MIB = 2**20


@click.command()
@settings_options
@click.argument("request_id")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@edge
def trace(context: click.Context, request_id: str, as_json: bool) -> None:
    """Where the time of a request went, by the logs of the service's replicas; works while it runs and after.

    REQUEST_ID is the header X-Request-ID of the response.
    """
    from deployments.log_lines import loki_query, read_request
    from deployments.timeline import timelines

    settings = read_settings(context)
    lines = read_request(settings, request_id, say)
    if not lines:
        say(
            f"rag: no log of the services that were started in {settings.data_dir} names the request {request_id!r}: "
            "give the X-Request-ID of its response, and set RAG_DATA_DIR as its service has it. A start deletes "
            f"the logs of all but the last three; where Loki collects them, ask it for {loki_query(request_id)}"
        )
        sys.exit(1)
    found = timelines(lines)
    if as_json:
        print_json({"request_id": request_id, "requests": [one.as_dict() for one in found]})
        return
    for one in found:
        _show(request_id, one)


def _show(request_id: str, found: Timeline) -> None:
    facts = ", ".join(f"{name} {value}" for name, value in found.facts.items() if name != "usage")
    click.echo(f"{request_id}  {found.started_at}  {found.duration_ms:,.1f} ms")
    click.echo(facts or "no outcome in the log: the question has not ended, or its orchestrator's replica was killed")
    click.echo(f"\n{'start ms':>11}  {'took ms':>10}  {'what':26}  {'replica':32}")
    for one in found.intervals:
        start = f"{'~' if one.kind == 'stage' else ''}{one.start_ms:,.1f}"
        name = one.name if one.kind != "call" else f"  {one.name}()"
        what = f"{name} {one.status}" if one.status not in (None, "OK") else name
        bar = _bar(one.start_ms, one.duration_ms, found.duration_ms)
        click.echo(f"{start:>11}  {one.duration_ms:>10,.1f}  {what:26}  {one.replica:32}  {bar}".rstrip())
    for left_out in found.left_out:
        click.echo(f"\nleft out: {left_out.stage}: {'; '.join(left_out.reasons) or 'no line of the log says why'}")
    told = {reason for left_out in found.left_out for reason in left_out.reasons}
    for warned in found.warnings:
        if warned.message not in told:
            click.echo(f"\nat {warned.at_ms:,.1f} ms, {warned.replica}: {warned.message}")
    click.echo()


def _bar(start_ms: float, duration_ms: float, whole_ms: float) -> str:
    scale = BAR_CHARS / whole_ms if whole_ms else 0.0
    before = min(max(int(start_ms * scale), 0), BAR_CHARS - 1)
    return " " * before + "█" * max(1, min(round(duration_ms * scale), BAR_CHARS - before))


@click.command("profile-memory")
@settings_options
@click.argument("stage")
@click.option("--seconds", type=click.FloatRange(1, 3600), default=30.0, show_default=True, help="How long.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder of the HTML file.  [default: this one]",
)
@click.pass_context
@edge
def profile_memory(context: click.Context, stage: str, seconds: float, out: Path) -> None:
    """What a running replica of STAGE allocates, as a flamegraph by memray; nothing restarts.

    STAGE is one of orchestrator, embedder, retriever, reranker, generator and indexer; of its replicas it is the one
    with most memory.
    """
    from deployments.ray_session import service_address

    address = service_address(read_settings(context))
    from deployments.memory_profile import profile_memory as profile

    say(f"tracking for {seconds:g} s what the {stage} allocates")
    made = profile(address, stage, seconds, out)
    click.echo(
        f"{made.replica} held at most {made.peak_bytes / MIB:,.1f} MiB of what it allocated in {seconds:g} s; "
        f"before, its process had {made.resident_bytes / MIB:,.0f} MiB\n{made.path}"
    )
