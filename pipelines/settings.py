"""The settings of a run: one YAML file with dotted overrides, validated before anything starts.

`load` is the way in for people's files; it names file and line of what is wrong and the nearest right key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines import marked_yaml, settings_files
from pipelines.deterministic import contradictions, with_fitting_lag
from pipelines.settings_errors import SettingsError as SettingsError

# A scorer waits for rewards and a perturber paints small pictures; both share a core.
SCORER_CPUS: Final = 0.1
PERTURBER_CPUS: Final = 0.1
DATA_CPUS: Final = 1.0  # Ray Data starves silently when actors hold every CPU

SERVED: Final = "serving://"

KIND: Final = settings_files.Kind(
    owner="a run", line="model: PATH", override="learner.lr=5e-7", short={"data": "source"}
)

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Unknown keys are errors and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataSettings(Section):
    """Where prompts come from: the embedded world, a JSONL or Parquet file, or a server's feedback."""

    # "glyphs", the path of a .jsonl or .parquet file, or serving://FOLDER
    source: str = Field(default="glyphs", min_length=1)
    # glyphs: scenes (default: enough for the run); a file: at most this many rows
    count: Positive | None = None
    questions: Share = 0.2  # glyphs: share of the rows that ask a yes/no question instead of a caption
    max_bad_rows: Annotated[int, Field(ge=0)] = 0  # more than this many unusable rows end the run
    # area under the ROC curve up to which a linear probe may tell recorded chosen from rejected answers
    max_probe_auc: float = Field(default=1.0, ge=0.5, le=1.0)
    # serving://: share of the groups with feedback that learn from what was served; in all others the policy
    # answers the prompt anew
    recorded_share: Share = 0.5

    @property
    def served(self) -> Path | None:
        """The folder of a server's feedback; None: the source is none."""
        return Path(self.source.removeprefix(SERVED)) if self.source.startswith(SERVED) else None


class EngineSettings(Section):
    """What one generator decodes with."""

    # "auto": vLLM, unless the recipe asks for what it cannot do (mixed logits, acts inside the model...)
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: Positive = 1024  # tokens, images included
    max_num_seqs: Positive = 256  # sequences decoded together
    kv_cache_gib: float = Field(default=1.0, gt=0)  # CPU only; a GPU uses gpu_memory_utilization
    gpu_memory_utilization: float = Field(default=0.5, gt=0, le=1)
    images_per_prompt: Positive = 4
    cpus: Positive = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    start_timeout_s: Positive = 300
    timeout_s: Positive = 120  # one request, or one weight sync


class RolloutSettings(Section):
    """Pools of workers. Each starts with its number and, with bounds, follows demand between them."""

    generators: Positive = 1
    min_generators: Positive | None = None  # None: `generators`, so that nothing scales by itself
    max_generators: Positive | None = None
    standbys: Annotated[int, Field(ge=0)] = 0  # generators that are loaded and idle until one is lost
    scorers: Positive = 1
    max_scorers: Positive | None = None
    perturbers: Positive = 1
    max_perturbers: Positive | None = None
    labels: dict[str, str] = {}  # nodes that generators may run on, as Ray's label selectors name them
    max_tries: Positive = 3  # leases of one prompt that may fail before it is a dead letter
    # a generator that holds requests and decodes nothing for so long is replaced
    progress_timeout_s: Positive = 60
    health_timeout_s: Positive = 30  # a worker that does not answer for so long is replaced
    buffer_mib: Positive = 4096  # finished groups that the ledger holds beyond the next step
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: Positive = 48
    reward_timeout_s: Positive = 60  # one call of a reward; later its score is missing
    engine: EngineSettings = EngineSettings()


class LoraSettings(Section):
    rank: Positive = 8
    alpha: Positive = 16
    targets: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


class LearnerSettings(Section):
    steps: Positive = 60
    groups_per_step: Positive = 24  # groups whose comparisons make one optimizer step
    workers: Positive = 1  # Ray Train workers (data-parallel ranks)
    micro_batch: Positive = 8  # comparisons per forward of one rank; the rest is gradient accumulation
    lr: float = Field(default=5e-5, gt=0)
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    clip: float = Field(default=1.0, gt=0)  # largest global gradient norm
    zero_stage: Literal[0, 1, 2, 3] = 2
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoraSettings | None = None  # None: all weights are trained
    cpus: Positive = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    start_timeout_s: Positive = 300
    collective_timeout_s: Positive = 300
    progress_timeout_s: Positive = 600  # a step under training for so long means a wedged rank
    min_workers: Positive | None = None  # None: `workers`; fewer are used while a cluster cannot hold more
    labels: dict[str, str] = {}  # nodes that ranks may run on
    max_skipped: Positive = 3  # steps in a row without finite gradients; one more ends the run


