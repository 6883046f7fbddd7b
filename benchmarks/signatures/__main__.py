"""The command: trains what is missing, then writes the page."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context

from cpuinfo import get_cpu_info

from benchmarks.signatures.page import Runs, write
from benchmarks.signatures.rows import ROWS
from benchmarks.signatures.runs import FOLDER, run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signatures")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(row.key for row in ROWS))
    parser.add_argument("--seeds", type=int, help="in place of each row's own number")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at one time")
    parser.add_argument("--page", action="store_true", help="train nothing, write the page")
    given = parser.parse_args(arguments)
    if unknown := set(given.rows) - {row.key for row in ROWS}:
        parser.error(
            f"no such row: {', '.join(sorted(unknown))}; known: {', '.join(row.key for row in ROWS)}"
        )
    rows = [row for row in ROWS if not given.rows or row.key in given.rows]
    if given.seeds:
        rows = [replace(row, seeds=given.seeds) for row in rows]
    if not given.page:
        # Seed by seed, so that whatever time allows is a whole comparison.
        last = max(row.seeds for row in rows)
        jobs = [(arm, seed) for seed in range(last) for row in rows for arm in row.arms if seed < row.seeds]
        train(list(dict.fromkeys(jobs)), given.workers)
    machine = f"{get_cpu_info().get('brand_raw', 'unknown processor')}, {os.cpu_count()} cores"
    write(ROWS, kept(), "make signatures", machine)
    return 0


def train(jobs: Sequence[tuple[str, int]], workers: int) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core each; more threads only wait for one another
    missing = [(arm, seed) for arm, seed in jobs if not (FOLDER / f"{arm}-{seed}.json").exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run, arm, seed): (arm, seed) for arm, seed in missing}
        for number, future in enumerate(as_completed(waiting), start=1):
            arm, seed = waiting[future]
            error = future.exception()
            what = f"chair_i {future.result()['chair_i']:.3f}" if error is None else f"FAILED: {error!r}"
            print(f"[{number}/{len(missing)}] {arm} seed {seed}: {what}", flush=True)


def kept() -> Runs:
    """Every run on disk."""
    records = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return {(record["arm"], record["seed"]): record for record in records}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
