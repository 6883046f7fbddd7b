"""Which models a server has, each under its public name: what is served, on how many engines, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.settings import Section
from serving.limits import Count, Positive, Seconds
from serving.wire import Task

__all__ = ["Dtype", "EngineSettings", "ModelSettings", "PublicName", "ReplicaSettings", "disagreements"]

#: Names in requests, of models and of adapters.
PublicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

Dtype = Literal["float32", "bfloat16", "float16"]


class ReplicaSettings(Section):
    """Engines of one model; Serve keeps between `fewest` and `most` of them."""

    fewest: Positive = 1
    most: Positive | None = None  # null: as many as `fewest`
    target_requests: Positive = 16  # under way per replica, above which one more is started
    more_after_s: Seconds = 30  # of so many requests
    fewer_after_s: Seconds = 600  # of so few that one less would do
    canary: Count = 0  # further engines, for a canary; without any there is none
    gpus: Count = 0  # per engine (tensor parallel); 0: CPU

    @property
    def cpus(self) -> int:
        """Logical ones, which the engines take at most: two each, or two per GPU."""
        return 2 * ((self.most or self.fewest) + self.canary) * max(1, self.gpus)


class EngineSettings(Section):
    """How vLLM runs one model."""

    task: Task = "generate"  # embed: it answers /v1/embeddings alone
    tools: str | None = Field(default=None, min_length=1)  # vLLM's tool parser; null: tools are refused
    context: Positive | None = None  # tokens; null: the longest that fits, at most the model's own
    dtype: Dtype | None = None  # to compute in; null: the checkpoint's own


class ModelSettings(Section):
    """One model of several: a fixed checkpoint, or what a registry promotes."""

    # run or checkpoint; beside a registry: its first version
    target: str | None = Field(default=None, min_length=1)
    registry: str | None = Field(default=None, min_length=1)  # folder of registered checkpoints
    replicas: ReplicaSettings = ReplicaSettings()  # keys that are left out are the server's
    engine: EngineSettings = EngineSettings()
    adapters: dict[PublicName, str] = Field(default_factory=dict[str, str])  # LoRA: name -> folder or address

    def completed(self, replicas: ReplicaSettings) -> ModelSettings:
        """With the server's replicas wherever this model says nothing."""
        own = {key: getattr(self.replicas, key) for key in self.replicas.model_fields_set}
        return self.model_copy(update={"replicas": replicas.model_copy(update=own)})


def disagreements(models: Mapping[str, ModelSettings]) -> Iterator[str]:
    """What cannot be served together, or at all; each begins with its key."""
    for name, model in models.items():
        yield from (f"models.{name}{problem}" for problem in _alone(model))
    yield from _same_names(models)
    yield from _same_registries(models)


def _alone(model: ModelSettings) -> Iterator[str]:
    if model.target is None and model.registry is None:
        yield ": expected target (a run or a checkpoint) or registry (a folder), got neither"
    if model.engine.task == "embed" and model.engine.tools is not None:
        yield ".engine.tools: a model with task 'embed' calls no tools; remove it"
    if model.engine.task == "embed" and model.adapters:
        yield ".adapters: a model with task 'embed' takes none; merge the adapter into a checkpoint"
    if model.adapters and model.registry is not None:
        yield (
            ".adapters: each was trained on one base, but what the registry promotes changes; "
            "give target alone, or serve the adapters beside a model of its own"
        )


def _same_names(models: Mapping[str, ModelSettings]) -> Iterator[str]:
    taken = {name: f"models.{name}" for name in models}
    for name, model in models.items():
        for adapter in model.adapters:
            where = f"models.{name}.adapters.{adapter}"
            other = taken.setdefault(adapter, where)
            if other != where:
                yield f"{where}: {adapter!r} is the name of {other} already; requests name one or the other"


def _same_registries(models: Mapping[str, ModelSettings]) -> Iterator[str]:
    owners: dict[Path, str] = {}
    for name, model in models.items():
        if model.registry is None:
            continue
        owner = owners.setdefault(Path(model.registry).expanduser().resolve(), name)
        if owner != name:
            yield (
                f"models.{name}.registry: {model.registry!r} is that of model {owner!r} already; what is "
                "promoted there would be both; give each a folder of its own"
            )
