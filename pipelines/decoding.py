"""How tokens are drawn. Values only: the engines carry them out, and say which of them they can.

What a decoder `needs` is looked up among an engine's abilities before a run starts. vLLM draws from the
policy; everything that mixes logits, or keeps a second model, is done by the Hugging Face decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

# "reference", "checkpoint": samples of the frozen reference, or of another model;
# "mixture", "contrast": logits of two forwards;
# "acts": operations inside the model; "prefix": continue a given beginning;
# "probe": teacher-forced log-probs; "attention": attention mass on each media
Ability = Literal["reference", "checkpoint", "mixture", "contrast", "acts", "prefix", "probe", "attention"]

AGELESS: Final = frozenset({"reference", "checkpoint"})  # streams that the policy's weights have no part in


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The policy alone, as the run's settings say."""

    temperature: float | None = None  # None: the run's; 0: the most likely token

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature >= 0:
            raise ValueError(f"{type(self).__name__}: temperature is at least 0, got {self.temperature}")

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset()

    @property
    def stream(self) -> str:
        """Whose samples these are: "policy" when log-probs are those of the policy as it is trained."""
        return "policy"

    @property
    def checkpoint(self) -> str | None:
        """Path of the checkpoint that it reads beside the policy and the reference."""
        return None

    def to_json(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **vars(self)}


@dataclass(frozen=True, kw_only=True)
class FromReference(Decoder):
    """Samples of the reference model (XPO, arXiv 2405.21046, draws one answer of each)."""

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"reference"})

    @property
    def stream(self) -> str:
        return "reference"


@dataclass(frozen=True, kw_only=True)
class FromCheckpoint(Decoder):
    """Samples of another model: the checkpoint at `path`, which has the policy's tokenizer and reads pictures
    as the policy does. It is loaded beside the policy and kept."""

    path: str

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"checkpoint"})

    @property
    def stream(self) -> str:
        return "checkpoint"

    @property
    def checkpoint(self) -> str | None:
        return self.path


@dataclass(frozen=True, kw_only=True)
class Mixture(Decoder):
    """Logits c * reference + (1 - c) * policy per token: their normalised geometric mixture (Nash-MD,
    arXiv 2312.00886, as in TRL; code read)."""

    reference_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.reference_share <= 1:
            raise ValueError(f"Mixture: reference_share is in [0, 1], got {self.reference_share}")

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"reference", "mixture"})

    @property
    def stream(self) -> str:
        return "mixture"


@dataclass(frozen=True, kw_only=True)
class Contrast(Decoder):
    """(1 + alpha) l(x) - alpha l(x without media) among tokens with p(v | x) >= cutoff * max p.

    VDD of Debiasing MLLMs (code read). `other`: path of a checkpoint whose logits are subtracted instead,
    under the full prompt (DCD's negative projector; third-party note).
    """

    alpha: float = 1.0
    cutoff: float = 0.1
    other: str | None = None

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"contrast"})

    @property
    def stream(self) -> str:
        return "contrast"

    @property
    def checkpoint(self) -> str | None:
        return self.other


@dataclass(frozen=True, kw_only=True)
class Grounded(Decoder):
    """While the most likely token has p < alpha, l + ((1 - g) / g) (l - l_without_media), g = exp(-decay t).

    M3ID (third-party note); l are logits, t counts answer tokens from 0.
    """

    alpha: float = 0.3
    decay: float = 0.02

    @property
    def needs(self) -> frozenset[Ability]:
        return frozenset({"contrast"})

    @property
    def stream(self) -> str:
        return "contrast"
