"""Golden numbers of preference losses: TRL's own code, run on fixed log-probabilities, stored as JSON.

`python -m benchmarks.goldens --out tests/goldens/trl.json` needs the extra `bench`.
"""
