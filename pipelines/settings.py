"""The settings of a run: one YAML file with dotted overrides, validated before anything starts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Unknown keys are errors and values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(Section):
    """Where prompts come from: the embedded world, or a JSONL or Parquet file."""

    source: str = "glyphs"  # "glyphs", or the path of a .jsonl or .parquet file
    count: Positive | None = None  # glyphs: scenes (default: enough for the run); a file: at most this many rows
    max_bad_rows: Annotated[int, Field(ge=0)] = 0  # more than this many unusable rows end the run


class EngineSettings(Section):
    """One vLLM engine."""

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
    generators: Positive = 1
    scorers: Positive = 1
    perturbers: Positive = 1
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: Positive = 48
    engine: EngineSettings = EngineSettings()


class LoraSettings(Section):
    rank: Positive = 8
    alpha: Positive = 16
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LearnerSettings(Section):
    steps: Positive = 60
    groups_per_step: Positive = 24  # groups whose comparisons make one optimizer step
    workers: Positive = 1  # Ray Train workers (data-parallel ranks)
    micro_batch: Positive = 8  # comparisons per forward of one rank; the rest is gradient accumulation
    lr: float = Field(default=3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
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


class SyncSettings(Section):
    every: Positive = 1  # learner steps between two published weight versions
    max_lag: Annotated[int, Field(ge=0)] = 1  # published versions a comparison may be behind; 0: strictly on-policy
    on_failure: Literal["stop"] = "stop"  # what a version that cannot be proved does to the run


class EvaluationSettings(Section):
    """Held-out greedy evaluation before and after; glyphs only."""

    scenes: Annotated[int, Field(ge=0)] = 1000
    questions: Annotated[int, Field(ge=0)] = 1000  # of each POPE kind


class CheckpointSettings(Section):
    every: Positive = 20  # learner steps
    keep: Positive = 2


class Settings(Section):
    """A run. See docs/settings.md for every key."""

    name: str = "glyphs"
    recipe: str = "online_dpo"  # a name from `plumbline recipes`, or package.module:function
    method: dict[str, Any] = {}  # parameters of the recipe
    model: str = "glyphs"  # "glyphs", or the path of a checkpoint in Hugging Face layout
    reward: str = "world"  # "world", "random" (control), or package.module:function
    seed: Annotated[int, Field(ge=0)] = 0
    output: str = "runs"
    ray_address: str | None = None  # None: a local Ray on loopback
    stop_grace_s: Positive = 60
    max_drop_share: Share = 0.9  # of the last 100 groups for one reason; above it the run stops and names it
    data: DataSettings = DataSettings()
    rollout: RolloutSettings = RolloutSettings()
    learner: LearnerSettings = LearnerSettings()
    sync: SyncSettings = SyncSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
