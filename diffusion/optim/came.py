"""CAME, the published recipe's optimizer, for parameters of one shape together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

AT_ONCE = 2**25  # numbers of one update, 128 MiB; most matrices of the published network have over a million


class CAME(torch.optim.Optimizer):
    """Confidence-guided Adaptive Memory Efficient optimization (Luo et al. 2023, algorithm 2).

    Second moments of a matrix are kept as those of its rows and its columns; momentum counts for less where it strays
    from the updates. betas: of momentum, of squared gradients, of squared deviations; eps: added to the latter two; clip:
    the largest root mean square of a parameter's update before momentum. Tensors of more axes are stacks of matrices.

    Parameters of one shape are stacked and updated together. One by one, the published network's are some 14,000 kernels
    a step, for which a GPU waits longer than it computes.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(parameters, dict(lr=lr, betas=betas, eps=eps, clip=clip, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - takes no closure
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameters in group_by_shape(group["params"]):
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Letters: k parameters of shape (..., n, m), or (m,)."""
        lr, betas, eps = group["lr"], group["betas"], group["eps"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # all have one
        update = torch.stack(gradients)  # (k, ..., n, m)
        momentum = self._kept(parameters, "exp_avg", update.shape[1:])
        is_matrix = update.ndim > 2
        if is_matrix:
            self._divide_by_root_mean_square(update, parameters, "exp_avg_sq", betas[1], eps[0])
        else:
            squares = self._kept(parameters, "exp_avg_sq", update.shape[1:])
            torch._foreach_lerp_(squares, (update.square() + eps[0]).unbind(), 1 - betas[1])
            update.mul_(torch.stack(squares).rsqrt_())
        size = torch.linalg.vector_norm(update.flatten(1), dim=1) / update[0].numel() ** 0.5  # (k,)
        update.div_((size / group["clip"]).clamp_(min=1).reshape(-1, *[1] * (update.ndim - 1)))
        torch._foreach_lerp_(momentum, update.unbind(), 1 - betas[0])
        if is_matrix:
            confident = torch.stack(momentum)
            update.sub_(confident)  # the deviation
            self._divide_by_root_mean_square(confident, parameters, "exp_avg_res", betas[2], eps[1], of=update)
            update = confident
        else:
            update = torch.stack(momentum)
        weights: list[torch.Tensor] = [*parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_add_(weights, update.unbind(), alpha=-lr)

    def _divide_by_root_mean_square(
        self,
        update: torch.Tensor,
        parameters: list[nn.Parameter],
        name: str,
        beta: float,
        eps: float,
        of: torch.Tensor | None = None,
    ) -> None:
        """Divide, in place, (k, ..., n, m) by the root of the running mean square of itself, or `of` another of its shape.

        Of the mean, only those over rows and over columns are kept; their product, over the mean of all, stands for it.
        """
        squares = (update if of is None else of).square()
        roots = []
        for ending, axis in (("row", -1), ("col", -2)):
            mean = squares.mean(axis).add_(eps)  # (k, ..., n or m)
            kept = self._kept(parameters, f"{name}_{ending}", mean.shape[1:])
            torch._foreach_lerp_(kept, mean.unbind(), 1 - beta)
            roots.append(torch.stack(kept))
        rows, columns = roots
        rows = (rows / rows.mean(-1, keepdim=True)).rsqrt_()
        update.mul_(rows.unsqueeze(-1)).mul_(columns.rsqrt_().unsqueeze(-2))

    def _kept(self, parameters: list[nn.Parameter], name: str, shape: torch.Size) -> list[torch.Tensor]:
        """Return a running mean of each parameter, zero at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = parameter.new_zeros(shape)
        return [self.state[parameter][name] for parameter in parameters]


def group_by_shape(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters with gradients by shape, as many as make AT_ONCE numbers, one at least."""
    by_shape: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_shape.setdefault((parameter.shape, parameter.device, parameter.dtype), []).append(parameter)
    for same in by_shape.values():
        count = max(1, AT_ONCE // same[0].numel())
        yield from (same[i : i + count] for i in range(0, len(same), count))
