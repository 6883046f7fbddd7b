"""What is claimed, and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal["chair_i", "pope", "media_margin", "text_margin"]
LOWER_IS_BETTER: frozenset[str] = frozenset({"chair_i"})


@dataclass(frozen=True, kw_only=True)
class Ordering:
    """`better` does better than `worse`; with `within`, at least not worse by more than that."""

    better: str
    worse: str
    measure: Measure = "chair_i"
    within: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    key: str
    claim: str
    source: str
    orderings: tuple[Ordering, ...]
    seeds: int = 5

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arm for o in self.orderings for arm in (o.better, o.worse)))


def over(better: str, *others: str, measure: Measure = "chair_i") -> tuple[Ordering, ...]:
    return tuple(Ordering(better=better, worse=worse, measure=measure) for worse in others)


NEAR_CHAIR, NEAR_POPE = 0.03, 0.03  # what counts as "about the same": 3 points

ROWS: tuple[Row, ...] = (
    Row(
        key="images_matter",
        claim="DPO without images does about as well as DPO with them, and mDPO better than both",
        source="mDPO (third-party notes)",
        orderings=(
            Ordering(better="dpo_no_image", worse="dpo", within=NEAR_CHAIR),
            *over("mdpo", "dpo", "dpo_no_image"),
        ),
    ),
    Row(
        key="three_terms_in_the_end",
        claim="Trained until little changes, mDPO and MFPO hallucinate no more than DPO",
        source="mDPO, MFPO (third-party notes)",
        orderings=(
            Ordering(better="mdpo_long", worse="dpo_long", within=NEAR_CHAIR),
            Ordering(better="mfpo_long", worse="dpo_long", within=NEAR_CHAIR),
            *over("mfpo_long", "mdpo_long", "dpo_long", measure="media_margin"),
        ),
    ),
    Row(
        key="noise_locality",
        claim="Noise on key regions beats noise on random regions, which beats noise on the whole picture",
        source="MFPO (third-party note)",
        orderings=(
            *over("mfpo_once", "mfpo_random_region", "mfpo_whole"),
            *over("mfpo_random_region", "mfpo_whole"),
        ),
    ),
    Row(
        key="mdpo_terms",
        claim="mDPO's three terms beat any two of them",
        source="mDPO (third-party notes)",
        orderings=over("mdpo", "mdpo_no_text", "mdpo_no_media", "mdpo_no_anchor"),
    ),
    Row(
        key="mfpo_terms",
        claim="MFPO's three terms beat any two of them",
        source="MFPO (third-party note)",
        orderings=over("mfpo_once", "mfpo_no_text", "mfpo_no_media", "mfpo_no_anchor"),
    ),
    Row(
        key="on_policy_alignment",
        claim="Corrections help more after supervised tuning has brought them on policy",
        source="OPA-DPO (code read)",
        orderings=over("opa_dpo", "corrections_dpo"),
    ),
    Row(
        key="refreshed_reference",
        claim="A reference that is renewed every round beats a fixed one",
        source="mrDPO (abstract; inferred)",
        orderings=over("rounds_refreshed", "rounds_fixed"),
    ),
    Row(
        key="easy_to_hard",
        claim="Easy prompts first beats the mixed order",
        source="MFPO (third-party note)",
        orderings=over("mfpo_thirds", "mfpo_once"),
    ),
    Row(
        key="online_offline_mix",
        claim="Mixing recorded and fresh pairs keeps the gains of both",
        source="Understanding Alignment (paper read)",
        orderings=(
            Ordering(better="mixed_dpo", worse="sampled_dpo", within=NEAR_CHAIR),
            Ordering(better="mixed_dpo", worse="recorded_dpo", within=NEAR_CHAIR),
            Ordering(better="mixed_dpo", worse="sampled_dpo", measure="pope", within=NEAR_POPE),
            Ordering(better="mixed_dpo", worse="recorded_dpo", measure="pope", within=NEAR_POPE),
        ),
    ),
    Row(
        key="noisy_labels_conservative",
        claim="With 30% of the labels flipped, conservative DPO beats DPO",
        source="robust DPO (from memory)",
        orderings=over("cdpo_flipped", "dpo_flipped"),
        seeds=12,  # learning flips by heart varies more over seeds than anything else here
    ),
    Row(
        key="noisy_labels_robust",
        claim="With 30% of the labels flipped, robust DPO beats DPO and conservative DPO",
        source="robust DPO (from memory)",
        orderings=over("robust_flipped", "dpo_flipped", "cdpo_flipped"),
        seeds=12,
    ),
    Row(
        key="pair_source",
        claim="MFPO's gain over DPO does not hang on the source of the pairs",
        source="MFPO (third-party note)",
        orderings=(*over("mfpo_recorded", "recorded_dpo"), *over("mfpo_once", "dpo")),
    ),
    Row(
        key="margin_balance",
        claim="The media margin grows from DPO to cropped pictures to noised key regions",
        source="MFPO (third-party note)",
        orderings=(
            *over("mfpo_once", "mdpo", "dpo", measure="media_margin"),
            *over("mdpo", "dpo", measure="media_margin"),
        ),
    ),
    Row(
        key="two_rounds_for_three",
        claim="Two accelerated rounds do about as well as three plain ones, and better than two",
        source="accelerated PO (third-party note)",
        orderings=(
            Ordering(better="apo_2", worse="plain_3", within=NEAR_CHAIR),
            *over("apo_2", "plain_2"),
        ),
    ),
    Row(
        key="curriculum",
        claim="Easy pairs first, the reference renewed, beats the same without renewal and pooled pairs",
        source="Curri-DPO (third-party note; ordering from memory)",
        orderings=over("curri", "curri_same_reference", "pooled"),
    ),
)
