"""How fast a network could be on a given processor: every operation at the peak rate, or at that of the memory.

Counted without computing, on tensors that have shapes but no values: operations (a multiplication and an addition are
two) of products and attention, bytes that every kernel reads and writes, nothing fused. An operation takes the longer of
the two (Williams et al. 2009, "Roofline"), and so do all one after the other. The kernels are those of eager PyTorch under a
CPU's autocast; a GPU's differs in elementwise ones: it casts the half-precision part of an addcmul in a kernel of its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.case import Case
from benchmarks.table import Row
from benchmarks.training import OurSetup

aten = torch.ops.aten
ATTENTION, ATTENTION_BACKWARD = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


@dataclass
class Work:
    """Operations, bytes, and the least seconds of kernels of one kind."""

    operations: float = 0
    bytes: float = 0
    seconds: float = 0

    def add(self, other: Work, times: int = 1) -> None:
        """Add `times` times another's work to this."""
        self.operations += times * other.operations
        self.bytes += times * other.bytes
        self.seconds += times * other.seconds


@dataclass
class Roofline(TorchDispatchMode):
    """Counts what runs under it. peak: operations a second; bandwidth: bytes a second."""

    peak: float
    bandwidth: float
    kinds: dict[str, Work] = field(default_factory=lambda: defaultdict(Work))

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace != "aten" or func is aten.detach.default:
            return out  # moves nothing
        moved = bytes_moved(func, args, kwargs or {}, out)
        operations = self._count_operations(func.overloadpacket, args, kwargs or {}, out)
        seconds = max(operations / self.peak, moved / self.bandwidth)
        self.kinds[kernel_kind(func.overloadpacket, operations)].add(Work(operations, moved, seconds))
        return out

    def _count_operations(self, packet, args, kwargs, out) -> int:
        if packet is ATTENTION:
            return sdpa_flop_count(*(tuple(each.shape) for each in args[:3]))
        if packet is ATTENTION_BACKWARD:
            return sdpa_backward_flop_count(*(tuple(each.shape) for each in args[:4]))
        return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0

    @property
    def total(self) -> Work:
        """The sum over all kinds."""
        total = Work()
        for work in self.kinds.values():
            total.add(work)
        return total


def bytes_moved(func, args: tuple, kwargs: dict[str, Any], out: Any) -> int:
    """Return the bytes that a kernel reads, changes in place, and writes to new tensors."""
    passed = [(a, args[i] if i < len(args) else kwargs.get(a.name)) for i, a in enumerate(func._schema.arguments)]
    read = tensors_in([value for _, value in passed])
    written = [value for a, value in passed if a.alias_info is not None and a.alias_info.is_write and a.name != "grads"]
    changed = tensors_in(written)  # fused AdamW may unscale gradients in place, which it is not asked for
    created = {key: tensor for key, tensor in tensors_in(out).items() if key not in read}
    return sum(tensor.nbytes for group in (read, changed, created) for tensor in group.values())


def tensors_in(tree: Any) -> dict[int, torch.Tensor]:
    """Return the tensors in nested containers by their identity, each once."""
    return {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}


def kernel_kind(packet: Any, operations: int) -> str:
    """Return the kind that a kernel is counted under."""
    if packet in (ATTENTION, ATTENTION_BACKWARD):
        return "attention"
    return "products" if operations else "elementwise"


def floor_rows(case: Case, steps: int, peak: float, bandwidth: float) -> list[Row]:
    """Return rows of operations, bytes and least seconds of a training step, and of a guided sample of `steps` steps, of the case's batch.

    peak: operations a second in the case's precision; bandwidth: bytes a second.
    """
    rooflines = {
        "training step": count_step(case, peak, bandwidth),
        f"{steps} steps of guided sampling": count_sample(case, steps, peak, bandwidth),
    }
    rows: list[Row] = []
    for what, roofline in rooflines.items():
        for kind, work in {"": roofline.total, **roofline.kinds}.items():
            name = f"{what} {case.name}, batch {case.batch}"
            figures = {"TFLOP": work.operations / 1e12, "GB": work.bytes / 1e9, "s at least": work.seconds}
            row = partial(Row, kind, part_of=name) if kind else partial(Row, name)
            rows += [row(unit=unit, ours=figure) for unit, figure in figures.items() if figure]
    return rows


def count_step(case: Case, peak: float, bandwidth: float) -> Roofline:
    """Count a training step with AdamW and EMA: the second, since the first makes the optimizer's state."""
    first, second = (Roofline(peak, bandwidth) for _ in range(2))
    with FakeTensorMode():
        ours = OurSetup(case)
        for roofline in (first, second):
            with roofline:
                with case.autocast():
                    output = ours.network(*ours.inputs)
                output.float().square().mean().backward()  # the objective's own work is on latents, and next to nothing
                ours.clip()
                ours.optimizer.step()
                ours.optimizer.zero_grad()
                ours.average()
    return second


def count_sample(case: Case, steps: int, peak: float, bandwidth: float) -> Roofline:
    """Count the network's passes for a batch with guidance, of twice as many samples; only the first casts the weights."""
    first, later = (Roofline(peak, bandwidth) for _ in range(2))
    with FakeTensorMode(), torch.no_grad(), case.autocast():
        model = case.build_network()
        x, timestep, y = (torch.cat([each, each]) for each in case.make_inputs(model))
        for roofline in (first, later):
            with roofline:
                model(x, timestep, y)
    for kind, work in later.kinds.items():
        first.kinds[kind].add(work, steps - 1)
    return first
