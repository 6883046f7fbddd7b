"""Watches every element that a loader of weights writes, and reads back what computes.

vLLM reports nothing that can be trusted here: a reload returns None whether or not all shards arrived, keeps
a layer's old matrix when it received nothing (a tied head), and leaves rows uninitialised when a fused shard
is missing. So the destinations of all copies are recorded, and afterwards what computes is read back.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actors.proof import LoadReport

Named = Sequence[tuple[str, Tensor]]
ALL_COLUMNS = 2**24  # multiply-adds up to which a packed matrix is read back wholly
SOME_COLUMNS = 16  # columns read back of a larger one


@dataclass(frozen=True)
class Write:
    """One copy into a region of a parameter; `source` is None where nothing real was copied."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    source: Tensor | None


@dataclass
class Target:
    """A parameter as the loader sees it, before vLLM packs it."""

    shape: tuple[int, ...]
    writes: list[Write] = field(default_factory=list[Write])

    @property
    def elements(self) -> int:
        return _product(self.shape)


class Recorder(TorchDispatchMode):
    """Records every write into a known storage, whichever loader makes it.

    Weight loaders narrow a parameter and copy into the view; the view's storage names the parameter, its
    size, stride and offset the region. This holds on the meta device too, where vLLM loads first.
    """

    def __init__(self, verified: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._verified = verified
        self._item: tuple[Tensor, Tensor] | None = None  # the tensor being loaded, and what it should hold
        self.targets: dict[str, Target] = {}
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # keeps the storages alive, so that no address is used twice

    def watch(self, model: torch.nn.Module) -> None:
        """Register the parameters that a loader is about to fill; each tied module counts on its own."""
        for path, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                full = f"{path}.{name}" if path else name
                self._names[_storage(parameter)] = full
                self._kept.append(parameter)
                self.targets[full] = Target(tuple(parameter.shape))

    def items(self, model: torch.nn.Module, handed: Named) -> Iterator[tuple[str, Tensor]]:
        """The tensors one by one; vLLM writes one before it asks for the next."""
        self.watch(model)  # by the first item vLLM has put the parameters into loadable form
        for name, tensor in handed:
            self._item = (tensor, self._verified[name])
            yield name, tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar):
            self._record(args[0], args[1] if isinstance(args[1], Tensor) else None)
        return func(*args, **(kwargs or {}))

    def _record(self, view: Tensor, source: Tensor | None) -> None:
        name = self._names.get(_storage(view))
        if name is None or (source is not None and _storage(source) == _storage(view)):
            return  # vLLM also copies a bias onto itself, which loads nothing
        write = Write(
            tuple(view.shape), tuple(view.stride()), int(view.storage_offset()), self._expected(source)
        )
        self.targets[name].writes.append(write)

    def _expected(self, source: Tensor | None) -> Tensor | None:
        """The verified values of a piece of the tensor being loaded; what was handed over may be older."""
        if source is None or source.is_meta or self._item is None:
            return None
        handed, verified = self._item
        if _storage(source) != _storage(handed):
            return source  # the loader made a new tensor of it
        offset = verified.storage_offset() + source.storage_offset() - handed.storage_offset()
        return torch.as_strided(verified, source.shape, source.stride(), offset)


# -- full weights ------------------------------------------------------------------------------------------


def report(model: torch.nn.Module, targets: Mapping[str, Target]) -> LoadReport:
    """Count what was written and read back what computes."""
    modules = dict(model.named_modules())
    missing: dict[str, int] = {}
    stale: list[str] = []
    unread: list[str] = []
    for full, target in targets.items():
        path, _, name = full.rpartition(".")
        lost = target.elements - covered(target.writes)
        if lost:
            missing[full] = lost
        held = in_effect(modules[path], name, target)
        if held is False:
            stale.append(full)
        elif held is None:
            unread.append(full)
    elements = sum(target.elements for target in targets.values())
    return LoadReport(
        elements=elements,
        written=elements - sum(missing.values()),
        missing=missing,
        stale=tuple(stale),
        unread=tuple(unread),
    )


def covered(writes: Iterable[Write]) -> int:
    """Number of distinct elements that some writes touch."""
    runs = sorted(run for write in writes for run in contiguous_runs(write))
    count, end = 0, 0
    for start, stop in runs:
        count += max(0, stop - max(start, end))
        end = max(end, stop)
    return count


