from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.limits import Limits
from serving.media import MediaPool
from serving.settings import MediaSettings


@pytest.fixture(scope="session")
def pool() -> Iterator[MediaPool]:
    made = MediaPool(MediaSettings(decoders=1), Limits())
    yield made
    made.close()
