"""What runs in rank 0 alone, how ranks agree, and errors of communication in one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from diffusion.utils.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed import ProcessGroup

Answer = TypeVar("Answer")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOST = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")  # gloo has no error of its own


class AllReduceMax:
    """The largest of every process's numbers, place by place; over the host, so that it costs a GPU no wait."""

    def __init__(self, accelerator: Accelerator):
        self._alone = accelerator.num_processes == 1
        on_host = self._alone or torch.distributed.get_backend() == "gloo"
        group = None if on_host else torch.distributed.new_group(backend="gloo")
        self._group = cast("ProcessGroup | None", group)  # a number only in processes that it leaves out

    def __call__(self, values: Sequence[float]) -> list[float]:
        """To be called by all processes together."""
        if self._alone:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self._group)
        return largest.tolist()


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a full disk, and failed communication with a process that is gone, into InputErrors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"{error}. Make room or mend the disk, and start the same command again: it goes on from the last checkpoint"
        ) from error
    except RuntimeError as error:
        backend = getattr(torch.distributed, "DistBackendError", ())
        if not isinstance(error, backend) and not any(sign in str(error) for sign in LOST):
            raise
        raise InputError(
            f"another process of the run is gone ({str(error).strip().splitlines()[0]}); its own message, above or in its "
            "log, says why. What was saved is whole: the same command goes on from there"
        ) from error


def on_main(accelerator: Accelerator, function: Callable[[], Answer]) -> Answer:
    """Run a function in the main process and return its result in all of them; its InputError is raised in all, too."""
    from accelerate.utils import broadcast_object_list

    answer, error = None, None
    if accelerator.is_main_process:
        try:
            answer = function()
        except InputError as raised:
            error = raised
    answer, error = broadcast_object_list([answer, error])
    if error is not None:
        raise error
    return answer