def contiguous_runs(write: Write) -> Iterator[tuple[int, int]]:
    """The region as [start, stop) intervals of the storage, as few as its strides allow."""
    if 0 in write.size:
        return
    length, depth = 1, len(write.size)
    while depth and (write.size[depth - 1] == 1 or write.stride[depth - 1] == length):
        length *= write.size[depth - 1]
        depth -= 1
    for index in itertools.product(*(range(n) for n in write.size[:depth])):
        start = write.offset + sum(i * s for i, s in zip(index, write.stride, strict=False))
        yield start, start + length


def in_effect(module: torch.nn.Module, name: str, target: Target) -> bool | None:
    """Whether a module computes with the values it was sent; None where they cannot be read back."""
    held: list[bool] = []
    parameter = module._parameters[name]
    packed = getattr(module, "cpu_linear", None) if name == "weight" and len(target.shape) == 2 else None
    if packed is not None:
        whole_rows = [write for write in target.writes if _rows(write, target)]
        held += [_packed_holds(packed, parameter, target, write) for write in whole_rows]
    if parameter is not None and tuple(parameter.shape) == target.shape:
        held += [_plain_holds(parameter, write) for write in target.writes if write.source is not None]
    return all(held) if held else None


def _plain_holds(parameter: Tensor, write: Write) -> bool:
    assert write.source is not None
    live = torch.as_strided(parameter.detach(), write.size, write.stride, write.offset)
    return torch.equal(live, write.source.to(live.device, live.dtype).expand_as(live))


def _rows(write: Write, target: Target) -> bool:
    """Whole rows of a matrix with real values: what a column probe can check."""
    columns = target.shape[1]
    return write.source is not None and write.size[1:] == (columns,) and write.stride == (columns, 1)


def _packed_holds(packed: Any, parameter: Any, target: Target, write: Write) -> bool:
    """Read columns of a packed matrix by multiplying it with unit vectors, which is exact in every dtype."""
    rows, columns = target.shape
    assert write.source is not None
    whole = rows * columns * columns <= ALL_COLUMNS
    chosen = torch.arange(columns) if whole else torch.randperm(columns)[:SOME_COLUMNS]
    dtype = parameter.dtype
    probe = torch.zeros(len(chosen), columns, dtype=dtype)
    probe[torch.arange(len(chosen)), chosen] = 1
    first = write.offset // columns
    got = packed(probe, parameter, None)[:, first : first + write.size[0]]
    return torch.equal(got, write.source.to(dtype)[:, chosen].T)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _product(shape: Iterable[int]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


# -- adapters ----------------------------------------------------------------------------------------------


def adapter_report(manager: Any, adapter: int, sent: Mapping[str, Tensor], scaling: float) -> LoadReport:
    """Elements of a LoRA adapter that the engine's slot for it holds."""
    slot = manager.lora_index_to_id.index(adapter) if adapter in manager.lora_index_to_id else None
    missing: dict[str, int] = {}
    stale: list[str] = []
    for name, tensor in sent.items():
        found = None if slot is None else _slot_tensor(manager, slot, name)
        if found is None:
            missing[name] = tensor.numel()
            continue
        live = found[: tensor.shape[0], : tensor.shape[1]]
        expected = tensor.to(live.device, live.dtype)
        if "lora_B" in name:
            expected = expected * scaling  # vLLM folds alpha / rank into B
        if live.shape != expected.shape or not torch.equal(live, expected):
            stale.append(name)
    elements = sum(tensor.numel() for tensor in sent.values())
    written = elements - sum(missing.values()) - sum(sent[name].numel() for name in stale)
    return LoadReport(elements=elements, written=written, missing=missing, stale=tuple(stale))


def _slot_tensor(manager: Any, slot: int, name: str) -> Tensor | None:
    """The matrix [rank or out, in or rank] in the buffer that serves a PEFT tensor; None: no module."""
    from vllm.lora.utils import parse_fine_tuned_lora_name

    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    renamed = mapper.get_rename_mapper() if mapper is not None else None
    module, is_a = parse_fine_tuned_lora_name(name, renamed)
    position = 0
    if module not in manager.modules:
        for packed, parts in manager.packed_modules.items():
            if module in parts:
                module, position = packed, parts.index(module)
                break
    if module not in manager.modules:
        return None
    layer = manager.modules[module]
    stacked = layer.lora_a_stacked if is_a else layer.lora_b_stacked
    return stacked[position][slot, 0]
