"""What a server's settings become for vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.checkpoint import NotServable, Servable
from serving.limits import Limits
from serving.models import EngineSettings
from serving.replicas.engine_settings import chosen, engine_config

TEXT = Servable(path=Path("/m"), name="m")


def arguments(**engine: Any) -> dict[str, Any]:
    wanted = chosen(TEXT, EngineSettings.model_validate(engine), Limits(max_tokens=300))
    return engine_config(TEXT, 0, wanted)["engine_kwargs"]


def test_a_model_that_writes_gives_the_limit_to_whoever_asks_for_no_number() -> None:
    plain = arguments()
    assert plain["override_generation_config"] == {"max_new_tokens": 300}
    assert plain["max_model_len"] == -1 and "runner" not in plain
    assert "enable_auto_tool_choice" not in plain
    assert arguments(context=512)["max_model_len"] == 512


def test_an_engine_computes_in_the_checkpoints_own_type_unless_another_is_asked_for() -> None:
    def dtype(stored: str | None, **engine: Any) -> str | None:
        servable = Servable(path=Path("/m"), name="m", dtype=stored)
        wanted = chosen(servable, EngineSettings.model_validate(engine), Limits())
        return engine_config(servable, 0, wanted)["engine_kwargs"].get("dtype")

    assert [dtype(stored) for stored in ("float32", "bfloat16", "float8_e4m3fn", None)] == [
        *("float32", "bfloat16"),
        *(None, None),  # vLLM's own choice
    ]
    assert dtype("float32", dtype="bfloat16") == "bfloat16"


def test_a_model_that_embeds_pools_and_keeps_no_prefix_cache() -> None:
    embed = arguments(task="embed", context=512)
    assert (embed["runner"], embed["enable_prefix_caching"], embed["max_model_len"]) == (
        "pooling",
        False,
        512,
    )
    assert "override_generation_config" not in embed


def test_a_tool_parser_is_one_of_vllms() -> None:
    tools = arguments(tools="hermes")
    assert tools["enable_auto_tool_choice"] and tools["tool_call_parser"] == "hermes"
    with pytest.raises(NotServable, match=r"models\.m\.engine\.tools: vLLM has no parser 'hermez'; .*hermes"):
        arguments(tools="hermez")
