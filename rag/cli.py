"""The `rag` command. Progress and logs go to stderr, results to stdout.

Exit status: 0 all well, 1 some inputs failed, 2 wrong usage or settings, 3 service or store not to be reached.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import click

from rag.cli_batch import ask_batch
from rag.cli_documents import collections, documents
from rag.cli_edge import edge, filter_option, find_url, print_json, read_settings, say, settings_options, url_option
from rag.cli_eval import evaluation
from rag.cli_observe import profile_memory, trace
from rag.wire import AnswerBody, DoneEvent, TokenEvent


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@settings_options
@click.version_option(package_name="rag", prog_name="rag")
def main() -> None:
    """Answers questions about your own documents, with verbatim citations."""


@main.command()
@settings_options
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on.  [default: 8000]")
@click.pass_context
@edge
def serve(context: click.Context, host: str | None, port: int | None) -> None:
    """Start the service; stops cleanly on Ctrl-C."""
    from deployments.launch import running_service
    from rag.models import locate_model

    address = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = read_settings(context, **({"serve": address} if address else {}))
    for reference in settings.model_references:
        locate_model(reference, settings.cache_dir)
    # Explicitly, since a shell starts a background command with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with running_service(settings, say) as running:
            took = ", ".join(f"{name} {seconds:g} s" for name, seconds in running.steps_s.items())
            running.say(
                f"ready: {running.url}  ({took})\nMetrics: {' '.join(running.metrics_urls)}\n"
                "Ask with: rag ask QUESTION   Stop with Ctrl-C."
            )
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@main.command()
@settings_options
@click.argument("paths", nargs=-1, required=True)
@click.option("--collection", default="default", show_default=True)
@click.option("--acl", multiple=True, metavar="GROUP", help="Groups that may see the documents.")
@click.option("--metadata", multiple=True, metavar="K=V", help="Stored with each document; a list by its name again.")
@click.option("--pdf-password", "pdf_passwords", multiple=True, help="Tried on encrypted PDFs; may be given again.")
@click.option("--ocr", is_flag=True, help="Read scanned PDF pages by Tesseract; needs the extra `ocr`.")
@click.option("--prune", is_flag=True, help="Remove documents whose file is gone from the folders given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@edge
def ingest(
    context: click.Context,
    paths: tuple[str, ...],
    collection: str,
    acl: tuple[str, ...],
    metadata: tuple[str, ...],
    pdf_passwords: tuple[str, ...],
    ocr: bool,
    prune: bool,
    as_json: bool,
) -> None:
    """Read files, folders and globs into a collection."""
    pairs = [_pair(one, "--metadata") for one in metadata]
    from deployments.bulk import prepare_in_bulk
    from ingest.run import run_ingest
    from rag.metadata import read_metadata

    reading: dict[str, Any] = {"pdf_passwords": pdf_passwords} if pdf_passwords else {}
    reading |= {"ocr": True} if ocr else {}
    settings = read_settings(context, **({"ingest": reading} if reading else {}))
    report = run_ingest(
        settings,
        paths,
        collection=collection,
        acl=acl,
        metadata=read_metadata(pairs, settings.store.metadata_fields),
        prune=prune,
        choose_prepare=prepare_in_bulk,
        say=say,
    )
    if as_json:
        print_json(report.as_dict())
    else:
        click.echo(
            f"{report.added} added, {report.replaced} replaced, {report.unchanged} unchanged, "
            f"{report.removed} removed, {report.failed} failed; {report.chunks} chunks in {report.seconds:.1f} s"
        )
        for failure in report.failures:
            say(f"failed: {failure.source}: {failure.reason}")
    if report.failed:
        sys.exit(1)


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not of the form k=v", param_hint=option)
    return name, value


@main.command()
@settings_options
@click.argument("question")
@click.option("--collection", default="default", show_default=True)
@filter_option
@url_option
@click.option("--json", "as_json", is_flag=True, help="The whole response object on stdout.")
@click.pass_context
@edge
def ask(
    context: click.Context, question: str, collection: str, expression: str | None, url: str | None, as_json: bool
) -> None:
    """Ask a question; the answer streams, then its citations follow."""
    from rag.client import Client

    with Client(find_url(context, url)) as client:
        if as_json:
            print_json(client.ask(question, collection=collection, filter=expression).as_sent())
            return
        for event in client.stream(question, collection=collection, filter=expression):
            match event:
                case TokenEvent(text=text):
                    click.echo(text, nl=False)
                case DoneEvent():
                    click.echo()
                    _show_citations(event)


def _show_citations(answer: AnswerBody) -> None:
    for citation in answer.citations:
        page = f", page {citation.page}" if citation.page is not None else ""
        click.echo(f"\n[{citation.marker}] {citation.title}{page}  ({citation.source})")
        click.echo("    " + "\n    ".join(f"“{citation.quote}”".splitlines()))
    for span in answer.unsupported:
        click.echo(f"\nNot supported by the documents: {span.text}")
    if answer.degraded:
        say(f"left out: {', '.join(answer.degraded)}")


@main.command()
@settings_options
@click.argument("query")
@click.option("--top-k", type=click.IntRange(1, 200), default=10, show_default=True)
@click.option("--collection", default="default", show_default=True)
@filter_option
@url_option
@click.option("--json", "as_json", is_flag=True, help="The whole response object on stdout.")
@click.pass_context
@edge
def search(
    context: click.Context,
    query: str,
    top_k: int,
    collection: str,
    expression: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Search only: passages, best first."""
    from rag.client import Client

    with Client(find_url(context, url)) as client:
        found = client.search(query, top_k=top_k, collection=collection, filter=expression)
    if as_json:
        print_json(found.as_sent())
        return
    for rank, hit in enumerate(found.hits, start=1):
        page = f", page {hit.page}" if hit.page is not None else ""
        click.echo(f"{rank:3}. {hit.score:.3f}  {hit.title}{page}  ({hit.source})")
        click.echo("     " + " ".join(hit.text.split())[:200])
    if found.degraded:
        say(f"left out: {', '.join(found.degraded)}")


