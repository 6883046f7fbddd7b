"""How vLLM is started for a replica."""

from __future__ import annotations

import os
from typing import Any

from actors.placement import PROCESS_ENVIRONMENT
from serving.checkpoint import Servable

IMAGES_PER_PROMPT = 8
EXTENSION = "serving.replicas.weights_worker.FromDisk"

#: What the user's environment sets is kept. `nobind`: vLLM's own core binding kills a worker on shared cores.
ENGINE_ENVIRONMENT = {
    **PROCESS_ENVIRONMENT,
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

#: No such host exists: images come inside the request as data URLs; the server fetches nothing for a client.
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
        "enable_prompt_tokens_details": True,
        "trust_request_chat_template": False,
    }
    if servable.sees:
        kwargs["limit_mm_per_prompt"] = {"image": IMAGES_PER_PROMPT, "video": 1}
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


def environment() -> dict[str, str]:
    return {key: os.environ.get(key, value) for key, value in ENGINE_ENVIRONMENT.items()}