class SyncSettings(Section):
    every: Positive = 1  # learner steps between two published weight versions
    # published versions that a comparison may be behind; 0: strictly on-policy
    max_lag: Annotated[int, Field(ge=0)] = 1
    # what a new version does to answers under way: they finish first, go on under it, or are made again
    in_flight: Literal["wait", "keep", "abort"] = "wait"
    # how weights travel; "auto": Ray's object store. "disk": the run's folder, which all nodes must share.
    # "collective": broadcast by rank 0 of the learner (NCCL between whole GPUs, else gloo)
    transport: Literal["auto", "object_store", "disk", "collective"] = "auto"
    bucket_mib: Positive = 256  # tensors that travel together


class EvaluationSettings(Section):
    """Held-out greedy evaluation before and after; glyphs only."""

    scenes: Annotated[int, Field(ge=0)] = 1000
    questions: Annotated[int, Field(ge=0)] = 1000  # of each POPE kind


class CheckpointSettings(Section):
    every: Positive = 20  # learner steps
    keep: Positive = 2
    mirror: str | None = None  # a folder, or any fsspec URL, that every checkpoint is copied to


class RecoverySettings(Section):
    """What a run does about losses."""

    max_restarts: Annotated[int, Field(ge=0)] = 3  # of the learner in a row without a new checkpoint
    # from a loss to the next trained step; a recovery that takes longer ends the run with its cause
    deadline_s: Positive = 900


class PublishSettings(Section):
    """Checkpoints that a running server tries on a share of its clients. Nothing without a registry."""

    registry: str | None = None  # the server's folder of registered checkpoints
    every: Positive = 1  # checkpoints between two published ones
    weight: Share = 0.1  # share of the clients that the canary answers


Threshold = Annotated[float, Field(gt=0)] | None  # None: this monitor is off


class MonitorSettings(Section):
    """When a run's health is worth an alarm; `pipelines.monitors` says what each number means."""

    action: Literal["warn", "stop"] = "warn"
    window: Positive = 10  # steps that a mean is taken over, at the start and now
    likelihood_displacement: Threshold = 0.2  # nats per token
    length_bias: Threshold = 0.7  # correlation: half of the reward's variance
    length_gap: Threshold = 0.5  # chosen answers 1.67 times as long as rejected ones
    reward_drop: Threshold = 0.5  # best-to-worst spreads of the first steps
    reward_spread: Threshold = 0.1  # of the spread of the first steps; alarms below it
    ties: Threshold = 0.95
    rollout_gap: Threshold = 0.1  # nats per token
    skipped_steps: Threshold = 0.2
    dead_letters: Threshold = 0.05


