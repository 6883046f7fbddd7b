"""Which readers of tool calls the installed vLLM has, asked without starting an engine."""

from __future__ import annotations


def tool_parsers() -> list[str]:
    """Names that `tool_call_parser` takes."""
    from vllm.tool_parsers import ToolParserManager

    return ToolParserManager.list_registered()
