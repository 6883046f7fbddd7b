"""What runs in vLLM's worker when a replica changes over: it reads the checkpoint itself.

The engine runs in a process of its own, through whose queue only small values pass.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.adoption import with_tied_head
from actors.engine_extension import Extension
from actors.proof import LoadReport


class FromDisk(Extension):
    """vLLM takes it by name (`worker_extension_cls`)."""

    def plumbline_load_folder(self, folder: str) -> dict[str, Any]:
        """Reload all weights from a folder's safetensors; what `actors.proof.LoadReport` says, as a dict.

        Raises FileNotFoundError when there are none.
        """
        from safetensors.torch import load_file

        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder}: it holds no safetensors")
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        tensors = with_tied_head(self.vllm_config, tensors)
        return _plain(self.plumbline_load(list(tensors.items()), tensors))

    def plumbline_read_adapter_file(self, adapter: int, file: str, scaling: float) -> dict[str, Any]:
        """Compare what the kernels read with the tensors of a PEFT file; a report as above."""
        from safetensors.torch import load_file

        return _plain(self.plumbline_read_adapter(adapter, load_file(file), scaling))


def _plain(report: LoadReport) -> dict[str, Any]:
    values = asdict(report)
    return {**values, "stale": list(values["stale"]), "unread": list(values["unread"])}
