"""Make a freshly installed virtual environment usable on a machine with a CPU-only torch.

Package indexes serve CUDA builds of torch's companions. Beside a CPU build of torch two of them
(`torchaudio`, `torchcodec`) cannot load their libraries and take `transformers` down with them, and
`torchvision` fails because the compiled operators it annotates were never registered. Each remedy is
applied only where a probe fails, and only to this environment: the library itself never depends on it.

Run by `make setup` with the environment's own interpreter.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

HOOK_NAME = "_torchvision_schemas"

# Lives in site-packages and is started by a .pth file, so that every process of the environment (driver,
# Ray workers, engine processes) gets it. It must cost nothing until somebody imports torchvision.
HOOK = '''"""Define the operator schemas that torchvision expects, just before its first import."""
import sys


class _DefineSchemasFirst:
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        for operator in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", schema)
        return None


sys.meta_path.insert(0, _DefineSchemasFirst())
'''


def imports(module: str) -> bool:
    """Whether `module` imports in a fresh interpreter of this environment."""
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True).returncode == 0


def remove_broken_companions() -> None:
    """Uninstall optional companions of torch that are installed but cannot be imported."""
    for package in ("torchaudio", "torchcodec"):
        installed = subprocess.run([sys.executable, "-m", "pip", "show", "-q", package]).returncode == 0
        if installed and not imports(package):
            print(f"setup: {package} does not load beside this torch; uninstalling it", flush=True)
            subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", package], check=True)


def mend_torchvision() -> None:
    """Install the schema hook if, and only if, `import torchvision` fails; fail if that does not help."""
    if imports("torchvision"):
        return
    print("setup: torchvision does not load beside this torch; installing the schema hook", flush=True)
    site = Path(sysconfig.get_paths()["purelib"])
    (site / f"{HOOK_NAME}.py").write_text(HOOK)
    (site / f"{HOOK_NAME}.pth").write_text(f"import {HOOK_NAME}\n")
    if not imports("torchvision"):
        sys.exit("setup: torchvision still does not import; run `python -c 'import torchvision'` to see why")


if __name__ == "__main__":
    remove_broken_companions()
    mend_torchvision()
