"""What one request may ask for. Everything is checked before the engine sees a byte."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.settings import Section

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class Limits(Section):
    """Bounds of a single request; quotas per client are another matter."""

    body_mib: Positive = 32
    body_timeout_s: Seconds = 30  # until the last byte of the body has arrived
    json_depth: Positive = 32
    # in a body, counted from above: JSON may cost a hundred times its size in memory
    json_values: Positive = 250_000
    messages: Positive = 256
    prompt_chars: Positive = 200_000  # all text of a request together
    prompts: Positive = 256  # prompts of one completion request, texts of one embedding request
    media: Count = 8  # images, videos and sounds of a request together
    image_mpx: Positive = 40
    video_frames: Positive = 256
    video_mib: Positive = 256  # decoded
    audio_seconds: Positive = 600  # decoded, not what the header says
    clean_mib: Positive = 64  # all media of a request, decoded and encoded anew
    decode_s: Seconds = 20  # one medium
    decode_mib: Positive = 1024  # memory of one decoder process
    max_tokens: Positive = 4096
    n: Positive = 8  # answers per prompt
    samples: Positive = 512  # prompts times answers per prompt
    logprobs: Count = 20
    logit_bias: Count = 300
    stop: Count = 16  # texts; OpenAI takes 4, harnesses for evaluation send more
    tools: Count = 64
    schema_kib: Positive = 64  # JSON schemas of a request together
