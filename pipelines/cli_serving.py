"""The commands around a server: serve, promote, canary, history, keys, feedback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich import box
from rich.table import Table

from pipelines.cli_common import (
    PLAIN_WIDTH,
    RUN_FAILED,
    JsonOption,
    console,
    one_message,
    refusal,
    write_json,
)
from pipelines.settings import SettingsError

R = TypeVar("R")

app = typer.Typer()  # its commands are those of `plumbline` itself


@app.command()
@one_message
def serve(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN_OR_CHECKPOINT] [SERVER.yaml] [a.b=c ...]",
            help="What to serve, settings of the server, and overrides of single keys.",
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Short for port=N.")] = None,
    host: Annotated[str | None, typer.Option(help="Short for host=HOST.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
) -> None:
    """Answer OpenAI-compatible requests with an aligned model."""
    from serving import app as server

    given = list(arguments or ())
    overrides = [one for one in given if "=" in one]
    files = [Path(one) for one in given if one.endswith((".yaml", ".yml"))]
    targets = [Path(one) for one in given if one not in overrides and Path(one) not in files]
    if len(files) > 1 or len(targets) > 1:
        raise SettingsError(f"serve: expected at most one run or checkpoint and one YAML file, got {given}")
    overrides += [f"{key}={value}" for key, value in (("port", port), ("host", host)) if value is not None]
    settings = server.load(files[0] if files else None, overrides)
    try:
        raise typer.Exit(server.serve(targets[0] if targets else None, settings, name=name))
    except (server.NotServable, server.ServeError) as error:
        raise refusal(error) from None


RegistryOption = Annotated[Path, typer.Option("--registry", metavar="DIR", help="Folder of the registry.")]


@app.command()
@one_message
def promote(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Or the id of a registered version.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c ...]")] = None,
    registry: RegistryOption = Path("registry"),
    gate: Annotated[Path | None, typer.Option(metavar="GATE.yaml", help="Conditions of the gate.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Without the gate; say why.")] = False,
    reason: Annotated[str | None, typer.Option(help="Kept in the history.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Compare a checkpoint with the one that is served, and serve it from now on if the gate lets it pass."""
    from serving import app as server

    try:
        decided = server.commands.promote(
            target, registry=registry, gate=gate, overrides=overrides or (), force=force, reason=reason
        )
    except server.RegistryError as error:
        raise refusal(error) from None
    write_json(json_file, decided)
    if decided["decision"] is not None:
        console().print(server.commands.describe(decided["decision"]))
    typer.echo(f"{decided['version']}: {'promoted' if decided['promoted'] else 'refused'}: {decided['why']}")
    raise typer.Exit(0 if decided["promoted"] else RUN_FAILED)


@app.command()
@one_message
def rollback(
    reason: Annotated[str, typer.Option(help="Kept in the history.")],
    registry: RegistryOption = Path("registry"),
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="An earlier one than the last.")] = None,
) -> None:
    """Serve the version before the present one again."""
    from serving import app as server

    try:
        entry = server.commands.rollback(registry=registry, reason=reason, to=to)
    except server.RegistryError as error:
        raise refusal(error) from None
    typer.echo(f"{entry.id} is promoted again; servers that follow {registry} change over by themselves")


@app.command()
@one_message
def history(registry: RegistryOption = Path("registry"), json_file: JsonOption = None) -> None:
    """What was registered, promoted, refused and taken back, and why."""
    from serving import app as server

    try:
        acts = server.commands.history(registry=registry)
    except server.RegistryError as error:
        raise refusal(error) from None
    write_json(json_file, acts)
    console(2 * PLAIN_WIDTH).print(server.commands.render_history(acts))


canary = typer.Typer(help="A version that answers a share of the clients.", no_args_is_help=True)
app.add_typer(canary, name="canary")


