"""The command `plumbline`: reads and checks what it is given, then hands over to `actors` or `serving`.

Errors of known kinds are one message on stderr and exit status 2; anything else is a bug and shows where.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines import catalogue, checkpoint, doctor, identity, preflight, recipes, runs
from pipelines.data import DataError
from pipelines.settings import Settings, SettingsError, load

P = ParamSpec("P")
R = TypeVar("R")

USAGE_ERROR = 2
RUN_FAILED = 1
PLAIN_WIDTH = 110  # columns where the output is no terminal
EXPECTED = (SettingsError, DataError, checkpoint.NotACheckpoint, identity.Shadowed)

app = typer.Typer(
    name="plumbline",
    help="Online preference alignment of multimodal language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunArguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN.yaml] [a.b=c ...]", help="Settings of the run, and overrides of single keys."
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]


def one_message(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors that people can act on into one message and exit status 2."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except EXPECTED as error:
            raise _refusal(error) from None

    return wrapped


def _refusal(error: Exception) -> typer.Exit:
    typer.echo(f"plumbline: {error}", err=True)
    return typer.Exit(USAGE_ERROR)


@app.command()
@one_message
def align(
    arguments: RunArguments = None,
    seed: Annotated[int | None, typer.Option(help="Short for seed=N.")] = None,
    json_file: JsonOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Align a model online: without arguments, the embedded one on the embedded world."""
    settings = _settings(arguments, seed)
    preflight.require(settings)
    find = runs.resumable_run_dir if resume else runs.fresh_run_dir
    run_dir = find(Path(settings.output), settings.name)

    from actors.run import align as run

    try:
        summary = run(settings, run_dir=run_dir, resume=resume)
    except RuntimeError as error:  # a run that cannot go on; anything else is a bug and shows where
        typer.echo(f"plumbline: the run failed: {error}\n{run_dir / 'failure.txt'} says where.", err=True)
        raise typer.Exit(RUN_FAILED) from None
    _write_json(json_file, summary)
    from pipelines.report.console import before_after_table, closing_lines

    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    console.print(before_after_table(summary))
    for line in closing_lines(summary):
        console.print(line, highlight=False)
    console.print(
        f"{summary['status']}; everything is in {run_dir}; open {run_dir / 'report.html'}", soft_wrap=True
    )
    for discrepancy in summary["recount"]["discrepancies"]:
        typer.echo(f"plumbline: the log of trained comparisons disagrees: {discrepancy}", err=True)
    if summary["recount"]["discrepancies"]:
        raise typer.Exit(RUN_FAILED)
    raise typer.Exit(_status(str(summary["status"])))


def _status(text: str) -> int:
    """0 when the run finished; 128 + the signal that ended it, as shells count."""
    found = re.fullmatch(r"interrupted: (SIG\w+)", text)
    return 128 + signal.Signals[found.group(1)].value if found else 0


@app.command()
@one_message
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="MODEL_OR_RUN", help="A checkpoint or a run's folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c ...]")] = None,
    json_file: JsonOption = None,
) -> None:
    """Held-out evaluation of a model on the glyphs world."""
    settings = load(None, overrides or ())

    from actors.run import evaluate_checkpoint as run

    measures = run(settings, target)
    _write_json(json_file, measures)
    _print_measures(measures)


@app.command()
@one_message
def validate(arguments: RunArguments = None, json_file: JsonOption = None) -> None:
    """Check settings, recipe, model, reward, every data row and resources. Starts nothing."""
    settings = _settings(arguments)
    findings = preflight.check(settings)
    _write_json(json_file, [vars(finding) for finding in findings])
    for finding in findings:
        if finding.ok:
            typer.echo(f"ok      {finding.check}: {finding.text}")
    failed = dict.fromkeys(
        finding.text for finding in findings if not finding.ok
    )  # data need the model as well
    for text in failed:
        typer.echo(f"plumbline: {text}", err=True)
    raise typer.Exit(USAGE_ERROR if failed else 0)


