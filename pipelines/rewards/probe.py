"""Can a straight line tell chosen from rejected? Then a model will learn the line, not the preference."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (scikit-learn is typed in part only)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
MIN_PAIRS = 2 * FOLDS
_HASHED = 2**9  # columns of each kind of n-grams


def text_probe_auc(chosen: Sequence[str], rejected: Sequence[str], *, seed: int = 0) -> float:
    """`probe_auc` on hashed counts of words, pairs of words, and 2 to 4 characters: no encoder is needed.

    Weaker than embeddings, so a low area proves little; a high one does not lie. Counts are not normalised:
    that one side is always longer is a shortcut as well.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.pipeline import make_union

    plain: Any = {"n_features": _HASHED, "norm": None}
    grams = make_union(
        HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", **plain),
        HashingVectorizer(ngram_range=(2, 4), analyzer="char_wb", **plain),
    )
    counts = grams.transform([*chosen, *rejected]).toarray()
    return probe_auc(counts[: len(chosen)], counts[len(chosen) :], seed=seed, strength=0.01)


def probe_auc(
    chosen: NDArray[np.floating], rejected: NDArray[np.floating], *, seed: int = 0, strength: float = 1.0
) -> float:
    """Area under the ROC curve of a linear probe that tells chosen from rejected answers, cross-validated.

    "More is Less" (arXiv 2504.02193; read): pairs whose two sides come from different sources are told apart
    almost perfectly by a linear probe on frozen embeddings, and training on them learns the source. About 0.5
    means that no linear shortcut shows; towards 1 the pairs should be gated out.

    `chosen`, `rejected`: embeddings of the two sides of each pair, [pairs, width], any frozen encoder.
    `strength`: inverse L2 penalty on standardised features. Both sides of a pair share a fold, so that what
    they have in common cannot help. Raises ValueError for shapes that differ or too few pairs.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if chosen.shape != rejected.shape or chosen.ndim != 2 or len(chosen) < MIN_PAIRS:
        raise ValueError(
            f"probe_auc: expected two arrays [pairs, width] of one shape, at least {MIN_PAIRS} pairs; got "
            f"{chosen.shape} and {rejected.shape}"
        )
    features = np.concatenate([chosen, rejected])
    labels = np.repeat([1, 0], len(chosen))
    pairs = np.tile(np.random.default_rng(seed).permutation(len(chosen)), 2)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    # A constant offset differs from fold to fold, hence scores are compared within folds.
    folds = GroupKFold(FOLDS).split(features, labels, pairs)
    areas: list[float] = []
    for train, test in folds:
        probe.fit(features[train], labels[train])
        areas.append(float(roc_auc_score(labels[test], probe.decision_function(features[test]))))
    return float(np.mean(areas))
