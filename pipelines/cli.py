"""The command `plumbline`: reads and checks what it is given, then hands over to `actors` or `serving`.

Errors of known kinds are one message on stderr and exit status 2; anything else is a bug and shows where.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines import catalogue, cli_serving, control, doctor, identity, preflight, recipes, runs
from pipelines import launch as launching
from pipelines.cli_common import (
    RUN_FAILED,
    USAGE_ERROR,
    JsonOption,
    console,
    one_message,
    refusal,
    write_json,
)
from pipelines.scaling import Role
from pipelines.settings import Settings, load

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
    run_dir = find(Path(settings.output), settings.name, settings.checkpoint.mirror)

    from actors.run import align as run

    try:
        summary = run(settings, run_dir=run_dir, resume=resume)
    except RuntimeError as error:  # a run that cannot go on; anything else is a bug and shows where
        typer.echo(f"plumbline: the run failed: {error}\n{run_dir / 'failure.txt'} says where.", err=True)
        raise typer.Exit(RUN_FAILED) from None
    write_json(json_file, summary)
    from pipelines.report.console import before_after_table, closing_lines

    out = console()
    out.print(before_after_table(summary))
    for line in closing_lines(summary):
        out.print(line, highlight=False)
    out.print(
        f"{summary['status']}; everything is in {run_dir}; open {run_dir / 'report.html'}", soft_wrap=True
    )
    if _violations(summary["audit"]):
        raise typer.Exit(RUN_FAILED)
    raise typer.Exit(_status(str(summary["status"])))


def _status(text: str) -> int:
    """0 when the run finished; 128 + the signal that ended it, as shells count."""
    found = re.fullmatch(r"interrupted: (SIG\w+)", text)
    return 128 + signal.Signals[found.group(1)].value if found else 0


def _violations(audited: Mapping[str, Any]) -> bool:
    """Name on stderr all that an audit found violated."""
    violated = [finding for finding in audited["findings"] if finding["status"] == "violated"]
    for finding in violated:
        for evidence in finding["evidence"]:
            typer.echo(f"plumbline: {finding['code']} {finding['name']} is violated: {evidence}", err=True)
    return bool(violated)


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
    write_json(json_file, measures)
    _print_measures(measures)


@app.command()
@one_message
def validate(arguments: RunArguments = None, json_file: JsonOption = None) -> None:
    """Check settings, recipe, model, reward, every data row and resources. Starts nothing."""
    settings = _settings(arguments)
    findings = preflight.check(settings)
    write_json(json_file, [vars(finding) for finding in findings])
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
            raise refusal(error) from None
        known = [recipe for recipe in known if recipe.name == name]
    write_json(
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
        raise refusal(error) from None


@app.command()
@one_message
def audit(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    json_file: JsonOption = None,
) -> None:
    """Recount a run's invariants from its logs: exit status 0 when none is violated, else 1."""
    from pipelines.audit import audit as recount

    try:
        found = recount(run_dir)
    except FileNotFoundError as error:
        raise refusal(error) from None
    write_json(json_file, found.to_json())
    for line in found.lines():
        typer.echo(line)
    raise typer.Exit(RUN_FAILED if _violations(found.to_json()) else 0)


app.add_typer(cli_serving.app)


@app.command()
@one_message
def launch(
    run: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Its folder is sent to the cluster.")],
    address: Annotated[str, typer.Option(help="The cluster's job server, such as http://127.0.0.1:8265.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c ...]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log until the run ends.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print, submit nothing.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Send the token to another machine unencrypted.")
    ] = False,
) -> None:
    """Check a run and submit it to a Ray cluster with `ray job submit`."""
    job = launching.prepare(
        run, overrides or (), address=address, resume=resume, follow=follow, insecure=insecure
    )
    for unseen in job.unseen:
        typer.echo(f"not on this machine, the cluster will look: {unseen}", err=True)
    typer.echo(job.shell())
    if dry_run:
        return
    try:
        status = launching.submit(job, follow=follow)
    except KeyboardInterrupt:  # the run goes on without us
        status = 128 + signal.SIGINT
    if status == 128 + signal.SIGINT or (status == 0 and not follow):
        typer.echo(f"log:  {job.shell('logs', '--follow')}\nstop: {job.shell('stop')}")
    raise typer.Exit(status)


@app.command("status")
@one_message
def show_status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """How a run stands: fleet, leases, lag, weight versions. Works wherever its folder can be read."""
    found = control.read_status(run_dir)
    if as_json:
        typer.echo(json.dumps({**found, "silence": control.silence(found)}, indent=2))
        return
    from pipelines.status import describe

    out = console()
    for part in describe(found):
        out.print(part, highlight=False)


@app.command()
@one_message
def fleet(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")],
    rollouts: Annotated[int | None, typer.Option(help="Generators.")] = None,
    scorers: Annotated[int | None, typer.Option()] = None,
    perturbers: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Resize the fleet of a live run; from then on these pools do not follow demand."""
    asked: dict[Role, int | None] = {"generator": rollouts, "scorer": scorers, "perturber": perturbers}
    request = control.write_request(run_dir, {role: n for role, n in asked.items() if n is not None})
    said = control.await_answer(run_dir, request)
    if said is None:
        typer.echo("plumbline: the run has not taken the request up yet; see plumbline status", err=True)
        raise typer.Exit(RUN_FAILED)
    typer.echo(said)


@app.command()
@one_message
def plan(
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN_DIR]", help="Measure its rates.")] = None,
    rates: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Rates from a JSON file instead.")
    ] = None,
    rate: Annotated[list[str] | None, typer.Option(metavar="NAME=SECONDS", help="One rate by hand.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="Learner ranks.")] = None,
    groups: Annotated[int | None, typer.Option(min=1, help="Groups of a learner step.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Learner steps between two versions.")] = None,
    lag: Annotated[int | None, typer.Option(min=0, help="Largest lag allowed.")] = None,
    generators: Annotated[int, typer.Option(min=1, help="At most.")] = 64,
    scorers: Annotated[int, typer.Option(min=1, help="At most.")] = 64,
    devices: Annotated[
        int | None, typer.Option(min=2, help="Share so many between generators and ranks.")
    ] = None,
    waits: Annotated[float, typer.Option(help="Share of time that the learner may wait.")] = 0.05,
    seed: int = 0,
    json_file: JsonOption = None,
) -> None:
    """How many generators, scorers and ranks, which queue depth and lag: by measured rates and simulation."""
    from pipelines.planning import printing, request

    asked = request.read(run_dir, rates, rate or (), ranks=ranks, groups=groups, every=every, lag=lag)
    for note in asked.notes:
        typer.echo(f"note: {note}", err=True)
    advice = asked.advise(generators=generators, scorers=scorers, devices=devices, waits=waits, seed=seed)
    write_json(json_file, advice.to_json())
    out = console()
    for part in printing.describe(advice):
        out.print(part, highlight=False)


@app.command("doctor")
def examine(json_file: JsonOption = None) -> None:
    """Versions, devices and tools: what would fail here, and how to fix it."""
    checks = doctor.examine()
    write_json(json_file, [check.to_json() for check in checks])
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
