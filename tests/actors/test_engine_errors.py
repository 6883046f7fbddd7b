from __future__ import annotations

import pytest
from vllm.exceptions import VLLMServerError, VLLMUnprocessableEntityError, VLLMValidationError

from actors.engine_errors import is_of_request


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VLLMValidationError("the prompt is empty", parameter="prompt", value=""), True),
        (VLLMUnprocessableEntityError("no such picture"), True),
        (ValueError("out of vocabulary"), True),
        (VLLMServerError("the engine is dead"), False),
        (RuntimeError("CUDA error"), False),
    ],
)
def test_the_request_is_at_fault_where_vllm_or_a_check_says_so(error: Exception, expected: bool) -> None:
    assert is_of_request(error) is expected
