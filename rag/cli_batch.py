"""`rag ask-batch`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from rag.cli_edge import edge, print_json, read_settings, say, settings_options


@click.command("ask-batch")
@settings_options
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
@edge
def ask_batch(context: click.Context, source: Path, target: Path, as_json: bool) -> None:
    """Ask many questions, a JSON object a line: {"question": ..., "id": ...}, or other fields of /ask.

    OUT gets a line for each, in the order in which they are ready. Run again, it asks what is not answered yet.
    """
    from deployments.ask_batch import ask_batch as ask_all

    report = ask_all(read_settings(context), source, target, say)
    if as_json:
        print_json(report.as_dict())
    else:
        click.echo(
            f"{report.answered} answered, {report.abstained} abstained, {len(report.failures)} failed, "
            f"{report.known} known; {report.seconds:.1f} s"
        )
        for failure in report.failures:
            say(f"failed: {failure['id']}: {failure['reason']}")
    if report.failures:
        sys.exit(1)
