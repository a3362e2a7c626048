"""The `rag` command. Progress and logs go to stderr, results to stdout.

Exit status: 0 all well, 1 some inputs failed, 2 wrong usage or settings, 3 service or store not to be reached.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from rag.config import Settings, load_settings
from rag.errors import DeadlineError, RagError, StageError, StoreUnavailableError
from rag.profiles import PROFILES

UNREACHABLE = (StoreUnavailableError, StageError, DeadlineError)


def _say(sentence: str) -> None:
    click.echo(sentence, err=True)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None:
        context.ensure_object(dict)[parameter.name] = value


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --profile, before a command's name or behind it, where they win."""
    config = click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_keep,
        expose_value=False,
        help="Settings as a YAML file.",
    )
    profile = click.option(
        "--profile",
        type=click.Choice(sorted(PROFILES)),
        callback=_keep,
        expose_value=False,
        help="Which defaults to start from.  [default: embedded]",
    )
    return config(profile(command))


_filter_option = click.option(
    "--filter", "expression", metavar="EXPR", help="""Only documents that it means, as: lang == "ko" and year >= 2024"""
)
_url_option = click.option("--url", help="The service.  [default: http://127.0.0.1:8000, or as the settings say]")


def _settings(context: click.Context, **overrides: Any) -> Settings:
    kept = context.obj or {}
    return load_settings(kept.get("config"), kept.get("profile"), **overrides)


def _url(context: click.Context, given: str | None) -> str:
    """The service to talk to: the one given, else where `rag serve` with the same settings would listen."""
    if given is not None:
        return given
    serve = _settings(context).serve
    host = "127.0.0.1" if serve.host in ("0.0.0.0", "::") else serve.host
    return f"http://[{host}]:{serve.port}" if ":" in host else f"http://{host}:{serve.port}"


