"""Ray Serve LLM's own endpoint, started as ours is: what of the cost of our server is Ray Serve's.

python -m benchmarks.serving.overhead.ray_serve_llm CHECKPOINT --name MODEL --port PORT
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.serve.llm import LLMConfig, build_openai_app

from serving.app import serve
from serving.replicas.engine_settings import chosen, engine_config
from serving.served import Served
from serving.settings import Settings


def application(models: Sequence[Served], settings: Settings) -> Any:
    """One process in front and one replica, as ours has them."""
    (model,) = models
    engine = chosen(model.servable, model.settings.engine, settings.limits)
    return build_openai_app(
        {
            "llm_configs": [LLMConfig(**engine_config(model.servable, 0, engine))],
            "ingress_deployment_config": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0}},
        }
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Ray Serve LLM's own OpenAI-compatible endpoint")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    return serve(given.checkpoint, Settings(port=given.port), name=given.name, bound=application)


if __name__ == "__main__":
    raise SystemExit(main())
