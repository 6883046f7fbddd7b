"""What a claim of the README rests on: the same run over several seeds, and its controls.

    python -m benchmarks.seeds align      # online_dpo: hallucination before and after, over seeds
    python -m benchmarks.seeds controls   # the same with labels that carry no information
    python -m benchmarks.seeds margins    # media margin of mdpo and mfpo against online_dpo

Every run is one `plumbline align` in a process of its own, under `runs/seeds/<variant>-<seed>`; a run that
has finished there is not repeated. Results are printed and written to `runs/seeds/<command>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cpuinfo import get_cpu_info
from numpy.typing import NDArray

from benchmarks.media_margin import DAMAGES, media_margins
from pipelines.evaluation import compare, paired_mean, read_records
from pipelines.worlds.glyphs import BASE_MODEL

FOLDER = Path("runs/seeds")
CAPTIONS_ONLY = ("evaluation.questions=0",)
NO_EVALUATION = ("evaluation.questions=0", "evaluation.scenes=0")
VARIANTS: dict[str, tuple[str, ...]] = {
    "online_dpo": (),
    "random_labels": ("reward=random", *CAPTIONS_ONLY),
    "mdpo": ("recipe=mdpo", *NO_EVALUATION),
    "mfpo": ("recipe=mfpo", *NO_EVALUATION),
}


def run(variant: str, seed: int, timeout_s: float) -> dict[str, Any]:
    """The summary of one finished run; runs it if it is not there yet."""
    name = f"{variant}-{seed}"
    summary = FOLDER / name / "summary.json"
    if not (summary.exists() and json.loads(summary.read_text())["status"] == "finished"):
        command = [sys.executable, "-m", "pipelines.cli", "align", f"name={name}", f"output={FOLDER}"]
        command += [*VARIANTS[variant], "--seed", str(seed)]
        print(f"running {name} ...", flush=True)
        subprocess.run(command, check=True, timeout=timeout_s, stdout=subprocess.DEVNULL)
    return json.loads(summary.read_text())


def checkpoint(variant: str, seed: int) -> Path:
    steps = (FOLDER / f"{variant}-{seed}" / "checkpoints").glob("step-*")
    return max(steps, key=lambda path: int(path.name.split("-")[1]))


def align(seeds: list[int], timeout_s: float) -> dict[str, Any]:
    """Before and after of `online_dpo`, per seed, with the spread."""
    rows = [run("online_dpo", seed, timeout_s) for seed in seeds]
    changes = [row["heldout"]["change"] for row in rows]
    table = {
        measure: {
            "before": [change[measure]["before"] for change in changes],
            "after": [change[measure]["after"] for change in changes],
        }
        for measure in changes[0]
    }
    return {
        "measures": table,
        "chair_i_ratio": [change["chair_i"]["ratio"] for change in changes],
        "wall_seconds": [row["wall_seconds"] for row in rows],
    }


def controls(seeds: list[int], timeout_s: float) -> dict[str, Any]:
    """Ratio of chair_i after to before with random labels, and its difference to the real run."""
    real = [run("online_dpo", seed, timeout_s)["heldout"]["change"]["chair_i"] for seed in seeds]
    random = [run("random_labels", seed, timeout_s)["heldout"]["change"]["chair_i"] for seed in seeds]
    differences = []
    for seed in seeds:
        after = {v: captions(FOLDER / f"{v}-{seed}") for v in ("online_dpo", "random_labels")}
        differences.append(compare(after["online_dpo"], after["random_labels"])["chair_i"])
    return {
        "ratio_real": [change["ratio"] for change in real],
        "ratio_random": [change["ratio"] for change in random],
        "mean_ratio_random": statistics.fmean(change["ratio"] for change in random),
        "chair_i_random_minus_real": differences,
    }


def captions(run_dir: Path) -> list[dict[str, Any]]:
    records = read_records(run_dir / "evaluation" / "after.jsonl")
    return [record for record in records if record["kind"] == "caption"]


def margins(seeds: list[int], timeout_s: float) -> dict[str, Any]:
    """Media margin (nats) on the same held-out damage: mdpo and mfpo minus online_dpo, paired by scene."""
    base = media_margins(BASE_MODEL)
    result: dict[str, Any] = {damage: {} for damage in DAMAGES}
    for seed in seeds:
        found = {}
        for variant in ("online_dpo", "mdpo", "mfpo"):
            run(variant, seed, timeout_s)
            found[variant] = media_margins(checkpoint(variant, seed))
        for damage in DAMAGES:
            row = {v: float((found[v][damage] - base[damage]).mean()) for v in found}
            for variant in ("mdpo", "mfpo"):
                first, second = (by_scene(found[v][damage]) for v in ("online_dpo", variant))
                row[f"{variant} - online_dpo"] = paired_mean(first, second)
            result[damage][seed] = row
    return result


def by_scene(values: NDArray[np.float64]) -> dict[str, float]:
    return {str(index): float(value) for index, value in enumerate(values)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("align", "controls", "margins"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one run")
    arguments = parser.parse_args()
    experiment = {"align": align, "controls": controls, "margins": margins}[arguments.command]
    result = experiment(arguments.seeds, arguments.timeout)
    result["machine"] = (
        f"{os.cpu_count()} cores of {get_cpu_info()['brand_raw']}, Python {platform.python_version()}"
    )
    result["seeds"] = arguments.seeds
    text = json.dumps(result, indent=2)
    (FOLDER / f"{arguments.command}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
