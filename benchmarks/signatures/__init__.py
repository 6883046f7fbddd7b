"""Orderings that papers report, looked for in the glyphs world.

    python -m benchmarks.signatures                    # every row, 5 seeds; finished runs are not repeated
    python -m benchmarks.signatures noise_locality     # one row
    python -m benchmarks.signatures --page             # docs/signatures.md and .json from what is there

A row is a claim: arms, a measure, and which arm should do better. An arm is a recipe with settings; a run
trains one arm on one seed, in one process with the loop of a cluster run, and is measured on held-out scenes.
All arms of a row see the same prompts and the same budget. Runs are kept under `runs/signatures/`.
"""
