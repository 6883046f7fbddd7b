"""`python -m benchmarks.chaos protocol|real|recovery|resize`: see `--help` of each."""

from __future__ import annotations

import sys
from importlib import import_module

LANES = ("protocol", "real", "recovery", "resize")


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in LANES:
        print(f"usage: python -m benchmarks.chaos {{{','.join(LANES)}}} [options]", file=sys.stderr)
        return 2
    return import_module(f"benchmarks.chaos.{sys.argv[1]}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
