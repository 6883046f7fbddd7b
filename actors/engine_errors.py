"""Whose fault it is that an engine does not answer."""

from __future__ import annotations


def is_of_request(error: Exception) -> bool:
    """Whether the request was at fault: vLLM says so, or checks that know nothing of vLLM do."""
    from vllm.exceptions import VLLMClientError

    return isinstance(error, (VLLMClientError, ValueError, TypeError))
