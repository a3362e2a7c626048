"""What every command shares: settings and their options, output, and errors as sentences and exit statuses."""

from __future__ import annotations

import json
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


def say(sentence: str) -> None:
    """Progress, a warning or an error, beside the results."""
    click.echo(sentence, err=True)


def print_json(value: Any) -> None:
    """The one JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _keep(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None:
        context.ensure_object(dict)[parameter.name] = value


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


filter_option = click.option(
    "--filter", "expression", metavar="EXPR", help="""Only documents that it means, as: lang == "ko" and year >= 2024"""
)
url_option = click.option("--url", help="The service.  [default: http://127.0.0.1:8000, or as the settings say]")


def read_settings(context: click.Context, **overrides: Any) -> Settings:
    """The settings by the options kept so far. Raises SettingsError."""
    kept = context.obj or {}
    return load_settings(kept.get("config"), kept.get("profile"), **overrides)


def find_url(context: click.Context, given: str | None) -> str:
    """The service to talk to: the one given, else where `rag serve` with the same settings would listen."""
    if given is not None:
        return given
    serve = read_settings(context).serve
    host = "127.0.0.1" if serve.host in ("0.0.0.0", "::") else serve.host
    return f"http://[{host}]:{serve.port}" if ":" in host else f"http://{host}:{serve.port}"


def edge(command: Callable[..., None]) -> Callable[..., None]:
    """The process's edge: an error of ours becomes a sentence and an exit status."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except RagError as error:
            say(f"rag: {error}")
            sys.exit(3 if isinstance(error, UNREACHABLE) else 2)
        except KeyboardInterrupt:
            say("rag: stopped")
            sys.exit(130)

    return run
