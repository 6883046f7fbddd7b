"""How well a text fits a picture, and what methods choose by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.perturbations.base import picture_of
from pipelines.perturbations.models import load_once
from pipelines.types import Media


class Similarity(Protocol):
    """One number per text, larger where it fits the picture better; comparable for one plug alone.

    `gold` is the free columns of the row, for plugs that know the scene.
    """

    def __call__(self, media: Media, texts: Sequence[str], gold: Mapping[str, Any]) -> tuple[float, ...]: ...


def _load(path: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoProcessor

    processor: Any = AutoProcessor
    model: Any = AutoModel
    return processor.from_pretrained(path, local_files_only=True), model.from_pretrained(
        path, local_files_only=True
    )


def _image(media: Media) -> Any:
    from PIL import Image

    return Image.fromarray(picture_of(media, "similarity"))


@dataclass(frozen=True)
class ClipSimilarity:
    """The cosine of CLIP's or SigLIP's embeddings of picture and text, -1 to 1; texts are cut at their limit.

    Raises ValueError when there is no such model in the local folder.
    """

    model: str  # folder of the checkpoint

    def __call__(self, media: Media, texts: Sequence[str], gold: Mapping[str, Any]) -> tuple[float, ...]:
        import torch

        if not texts:
            return ()
        image = _image(media)
        processor, model, device = load_once("similarity", self.model, _load)
        # SigLIP was trained on padding to the full length; CLIP does not see padding.
        asked = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        inputs = processor(images=image, text=list(texts), **asked).to(device)
        with torch.inference_mode():
            outputs = model(**inputs)
        cosines: Any = torch.nn.functional.cosine_similarity(outputs.text_embeds, outputs.image_embeds)
        return tuple(float(cosine) for cosine in cosines)


@dataclass(frozen=True)
class ClipEmbedding:
    """CLIP's or SigLIP's embedding of a picture, [d], for `replace.Retrieve`.

    Raises ValueError when there is no such model in the local folder.
    """

    model: str  # folder of the checkpoint

    def __call__(self, media: Media) -> NDArray[np.float64]:
        import torch

        image = _image(media)
        processor, model, device = load_once("similarity", self.model, _load)
        inputs = processor(images=image, return_tensors="pt").to(device)
        with torch.inference_mode():
            features = model.get_image_features(**inputs).pooler_output
        return features[0].double().cpu().numpy()


def least_similar(
    pictures: Sequence[Media], text: str, gold: Mapping[str, Any], similarity: Similarity
) -> int:
    """Which picture fits the text least, the earliest of equals: AdaViP's choice among damaged candidates
    (third-party note).

    Raises ValueError without candidates.
    """
    if not pictures:
        raise ValueError("least_similar: expected at least one picture")
    return int(np.argmin([similarity(media, [text], gold)[0] for media in pictures]))


def corruption_weights(
    media: Media, pieces: Sequence[str], gold: Mapping[str, Any], similarity: Similarity
) -> tuple[float, ...]:
    """1 - similarity of each piece of a text, at least 0: TARS (code read) corrupts in proportion to it."""
    return tuple(max(1.0 - value, 0.0) for value in similarity(media, pieces, gold))
