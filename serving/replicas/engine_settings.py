"""How vLLM is started for a replica."""

from __future__ import annotations

import os
from typing import Any, get_args

from actors.placement import PROCESS_ENVIRONMENT
from actors.tool_parsers import tool_parsers
from actors.transfer import WEIGHT_TRANSFER
from pipelines.types import MediaKind
from serving.checkpoint import NotServable, Servable
from serving.limits import Limits
from serving.models import Dtype, EngineSettings

EXTENSION = "serving.replicas.weights_worker.FromDisk"

#: What the user's environment sets is kept. `nobind`: vLLM's own core binding kills a worker on shared cores.
ENGINE_ENVIRONMENT = {
    **PROCESS_ENVIRONMENT,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

#: No such host exists: media reach an engine inside the request, as data URLs; it fetches nothing itself.
NO_REMOTE_MEDIA = ["data-urls-only.invalid"]


def engine_config(servable: Servable, gpus: int, engine: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of `ray.serve.llm.LLMConfig` for this checkpoint; without `gpus` no GPU is asked for.

    `engine`: further arguments of vLLM.
    """
    # -1: the longest context that fits into the memory for the KV cache, at most the model's own.
    kwargs: dict[str, Any] = {
        "allowed_media_domains": NO_REMOTE_MEDIA,
        "max_model_len": -1,
        "worker_extension_cls": EXTENSION,
        "weight_transfer_config": {"backend": WEIGHT_TRANSFER},
        "enable_prompt_tokens_details": True,
        "max_logprobs": -1,  # the gateway bounds clients; `serving.replicas.contrast` may need many
        "trust_request_chat_template": False,
    }
    if servable.dtype in get_args(Dtype):  # vLLM's own choice for float32 is bfloat16
        kwargs["dtype"] = servable.dtype
    kwargs |= media_limits(servable, Limits().media)
    if gpus:
        kwargs["tensor_parallel_size"] = gpus
    else:
        kwargs |= {"enforce_eager": True, "skip_mm_profiling": True}
    bundle = {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}
    return {
        "model_loading_config": {"model_id": servable.name, "model_source": str(servable.path)},
        "engine_kwargs": kwargs | (engine or {}),
        "accelerator_config": {"kind": "gpu" if gpus else "cpu"},
        "placement_group_config": {"bundles": [bundle] * max(gpus, 1)},
        "deployment_config": {"num_replicas": 1},
        "runtime_env": {"env_vars": environment()},
    }


def chosen(servable: Servable, engine: EngineSettings, limits: Limits) -> dict[str, Any]:
    """vLLM's arguments for what a server's settings say. Raises NotServable for an unknown tool parser."""
    arguments = media_limits(servable, limits.media)
    if engine.context is not None:
        arguments["max_model_len"] = engine.context
    if engine.dtype is not None:
        arguments["dtype"] = engine.dtype
    if engine.task == "embed":
        # One text in front of another is rare here, and without the cache there is none to go stale.
        return arguments | {"runner": "pooling", "enable_prefix_caching": False}
    # vLLM takes the least of this, what was asked for and the rest of the context.
    arguments["override_generation_config"] = {"max_new_tokens": limits.max_tokens}
    if engine.tools is not None:
        _require_parser(servable.name, engine.tools)
        arguments |= {
            "enable_auto_tool_choice": True,
            "tool_call_parser": engine.tools,
            "tool_strict_level": "parameter",  # arguments obey their schema, as if every tool were strict
        }
    return arguments


def _require_parser(model: str, parser: str) -> None:
    known = tool_parsers()
    if parser not in known:
        raise NotServable(
            f"models.{model}.engine.tools: vLLM has no parser {parser!r}; expected one of {', '.join(known)}"
        )


def media_limits(servable: Servable, most: int) -> dict[str, Any]:
    """The argument of vLLM that allows `most` of each medium that the model takes, and none of another."""
    if not servable.media:
        return {}
    return {
        "limit_mm_per_prompt": {kind: most if kind in servable.media else 0 for kind in get_args(MediaKind)}
    }


def environment() -> dict[str, str]:
    return {key: os.environ.get(key, value) for key, value in ENGINE_ENVIRONMENT.items()}
