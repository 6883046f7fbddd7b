"""What all commands share: how errors are told, and how results are printed and written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from pipelines import checkpoint, identity
from pipelines.data import DataError
from pipelines.settings import SettingsError

P = ParamSpec("P")
R = TypeVar("R")

USAGE_ERROR = 2
RUN_FAILED = 1
PLAIN_WIDTH = 110  # columns where the output is no terminal
EXPECTED = (SettingsError, DataError, checkpoint.NotACheckpoint, identity.Shadowed)

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]


def one_message(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors that people can act on into one message and exit status 2."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EXPECTED as error:
            raise refusal(error) from None

    return wrapped


def refusal(error: Exception) -> typer.Exit:
    typer.echo(f"plumbline: {error}", err=True)
    return typer.Exit(USAGE_ERROR)


def console(plain_width: int = PLAIN_WIDTH) -> Console:
    return Console(width=None if sys.stdout.isatty() else plain_width)


def write_json(file: Path | None, value: Any) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