@canary.command("start")
@one_message
def start_canary(
    target: Annotated[
        str,
        typer.Argument(metavar="VERSION_OR_CHECKPOINT", help="The id of a registered version, or a folder."),
    ],
    weight: Annotated[float, typer.Option(help="Share of the clients, above 0 to 1.")],
    registry: RegistryOption = Path("registry"),
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "started by hand",
) -> None:
    """Let a version answer a share of the clients beside the promoted one, in place of a canary that runs."""
    from serving import app as server

    try:
        entry = server.commands.start_canary(target, registry=registry, weight=weight, why=why)
    except server.RegistryError as error:
        raise refusal(error) from None
    typer.echo(
        f"{entry.id} is the canary; servers that follow {registry} send it {weight:.0%} of the clients"
    )


@canary.command("end")
@one_message
def end_canary(
    registry: RegistryOption = Path("registry"),
    why: Annotated[str, typer.Option(help="Kept in the history.")] = "ended by hand",
) -> None:
    """Give all clients the promoted version again."""
    from serving import app as server

    try:
        entry = server.commands.end_canary(registry=registry, why=why)
    except server.RegistryError as error:
        raise refusal(error) from None
    typer.echo(f"{entry.id} is no canary any more")


keys = typer.Typer(help="API keys of a server; the file holds salted hashes alone.", no_args_is_help=True)
app.add_typer(keys, name="keys")
KeysFile = Annotated[Path, typer.Argument(metavar="FILE")]


@keys.command("add")
@one_message
def add_key(
    file: KeysFile,
    client: Annotated[str, typer.Argument(metavar="NAME")],
    consents: Annotated[bool, typer.Option("--consents", help="Its answers may be kept.")] = False,
) -> None:
    """Make a key for a client; it is printed once and nowhere kept."""
    from serving import app as server

    typer.echo(_keys_said(lambda: server.keys.add(file, client, consents=consents)))


@keys.command("revoke")
@one_message
def revoke_keys(file: KeysFile, client: Annotated[str, typer.Argument(metavar="NAME_OR_ID")]) -> None:
    """Refuse one key, or all of a client, from now on."""
    from serving import app as server

    typer.echo(f"{_keys_said(lambda: server.keys.revoke(file, client))} revoked")


@keys.command("list")
@one_message
def list_keys(file: KeysFile) -> None:
    """Clients and the ids of their keys; nobody can read the keys themselves."""
    from serving import app as server

    table = Table("key", "client", "created", "revoked", box=box.SIMPLE_HEAD)
    for entry in _keys_said(lambda: server.keys.entries(file)):
        table.add_row(entry.key, entry.client, str(entry.created), str(entry.revoked or ""))
    console().print(table)


def _keys_said(act: Callable[[], R]) -> R:
    from serving import app as server

    try:
        return act()
    except server.keys.KeysError as error:
        raise refusal(error) from None


feedback = typer.Typer(help="What people thought of answers.", no_args_is_help=True)
app.add_typer(feedback, name="feedback")


@feedback.command("forget")
@one_message
def forget_feedback(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The feedback.folder of a server.")],
    client: Annotated[str | None, typer.Option(metavar="NAME", help="All of a client.")] = None,
    answer: Annotated[
        str | None, typer.Option(metavar="ID", help="One answer, and what was said of it.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only count.")] = False,
) -> None:
    """Delete what is kept of a client, or of one answer: log, rows of runs, pictures. Servers may run."""
    from serving import app as server

    forgetting = server.forgetting
    if client is not None and answer is None:
        told = forgetting.of_client(client)
    elif answer is not None and client is None:
        told = forgetting.of_answer(answer)
    else:
        raise SettingsError("feedback forget: expected --client NAME or --answer ID, one of them")
    try:
        found = (forgetting.forget if yes else forgetting.count)(folder, told)
    except forgetting.NothingKept as error:
        raise refusal(error) from None
    counted = f"{found.answers} answers, {found.feedback} opinions on them, {found.pictures} pictures"
    typer.echo(f"deleted: {counted}" if yes else f"to be deleted: {counted}; add --yes to delete them")
