"""`python -m benchmarks.goldens --out tests/goldens/trl.json`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Any

FAMILIES = {"current": ("preferences", "online"), "retired": ("retired",)}


def goldens(family: str) -> dict[str, Any]:
    """Everything TRL's installed release computes for a family: versions, inputs ("batches"), "cases"."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch
    import trl

    torch.set_num_threads(1)
    parts = [importlib.import_module(f"benchmarks.goldens.{name}") for name in FAMILIES[family]]
    batches: dict[str, Any] = {}
    for part in parts:
        batches |= part.batches()
    cases = [case for part in parts for case in part.cases()]
    return {
        "trl": trl.__version__,
        "torch": torch.__version__.partition("+")[0],
        "batches": batches,
        "cases": cases,
    }


def render(found: dict[str, Any]) -> str:
    """JSON with one line for each batch and each case; floats in full (17 digits where needed)."""

    def line(value: Any) -> str:
        return json.dumps(value, allow_nan=False)

    batches = ",\n".join(f"  {line(name)}: {line(batch)}" for name, batch in found["batches"].items())
    cases = ",\n".join(f"  {line(case)}" for case in found["cases"])
    versions = "".join(f" {line(name)}: {line(found[name])},\n" for name in ("trl", "torch"))
    return f'{{\n{versions} "batches": {{\n{batches}\n }},\n "cases": [\n{cases}\n ]\n}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", choices=FAMILIES, default="current", help="retired: needs trl==1.13.0")
    given = parser.parse_args()
    out: Path = given.out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(goldens(given.family)))


if __name__ == "__main__":
    main()
