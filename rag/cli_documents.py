"""`rag documents` and `rag collections`: on the store itself, so they work whether or not the service runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from rag.cli_edge import edge, print_json, read_settings, say, settings_options

if TYPE_CHECKING:
    from rag.store import MilvusStore
    from rag.types import IndexFingerprint

_collection_option = click.option("--collection", default="default", show_default=True)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@contextmanager
def _opened(context: click.Context) -> Iterator[tuple[MilvusStore, IndexFingerprint]]:
    """The settings' store, and what a collection made now would be built with."""
    from ingest.fingerprint import index_fingerprint
    from rag.connect import open_store

    settings = read_settings(context)
    fingerprint = index_fingerprint(settings)
    with open_store(settings, fingerprint) as store:
        yield store, fingerprint


@click.group()
def documents() -> None:
    """List, show or delete documents; works whether or not the service runs."""


@documents.command("list")
@settings_options
@_collection_option
@_json_option
@click.pass_context
@edge
def list_command(context: click.Context, collection: str, as_json: bool) -> None:
    """Each document of a collection, by source."""
    from ingest.documents import document_body, list_documents

    with _opened(context) as (store, _):
        found = list_documents(store, collection, None)
    if as_json:
        print_json({"documents": [document_body(one) for one in found]})
    else:
        for one in found:
            click.echo(f"{one.document_id}  {one.chunks:5} chunks  {one.source}")


@documents.command("show")
@settings_options
@click.argument("document_id", metavar="ID")
@_collection_option
@click.option("--text", "with_text", is_flag=True, help="Its text too, at the offsets that citations name.")
@_json_option
@click.pass_context
@edge
def show_command(context: click.Context, document_id: str, collection: str, with_text: bool, as_json: bool) -> None:
    """What is stored of a document."""
    from ingest.documents import document_body, find_document
    from ingest.rebuild import rebuild_document

    with _opened(context) as (store, _):
        document = find_document(store, collection, document_id, None)
        chunks = store.chunks(collection, document_id) if with_text else []
    body = document_body(document)
    if with_text:
        body["text"] = rebuild_document(document, chunks).text
    if as_json:
        print_json({"documents": [body]})
    else:
        for name, value in body.items():
            click.echo(f"{name}: {_shown(value)}")


@documents.command("delete")
@settings_options
@click.argument("document_id", metavar="ID")
@_collection_option
@_json_option
@click.pass_context
@edge
def delete_command(context: click.Context, document_id: str, collection: str, as_json: bool) -> None:
    """Remove a document from a collection; the file that it was made of stays."""
    from ingest.documents import document_body
    from ingest.remove import remove_document

    with _opened(context) as (store, _):
        deleted = remove_document(store, read_settings(context), collection, document_id, None)
    if as_json:
        print_json({"documents": [document_body(deleted)]})
    else:
        click.echo(f"deleted {document_id}  {deleted.source}")


@click.group()
def collections() -> None:
    """List, make or delete collections; works whether or not the service runs."""


@collections.command("list")
@settings_options
@_json_option
@click.pass_context
@edge
def list_collections(context: click.Context, as_json: bool) -> None:
    """Each collection and its index version; none where another program or other settings made it: reindex it."""
    from rag.listing import index_versions

    with _opened(context) as (store, _):
        found = [{"name": name, "index_version": version} for name, version in index_versions(store).items()]
    if as_json:
        print_json({"collections": found})
    else:
        for one in found:
            click.echo(f"{one['name']}  {_shown(one['index_version'])}")


@collections.command("create")
@settings_options
@click.argument("name")
@_json_option
@click.pass_context
@edge
def create_collection(context: click.Context, name: str, as_json: bool) -> None:
    """Make an empty collection; nothing happens where it is there and was built with the same settings."""
    with _opened(context) as (store, fingerprint):
        store.ensure_collection(name, fingerprint)
        made = _collection_body(store, name)
    if as_json:
        print_json({"collections": [made]})
    else:
        click.echo(f"{made['name']}  {made['index_version']}")


@collections.command("delete")
@settings_options
@click.argument("name")
@_json_option
@click.pass_context
@edge
def delete_collection(context: click.Context, name: str, as_json: bool) -> None:
    """Remove a collection with all that is in it; the files it was made of stay."""
    from ingest.remove import remove_collection

    with _opened(context) as (store, _):
        remove_collection(store, read_settings(context), name)
    if as_json:
        print_json({"collections": [{"name": name}]})
    else:
        click.echo(f"deleted {name}")


def _collection_body(store: MilvusStore, name: str) -> dict[str, Any]:
    return {"name": name, "index_version": store.fingerprint(name).index_version}


def _shown(value: object) -> str:
    """A field's value on a line of its own."""
    match value:
        case None:
            return "-"
        case tuple() | list():
            return ", ".join(map(str, value)) or "-"
        case dict():
            return ", ".join(f"{name}={entry}" for name, entry in value.items()) or "-"
        case _:
            return str(value)


@collections.command("reindex")
@settings_options
@click.argument("name")
@click.option("--embedder", metavar="MODEL", help="The embedder to build with.  [default: as the settings say]")
@click.option("--drop-old", is_flag=True, help="Build nothing; remove every version but the current one.")
@_json_option
@click.pass_context
@edge
def reindex_collection(context: click.Context, name: str, embedder: str | None, drop_old: bool, as_json: bool) -> None:
    """Build a collection anew with another embedder or splitter, while questions go on; run again, it resumes."""
    from ingest.run import run_reindex

    if drop_old:
        if embedder:
            raise click.UsageError("--drop-old builds nothing and takes no --embedder")
        _drop_old_versions(context, name, as_json)
        return
    settings = read_settings(context, **({"embedder": {"model": embedder}} if embedder else {}))
    report = run_reindex(settings, name, say=say)
    if as_json:
        print_json(report.as_dict())
    else:
        click.echo(report.sentence())
        for failure in report.copied.failures:
            say(f"failed: {failure.source}: {failure.reason}")
    if report.copied.failures:
        sys.exit(1)


def _drop_old_versions(context: click.Context, name: str, as_json: bool) -> None:
    from ingest.reindex import drop_old_versions

    with _opened(context) as (store, _):
        dropped = drop_old_versions(name, store, read_settings(context).store.timeout_s)
    if as_json:
        print_json({"collection": name, "dropped_versions": dropped})
    else:
        click.echo(f"{name}: {dropped} old versions removed")
