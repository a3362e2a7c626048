"""`rag eval`: numbers about retrieval, sets to measure it with, and comparisons of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from rag.cli_edge import edge, print_json, read_settings, say, settings_options
from rag.errors import SettingsError

STAGES = ("lexical", "dense", "fused", "rerank", "blend")
_MEASURES = ("ir_measures", "scipy")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def _out_option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("build/eval", name),
        show_default=True,
        help="Where the report goes.",
    )


@click.group("eval")
def evaluation() -> None:
    """Measure retrieval over labelled data sets, or over one made from a collection; compare two measurements."""


def _split_stages(_: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    stages = tuple(value.split(","))
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(STAGES)}", param=parameter)
    return stages


def _split_depths(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        depths = tuple(map(int, value.split(","))) if value else ()
    except ValueError:
        depths = (0,)
    if depths and not 1 <= min(depths) <= max(depths) <= 1000:
        raise click.BadParameter(f"{value!r} is no list of numbers from 1 to 1000 like 10,50,100", param=parameter)
    return depths


def _split_blends(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...]:
    try:
        blends = tuple(map(float, value.split(","))) if value else ()
    except ValueError:
        blends = (-1.0,)
    if not all(0 <= blend <= 1 for blend in blends):
        raise click.BadParameter(f"{value!r} is no list of shares from 0 to 1 like 0.25,0.5", param=parameter)
    return blends


@evaluation.command("retrieval")
@settings_options
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@_out_option("retrieval")
@click.option("--pool", is_flag=True, help="Measure all sets as one corpus, too.")
@click.option("--queries", type=click.IntRange(min=1), help="Ask so many of each set at most, the same every time.")
@click.option(
    "--stages", callback=_split_stages, default=",".join(STAGES), show_default=True, help="Which stages to measure."
)
@click.option(
    "--depth", "depths", callback=_split_depths, metavar="N,...", help="Hits of each search, and candidates reranked."
)
@click.option(
    "--blend", "blends", callback=_split_blends, metavar="B,...", help="Shares of the reranker beside the settings'."
)
@click.option("--service", metavar="URL", help="Measure this service's /search in place of the settings' models here.")
@_json_option
@click.pass_context
@edge
def retrieval_command(
    context: click.Context,
    datasets: tuple[str, ...],
    out: Path,
    pool: bool,
    queries: int | None,
    stages: tuple[str, ...],
    depths: tuple[int, ...],
    blends: tuple[float, ...],
    service: str | None,
    as_json: bool,
) -> None:
    """Each stage of retrieval over DATASET...: folders in BEIR layout, SQuAD files, or BeIR/NAME on the hub."""
    check_libraries(*_MEASURES, "matplotlib")
    from eval.report import evaluate_retrieval, format_report
    from eval.retrieval import Plan

    report = evaluate_retrieval(
        datasets,
        read_settings(context),
        Plan(stages, depths, blends),
        out,
        say,
        pool=pool,
        queries=queries,
        service=service,
    )
    if as_json:
        print_json(report)
    else:
        click.echo(format_report(report), nl=False)
    say(f"report: {out}")


@evaluation.command("answers")
@settings_options
@click.argument("datasets", nargs=-1, required=True, metavar="DATASET...")
@_out_option("answers")
@click.option("--pool", is_flag=True, help="Ask over the documents of all sets as one corpus.")
@click.option(
    "--questions",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="With an answer, of each set at most; half as many without one, and as many pairs.",
)
@click.option("--no-llm", is_flag=True, help="Measure extracted answers only.")
@_json_option
@click.pass_context
@edge
def answers_command(
    context: click.Context,
    datasets: tuple[str, ...],
    out: Path,
    pool: bool,
    questions: int,
    no_llm: bool,
    as_json: bool,
) -> None:
    """Answers, citations and grounding over DATASET... that name their answers, beside the LLM and the evidence alone;
    or grounding over pairs of a right and a made-up answer, in files like HaluEval's."""
    check_libraries(*_MEASURES)
    from eval.answers import evaluate_answers, format_answers

    settings = read_settings(context)
    report = evaluate_answers(datasets, settings, out, say, pool=pool, questions=questions, llm=not no_llm)
    if as_json:
        print_json(report)
    else:
        click.echo(format_answers(report), nl=False)
    say(f"report: {out}")


@evaluation.command("generate")
@settings_options
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--collection", default="default", show_default=True)
@click.option("--questions", type=click.IntRange(min=1), default=200, show_default=True, help="How many at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another one draws other chunks.")
@click.option(
    "--depth",
    type=click.IntRange(1, 200),
    default=20,
    show_default=True,
    help="A question's chunk has to be in so many hits of lexical or dense search.",
)
@_json_option
@click.pass_context
@edge
def generate_command(
    context: click.Context, folder: Path, collection: str, questions: int, seed: int, depth: int, as_json: bool
) -> None:
    """Write FOLDER, a labelled set in BEIR layout: questions by rules from a collection's own chunks."""
    check_libraries(*_MEASURES)
    from eval.generate import format_outcome, generate_set

    report = generate_set(folder, read_settings(context), collection, count=questions, seed=seed, depth=depth, say=say)
    if as_json:
        print_json(report)
    else:
        click.echo(format_outcome(report), nl=False)


@evaluation.command("compare")
@settings_options
@click.argument("first", metavar="A", type=click.Path(exists=True, path_type=Path))
@click.argument("second", metavar="B", type=click.Path(exists=True, path_type=Path))
@click.option("--qrels", type=click.Path(dir_okay=False, exists=True, path_type=Path), help="Judgements of run files.")
@_json_option
@edge
def compare_command(first: Path, second: Path, qrels: Path | None, as_json: bool) -> None:
    """Differences of B from A, two report folders or two run files, with p-values and the queries that changed most."""
    check_libraries(*_MEASURES)
    from eval.compare import compare_paths, format_comparison

    comparison = compare_paths(first, second, qrels)
    if as_json:
        print_json(comparison)
    else:
        click.echo(format_comparison(comparison), nl=False)


def check_libraries(*names: str) -> None:
    """Raises SettingsError for those that are missing: before minutes of work, and not after them."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"rag eval needs {', '.join(missing)}: the eval extra brings it (pip install 'rag[eval]', or make setup)"
        )