@main.command()
@settings_options
@url_option
@click.option("--http", is_flag=True, help="Over HTTP at /mcp, not over stdin and stdout.")
@click.option("--host", default="127.0.0.1", show_default=True, help="With --http: address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8765, show_default=True, help="With --http.")
@click.pass_context
@edge
def mcp(context: click.Context, url: str | None, http: bool, host: str, port: int) -> None:
    """An MCP server with the tools ask and search, over a running service."""
    from rag.client import Client
    from rag.mcp_server import HTTP_PATH, create_server, serve_http

    service = find_url(context, url)
    with Client(service) as client:
        server = create_server(client)
        if not http:
            server.run("stdio")
            return
        signal.signal(signal.SIGINT, _interrupt)  # explicitly, as in `serve`
        say(f"MCP at http://{host}:{port}{HTTP_PATH} for the service at {service}; stop with Ctrl-C")
        serve_http(server, host, port)


@main.command()
@settings_options
@click.argument("weights", nargs=-1, required=True, metavar="LLM=WEIGHT...")
@url_option
@click.pass_context
@edge
def split(context: click.Context, weights: tuple[str, ...], url: str | None) -> None:
    """Share questions that name no LLM anew among those that run; nothing restarts.

    It holds until the service stops; the setting `split` is what it starts with.
    """
    from rag.client import Client
    from rag.split import check_split

    pairs = [_pair(one, "LLM=WEIGHT") for one in weights]
    try:
        given = {name: float(weight) for name, weight in pairs}
        with Client(find_url(context, url)) as client:
            check_split(given, client.info().models.generators)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="LLM=WEIGHT") from error
    from deployments.ray_session import service_address

    address = service_address(read_settings(context))
    from deployments.redeploy import change_live

    change_live(address, {"split": given})
    for llm, share in given.items():
        click.echo(f"{share / sum(given.values()):.1%}  {llm}")


@main.command("set")
@settings_options
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.pass_context
@edge
def set_live(context: click.Context, changes: tuple[str, ...]) -> None:
    """Change settings of a running service, such as evidence.min_confidence=0.6; nothing restarts.

    It holds until the service stops; what a service starts with are its settings.
    """
    given: dict[str, dict[str, object]] = {}
    for one in changes:
        name, value = _pair(one, "NAME=VALUE")
        group, _, inner = name.partition(".")
        if group == "split":
            raise click.BadParameter("the shares of LLMs are changed by `rag split`", param_hint="NAME=VALUE")
        try:
            given.setdefault(group, {})[inner] = json.loads(value)
        except ValueError as error:
            raise click.BadParameter(
                f"{value!r} is no number; `null` is none at all", param_hint="NAME=VALUE"
            ) from error
    settings = read_settings(context)
    settings.with_live(given)  # a misspelt name is said at once
    from deployments.ray_session import service_address

    address = service_address(settings)
    from deployments.redeploy import change_live

    change_live(address, given)
    for one in changes:
        click.echo(one)


main.add_command(ask_batch)
main.add_command(documents)
main.add_command(collections)
main.add_command(evaluation)
main.add_command(trace)
main.add_command(profile_memory)


@main.command()
@settings_options
@url_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@edge
def doctor(context: click.Context, url: str | None, as_json: bool) -> None:
    """What is installed, what would be used, what is wrong and the command that mends it."""
    from rag.doctor import examine

    findings = examine(read_settings(context), find_url(context, url))
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.subject}: {finding.found}")
            if not finding.ok:
                click.echo(f"       -> {finding.remedy}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
