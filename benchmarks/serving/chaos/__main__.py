"""Constant load on two replicas while they are killed and swapped: what clients see.

    python -m benchmarks.serving.chaos                the protocol lane: a stub engine, 10 minutes
    python -m benchmarks.serving.chaos --real         the real lane: vLLM on CPU, 10 minutes

Exit status 1 where a target was missed: 99.5% of requests answered at the first try, all with two retries, no
answer of mixed or wrong weights, no failure caused by a swap.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.ports import free_port
from benchmarks.serving.chaos.lane import publish


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.serving.chaos", description=__doc__)
    parser.add_argument("--real", action="store_true", help="vLLM instead of the stub engine")
    parser.add_argument("--seconds", type=float, default=600.0, help="of load")
    parser.add_argument("--swap-every", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1, help="which replica is killed")
    parser.add_argument("--no-ingress", action="store_true", help="leave out the kills of gateway and proxy")
    parser.add_argument("--out", type=Path, default=Path("build/serve-chaos"))
    parser.add_argument("--json", type=Path, help="write the result here")
    stub = parser.add_argument_group("stub engine")
    stub.add_argument("--kill-every", type=float, default=30.0, help="seconds")
    stub.add_argument("--rate", type=float, default=10.0, help="requests per second")
    stub.add_argument("--tokens", type=int, default=24, help="of an answer")
    stub.add_argument("--token-s", type=float, default=0.01, help="seconds that a token takes")
    stub.add_argument("--load-s", type=float, default=2.5, help="seconds that loading weights takes")
    given = parser.parse_args()
    given.out = given.out.absolute()
    shutil.rmtree(given.out, ignore_errors=True)
    given.port = free_port()
    if given.real:
        from benchmarks.serving.chaos import real as lane
    else:
        from benchmarks.serving.chaos import protocol as lane
    return publish(lane.run(given), given.json)


if __name__ == "__main__":
    sys.exit(main())