class Settings(Section):
    """A run. See docs/settings.md for every key."""

    name: str = Field(default="glyphs", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # names the run's folder
    # a name from `plumbline recipes`, or package.module:function
    recipe: str = Field(default="online_dpo", min_length=1)
    method: dict[str, Any] = {}  # parameters of the recipe
    model: str = Field(default="glyphs", min_length=1)  # "glyphs", or a checkpoint in Hugging Face layout
    reward: str = "world"  # "world", "random" (control), package.module:function or path/to/file.py:function
    # who rewrites answers where the recipe asks for it: "world" (rules of the glyphs world),
    # package.module:function or path/to/file.py:function
    editor: str = "world"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output: str = Field(default="runs", min_length=1)
    ray_address: str | None = None  # None: a local Ray on loopback
    # in this process alone: resumed from any kill, it equals a run that was never interrupted, bit for bit
    deterministic: bool = False
    stop_grace_s: Positive = 60
    max_drop_share: Share = 0.98  # of the last 100 groups for one reason; above it the run stops and names it
    data: DataSettings = DataSettings()
    rollout: RolloutSettings = RolloutSettings()
    learner: LearnerSettings = LearnerSettings()
    sync: SyncSettings = SyncSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    publish: PublishSettings = PublishSettings()
    recovery: RecoverySettings = RecoverySettings()
    monitors: MonitorSettings = MonitorSettings()

    @model_validator(mode="before")
    @classmethod
    def _no_heldout_scenes_for_own_data(cls, given: Any) -> Any:
        """Own data has no held-out world: unless somebody asks for it, nothing is evaluated."""
        source = _source_of(given)
        if source in (None, "glyphs") or "evaluation" in given:
            return given
        return {**given, "evaluation": {"scenes": 0, "questions": 0}}

    @model_validator(mode="before")
    @classmethod
    def _no_lag_in_deterministic_runs(cls, given: Any) -> Any:
        return with_fitting_lag(given)

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        problems = list(_disagreements(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _source_of(given: Any) -> str | None:
    data: Any = cast("dict[str, Any]", given).get("data") if isinstance(given, dict) else None
    if isinstance(data, DataSettings):
        return data.source
    source: Any = cast("dict[str, Any]", data).get("source") if isinstance(data, dict) else None
    return source if isinstance(source, str) else None


def _disagreements(run: Settings) -> Iterator[str]:
    """What is right by itself but not together."""
    own = run.data.source != "glyphs"
    if not own and run.data.max_bad_rows:
        yield "data.max_bad_rows: the glyphs world has no bad rows; remove the key"
    if run.reward not in ("world", "random") and not re.fullmatch(r".+:[^:\W]\w*", run.reward):
        yield (
            f"reward: expected 'world', 'random', package.module:function or path/to/file.py:function, "
            f"got {run.reward!r}"
        )
    if run.editor != "world" and not re.fullmatch(r".+:[^:\W]\w*", run.editor):
        yield (
            "editor: expected 'world', package.module:function or path/to/file.py:function, "
            f"got {run.editor!r}"
        )
    if own and run.reward == "world":
        yield (
            "reward: 'world' verifies answers about scenes of the glyphs world, but data.source is "
            f"{run.data.source!r}; give your own reward as package.module:function"
        )
    if own and (run.evaluation.scenes or run.evaluation.questions):
        yield (
            "evaluation: it shows held-out scenes of the glyphs world, but data.source is "
            f"{run.data.source!r}; leave the section out"
        )
    if run.learner.workers > run.learner.groups_per_step:
        yield (
            f"learner.workers: {run.learner.workers} workers share {run.learner.groups_per_step} groups of a "
            "step; raise learner.groups_per_step or lower learner.workers"
        )
    yield from _bounds(run)
    yield from contradictions(run)
    if run.sync.every > run.learner.steps:
        yield (
            f"sync.every: {run.sync.every} exceeds learner.steps = {run.learner.steps}, so generators "
            "would never see new weights"
        )
    if run.rollout.max_tokens >= run.rollout.engine.max_model_len:
        yield (
            f"rollout.max_tokens: {run.rollout.max_tokens} leaves no room for a prompt in "
            f"rollout.engine.max_model_len = {run.rollout.engine.max_model_len}"
        )


def _bounds(run: Settings) -> Iterator[str]:
    """A number lies between its bounds."""
    rollout, learner = run.rollout, run.learner
    for key, low, value, high in (
        ("rollout.generators", rollout.min_generators, rollout.generators, rollout.max_generators),
        ("rollout.scorers", None, rollout.scorers, rollout.max_scorers),
        ("rollout.perturbers", None, rollout.perturbers, rollout.max_perturbers),
        ("learner.workers", learner.min_workers, learner.workers, None),
    ):
        section, name = key.split(".")
        if low is not None and low > value:
            yield f"{section}.min_{name}: {low} exceeds {key} = {value}"
        if high is not None and high < value:
            yield f"{section}.max_{name}: {high} is less than {key} = {value}"


def demands(run: Settings) -> dict[str, float]:
    """Logical CPUs and GPUs that a run's processes reserve together, one CPU for Ray Data included."""
    if run.deterministic:
        return {"CPU": 1.0, "GPU": 0.0}
    engine, rollout, learner = run.rollout.engine, run.rollout, run.learner
    cpus = (
        rollout.generators * engine.cpus
        + rollout.scorers * SCORER_CPUS
        + rollout.perturbers * PERTURBER_CPUS
        + learner.workers * learner.cpus
        + DATA_CPUS
    )
    return {"CPU": round(cpus, 3), "GPU": rollout.generators * engine.gpus + learner.workers * learner.gpus}


def model_path(run: Settings) -> Path:
    """The folder of the model that a run starts from."""
    from pipelines.worlds.glyphs import BASE_MODEL  # here, since it pulls in the world

    return BASE_MODEL if run.model == "glyphs" else Path(run.model)


def to_yaml(run: Settings) -> str:
    """Every setting, defaults included, as YAML that `load` reads back as an equal value."""
    return marked_yaml.dump(run.model_dump(mode="json"))


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings of a YAML file (None: the defaults), with dotted overrides such as "learner.lr=5e-7".

    An override's value is a YAML scalar, list or mapping on one line; a mapping replaces the whole section.
    `data=FILE` is short for `data.source=FILE`, in the file as well. A relative path in the file (of data,
    model, or a reward's file) is taken from beside the file if it exists there, else from the current
    directory; one in an override from the current directory. Raises SettingsError with every problem found.
    """
    given = settings_files.given(path, KIND)
    if path is not None:
        _resolve_paths(given.value, path.parent, only_existing=True)
    for override in overrides:
        given.override(override, KIND)
    _resolve_paths(given.value, Path.cwd(), only_existing=False)
    return given.validated(Settings)


def _resolve_paths(value: dict[str, Any], folder: Path, *, only_existing: bool) -> None:
    """Make relative paths absolute, in place."""

    def resolved(text: str) -> str:
        path = Path(text).expanduser()
        absolute = path if path.is_absolute() else (folder / path).absolute()
        return str(absolute) if absolute.exists() or not only_existing else text

    data, model = value.get("data"), value.get("model")
    if isinstance(data, dict):
        source: Any = cast("dict[str, Any]", data).get("source")
        if isinstance(source, str) and source not in ("", "glyphs"):
            kind = SERVED if source.startswith(SERVED) else ""
            data["source"] = kind + resolved(source.removeprefix(kind))
    if isinstance(model, str) and model not in ("", "glyphs"):
        value["model"] = resolved(model)
    for key in ("reward", "editor"):
        given = value.get(key)
        file, separator, function = given.rpartition(":") if isinstance(given, str) else ("", "", "")
        if separator and file.endswith(".py"):
            value[key] = f"{resolved(file)}:{function}"
