"""The models of a server as found on disk: what engines load, and what says which version they serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.checkpoint import NotServable, Servable, find_servable
from serving.models import ModelSettings
from serving.registry.followed import Followed
from serving.registry.registry import Entry, Registry, RegistryError
from serving.replicas.adapters import Adapter, find_adapters
from serving.replicas.conductor import Fixed, Source
from serving.replicas.integrity import version_of
from serving.settings import Settings
from serving.wire import Capabilities


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model; `settings` are complete, with the server's replicas where it has none of its own."""

    servable: Servable
    source: Source
    settings: ModelSettings
    adapters: tuple[Adapter, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may put into "model": its own name, then those of its adapters."""
        return (self.servable.name, *(adapter.name for adapter in self.adapters))

    @property
    def capabilities(self) -> Capabilities:
        engine = self.settings.engine
        return Capabilities(task=engine.task, tools=engine.tools is not None, media=self.servable.media)


def find(target: Path | None, settings: Settings, name: str | None = None) -> list[Served]:
    """Every model of a server, the first being the one for whoever names none.

    `target` and `name` are of a server with one model; `settings.models` has several. Raises NotServable.
    """
    try:
        if not settings.models:
            return [_found(_only(target, settings), settings, name)]
        return _several(target, settings, name)
    except RegistryError as error:
        raise NotServable(str(error)) from error


def _several(target: Path | None, settings: Settings, name: str | None) -> list[Served]:
    if target is not None or name is not None:
        raise NotServable(
            "models: they say what is served and under which names; leave out "
            + (f"{target}" if target is not None else "--name")
        )
    return [_one_of_several(each, model, settings) for each, model in settings.models.items()]


def _only(target: Path | None, settings: Settings) -> ModelSettings:
    if target is None and settings.registry is None:
        raise NotServable("give the run or the checkpoint to serve, registry=FOLDER, or a file with models")
    if target is not None and settings.registry is not None:
        promoted = Registry(Path(settings.registry)).promoted()
        if promoted is not None:
            raise NotServable(
                f"{settings.registry}: {promoted.id} is promoted there. Serve it without naming a target, or "
                f"bring {target} in with plumbline promote"
            )
    return ModelSettings(target=None if target is None else str(target), registry=settings.registry)


def _one_of_several(name: str, model: ModelSettings, settings: Settings) -> Served:
    try:
        return _found(model, settings, name)
    except (NotServable, RegistryError) as error:
        raise NotServable(f"models.{name}: {error}") from error


def _found(model: ModelSettings, settings: Settings, name: str | None) -> Served:
    target = None if model.target is None else Path(model.target)
    source: Source
    if model.registry is not None:
        registry = Registry(Path(model.registry))
        promoted = registry.promoted()
        if promoted is None:
            promoted, name = _first(registry, target, name)
        servable = find_servable(Path(promoted.path), name or promoted.run)
        source = Followed(registry, settings.canary.rules)
    else:
        assert target is not None  # a model has one or the other
        servable = find_servable(target, name)
        source = Fixed(version=version_of(servable.path))
    complete = model.completed(settings.replicas)
    adapters = find_adapters(model.adapters, servable, complete.replicas.gpus)
    return Served(servable=servable, source=source, settings=complete, adapters=adapters)


def _first(registry: Registry, target: Path | None, name: str | None) -> tuple[Entry, str]:
    """In a registry where nothing is promoted yet the target is the first version, and names the model."""
    if target is None:
        raise NotServable(
            f"{registry.folder}: nothing is promoted there yet; name a run or a checkpoint to begin "
            "with, or promote one (plumbline promote)"
        )
    found = find_servable(target, name)
    entry = registry.register(found.path)
    return registry.promote(entry.id, why="the first version served", against=None), found.name
