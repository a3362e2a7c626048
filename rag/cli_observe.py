"""`rag trace` and `rag profile-memory`: where a request's time went, and a replica's memory."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rag.cli_edge import edge, print_json, read_settings, say, settings_options

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
    from deployments.timeline import table, timelines

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
        click.echo("\n".join([f"{request_id}  {one.started_at}", *table(one), ""]))


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