@app.command("recipes")
@one_message
def list_recipes(
    name: Annotated[str | None, typer.Argument(help="One recipe: all about it.")] = None,
    json_file: JsonOption = None,
) -> None:
    """The published methods that a run can name; with a NAME its formula, composition and parameters."""
    known = recipes.available()
    if name is not None:
        try:
            recipes.load(name, {})
        except ValueError as error:
            raise _refusal(error) from None
        known = [recipe for recipe in known if recipe.name == name]
    _write_json(
        json_file,
        [{**vars(recipe), "parameters": [vars(p) for p in recipe.parameters]} for recipe in known],
    )
    if name is not None:
        typer.echo(catalogue.section(name))
        return
    table = Table("name", "loss, or what is special", "formula taken from", box=box.SIMPLE_HEAD)
    for recipe in known:
        source = f"{recipe.source} (experimental)" if recipe.experimental else recipe.source
        table.add_row(recipe.name, _plain(recipe.summary), _plain(source))
    Console().print(table)
    typer.echo("plumbline recipes NAME shows one: paper, formula, composition, parameters.")


@app.command()
@one_message
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """Write report.html from what a run left on disk."""
    from pipelines.report import render

    try:
        typer.echo(render(run_dir))
    except FileNotFoundError as error:
        raise _refusal(error) from None


@app.command()
@one_message
def serve(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_CHECKPOINT")],
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    host: str = "127.0.0.1",
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of the engine; 0 serves on CPU.")] = 0,
) -> None:
    """Answer OpenAI-compatible chat completions with an aligned model."""
    from serving.app import NotServable, ServeError
    from serving.app import serve as run

    try:
        raise typer.Exit(run(target, host=host, port=port, gpus=gpus))
    except (NotServable, ServeError) as error:
        raise _refusal(error) from None


@app.command("doctor")
def examine(json_file: JsonOption = None) -> None:
    """Versions, devices and tools: what would fail here, and how to fix it."""
    checks = doctor.examine()
    _write_json(json_file, [check.to_json() for check in checks])
    colours = {"ok": "green", "warning": "yellow", "failure": "red"}
    table = Table("check", "status", "found", "what to do")
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        table.add_row(_plain(check.name), status, _plain(check.found), _plain(check.fix))
    Console().print(table)
    failures = sum(check.status == "failure" for check in checks)
    typer.echo(f"{failures} failure{'' if failures == 1 else 's'}")
    raise typer.Exit(1 if failures else 0)


def _settings(arguments: Sequence[str] | None, seed: int | None = None) -> Settings:
    """The first argument without "=" names the file; the others are overrides, --seed last."""
    given = list(arguments or ())
    is_file = bool(given) and (Path(given[0]).suffix in (".yaml", ".yml") or "=" not in given[0])
    path = Path(given.pop(0)) if is_file else None
    return load(path, [*given, *([f"seed={seed}"] if seed is not None else [])])


def _write_json(file: Path | None, value: Any) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


def _print_measures(measures: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in measures.items():
        if isinstance(value, Mapping):
            _print_measures(value, f"{prefix}{name}.")  # pyright: ignore[reportUnknownArgumentType]
        else:
            typer.echo(
                f"{prefix}{name}: {value:.4g}" if isinstance(value, float) else f"{prefix}{name}: {value}"
            )


def _plain(value: Any) -> str:
    """Text that rich must not read as markup."""
    return str(value).replace("[", r"\[")


def main() -> None:
    """Entry point of the command."""
    sys.path.insert(0, os.getcwd())  # rewards and recipes of the current directory, as with `python -m`
    try:
        identity.check()  # that directory may hold an `actors` of its own
    except identity.Shadowed as error:
        sys.exit(f"plumbline: {error}")
    app()


if __name__ == "__main__":
    main()
