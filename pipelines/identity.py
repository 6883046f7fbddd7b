"""Whether `pipelines`, `actors` and `serving` are plumbline's and not a user's folders of the same names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipelines", "actors", "serving")


class Shadowed(ImportError):
    """One of our packages would be imported from somewhere else."""


def check() -> None:
    """Raise Shadowed unless all three packages come from the folder of this file.

    Their names are common, and a working directory precedes installed packages on the path: somebody's own
    `actors` folder would be imported half-way through a run. Called on the driver and in every worker.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = (
            [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]
        )
        if places != [ROOT / name]:
            found = ", ".join(map(str, places)) or "nowhere"
            raise Shadowed(
                f"the package {name!r} is found in {found}, expected {ROOT / name}; rename that folder or "
                "run from another directory"
            )