def _edge(command: Callable[..., None]) -> Callable[..., None]:
    """The process's edge: an error of ours becomes a sentence and an exit status."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except RagError as error:
            _say(f"rag: {error}")
            sys.exit(3 if isinstance(error, UNREACHABLE) else 2)
        except KeyboardInterrupt:
            _say("rag: stopped")
            sys.exit(130)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@_settings_options
@click.version_option(package_name="rag", prog_name="rag")
def main() -> None:
    """Answers questions about your own documents, with verbatim citations."""


@main.command()
@_settings_options
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on.  [default: 8000]")
@click.pass_context
@_edge
def serve(context: click.Context, host: str | None, port: int | None) -> None:
    """Start the service; stops cleanly on Ctrl-C."""
    from deployments.launch import running_service
    from rag.models import locate_model

    address = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = _settings(context, **({"serve": address} if address else {}))
    for reference in (settings.embedder.model, settings.reranker.model, settings.generator.model):
        locate_model(reference, settings.cache_dir)
    # Explicitly, since a shell starts a background command with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with running_service(settings, _say) as running:
            took = ", ".join(f"{name} {seconds:g} s" for name, seconds in running.steps_s.items())
            running.say(f"ready: {running.url}  ({took})\nAsk with: rag ask QUESTION   Stop with Ctrl-C.")
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@main.command()
@_settings_options
@click.argument("paths", nargs=-1, required=True)
@click.option("--collection", default="default", show_default=True)
@click.option("--acl", multiple=True, metavar="GROUP", help="Groups that may see the documents.")
@click.option("--metadata", multiple=True, metavar="K=V", help="Stored with each document; a list by its name again.")
@click.option("--prune", is_flag=True, help="Remove documents whose file is gone from the folders given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@_edge
def ingest(
    context: click.Context,
    paths: tuple[str, ...],
    collection: str,
    acl: tuple[str, ...],
    metadata: tuple[str, ...],
    prune: bool,
    as_json: bool,
) -> None:
    """Read files, folders and globs into a collection."""
    pairs = [_pair(one) for one in metadata]
    from ingest.run import run_ingest
    from rag.metadata import read_metadata

    settings = _settings(context)
    report = run_ingest(
        settings,
        paths,
        collection=collection,
        acl=acl,
        metadata=read_metadata(pairs, settings.store.metadata_fields),
        prune=prune,
        say=_say,
    )
    if as_json:
        _print_json(report.as_dict())
    else:
        click.echo(
            f"{report.added} added, {report.replaced} replaced, {report.unchanged} unchanged, "
            f"{report.removed} removed, {report.failed} failed; {report.chunks} chunks in {report.seconds:.1f} s"
        )
        for failure in report.failures:
            _say(f"failed: {failure.source}: {failure.reason}")
    if report.failed:
        sys.exit(1)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text!r} is not of the form k=v", param_hint="--metadata")
    return name, value


@main.command()
@_settings_options
@click.argument("question")
@click.option("--collection", default="default", show_default=True)
@_filter_option
@_url_option
@click.option("--json", "as_json", is_flag=True, help="The whole response object on stdout.")
@click.pass_context
@_edge
def ask(
    context: click.Context, question: str, collection: str, expression: str | None, url: str | None, as_json: bool
) -> None:
    """Ask a question; the answer streams, then its citations follow."""
    from rag.client import ServiceClient

    body = {"question": question, "collection": collection, "filter": expression}
    client = ServiceClient(_url(context, url))
    if as_json:
        _print_json(client.ask(body))
        return
    for name, data in client.stream(body):
        if name == "token":
            click.echo(data["text"], nl=False)
        elif name == "done":
            click.echo()
            _show_citations(data)


def _show_citations(response: dict[str, Any]) -> None:
    for citation in response["citations"]:
        page = f", page {citation['page']}" if citation["page"] is not None else ""
        click.echo(f"\n[{citation['marker']}] {citation['title']}{page}  ({citation['source']})")
        click.echo("    " + "\n    ".join(f"“{citation['quote']}”".splitlines()))
    for span in response["unsupported"]:
        click.echo(f"\nNot supported by the documents: {span['text']}")
    if response["degraded"]:
        _say(f"left out: {', '.join(response['degraded'])}")


@main.command()
@_settings_options
@click.argument("query")
@click.option("--top-k", type=click.IntRange(1, 200), default=10, show_default=True)
@click.option("--collection", default="default", show_default=True)
@_filter_option
@_url_option
@click.option("--json", "as_json", is_flag=True, help="The whole response object on stdout.")
@click.pass_context
@_edge
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
    from rag.client import ServiceClient

    body = {"query": query, "top_k": top_k, "collection": collection, "filter": expression}
    found = ServiceClient(_url(context, url)).search(body)
    if as_json:
        _print_json(found)
        return
    for rank, hit in enumerate(found["hits"], start=1):
        page = f", page {hit['page']}" if hit["page"] is not None else ""
        click.echo(f"{rank:3}. {hit['score']:.3f}  {hit['title']}{page}  ({hit['source']})")
        click.echo("     " + " ".join(hit["text"].split())[:200])
    if found["degraded"]:
        _say(f"left out: {', '.join(found['degraded'])}")


@main.group()
def collections() -> None:
    """List, delete or rebuild collections; works whether or not the service runs."""


@collections.command("list")
@_settings_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@_edge
def list_collections(context: click.Context, as_json: bool) -> None:
    """Each collection and its index version."""
    from ingest.fingerprint import index_fingerprint
    from rag.connect import open_store

    settings = _settings(context)
    with open_store(settings, index_fingerprint(settings)) as store:
        found = [{"name": name, "index_version": store.fingerprint(name).index_version} for name in store.collections()]
    if as_json:
        _print_json({"collections": found})
    else:
        for one in found:
            click.echo(f"{one['name']}  {one['index_version']}")


@collections.command("delete")
@_settings_options
@click.argument("name")
@click.pass_context
@_edge
def delete_collection(context: click.Context, name: str) -> None:
    """Remove a collection with all that is in it; the files it was made of stay."""
    from ingest.fingerprint import index_fingerprint
    from rag.connect import open_store

    settings = _settings(context)
    with open_store(settings, index_fingerprint(settings)) as store:
        store.drop_collection(name)
    click.echo(f"deleted {name}")


@collections.command("reindex")
@_settings_options
@click.argument("name")
@click.option("--embedder", metavar="MODEL", help="The embedder to build with.  [default: as the settings say]")
@click.option("--drop-old", is_flag=True, help="Build nothing; remove every version but the current one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@_edge
def reindex_collection(context: click.Context, name: str, embedder: str | None, drop_old: bool, as_json: bool) -> None:
    """Build a collection anew with another embedder or splitter, while questions go on; run again, it resumes."""
    from ingest.run import run_reindex

    if drop_old:
        if embedder:
            raise click.UsageError("--drop-old builds nothing and takes no --embedder")
        _drop_old_versions(_settings(context), name, as_json)
        return
    settings = _settings(context, **({"embedder": {"model": embedder}} if embedder else {}))
    report = run_reindex(settings, name, say=_say)
    if as_json:
        _print_json(report.as_dict())
    else:
        click.echo(report.sentence())
        for failure in report.copied.failures:
            _say(f"failed: {failure.source}: {failure.reason}")
    if report.copied.failures:
        sys.exit(1)


def _drop_old_versions(settings: Settings, name: str, as_json: bool) -> None:
    from ingest.fingerprint import index_fingerprint
    from ingest.reindex import drop_old_versions
    from rag.connect import open_store

    with open_store(settings, index_fingerprint(settings)) as store:
        dropped = drop_old_versions(name, store, settings.store.timeout_s)
    if as_json:
        _print_json({"collection": name, "dropped_versions": dropped})
    else:
        click.echo(f"{name}: {dropped} old versions removed")


@main.command()
@_settings_options
@_url_option
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@_edge
def doctor(context: click.Context, url: str | None, as_json: bool) -> None:
    """What is installed, what would be used, what is wrong and the command that mends it."""
    from rag.doctor import examine

    findings = examine(_settings(context), _url(context, url))
    if as_json:
        _print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.ok else 'BAD '} {finding.subject}: {finding.found}")
            if not finding.ok:
                click.echo(f"       -> {finding.remedy}")
    if not all(finding.ok for finding in findings):
        sys.exit(1)


if __name__ == "__main__":
    main()
