"""One trunk on several processes, as `torchrun` starts them: each takes its share of every batch.

Gradients are averaged by one flat all-reduce after the last micro-batch. The processes hold the same weights and read
the same batches, so that nothing else travels but the loss and whether any of them was told to stop.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from shared.errors import BitlawError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among those of a run; alone it is 0 of 1 and nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks to the launcher."""
        return self.rank == 0

    def part(self, x_B: Tensor) -> Tensor:
        """This process's share of a micro-batch. Raises BitlawError when it cannot be shared evenly."""
        if len(x_B) % self.size:
            raise BitlawError(
                f"a micro-batch of {len(x_B)} sequences cannot be shared by {self.size} processes: "
                "change accumulate, or the number of processes"
            )
        return x_B.chunk(self.size)[self.rank]

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.size == 1:
            return
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        distributed.all_reduce(flat)
        flat /= self.size
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))

    def mean_and_any(self, value: float, flag: bool, device: torch.device) -> tuple[float, bool]:
        """The mean of a number over the processes, and whether the flag is up in any of them."""
        if self.size == 1:
            return value, flag
        both = torch.tensor([value / self.size, float(flag)], dtype=torch.float64, device=device)
        distributed.all_reduce(both)
        return float(both[0]), bool(both[1] > 0)

    def told(self, value: T) -> T:
        """The first process's value, in all of them; it travels as JSON (torch's own way would be a pickle)."""
        if self.size == 1:
            return value
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        text = json.dumps(value).encode()
        length = torch.tensor([len(text)], device=device)
        distributed.broadcast(length, src=0)
        letters = torch.zeros(int(length), dtype=torch.uint8, device=device)
        if self.first:
            letters = torch.tensor(list(text), dtype=torch.uint8, device=device)
        distributed.broadcast(letters, src=0)
        return cast(T, json.loads(bytes(letters.tolist())))


def join(device: torch.device) -> World:
    """Join what torchrun started; alone without it. Raises BitlawError when the processes do not find each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise BitlawError(f"the processes of this run did not find each other ({error}): start them again") from error
    return World(distributed.get_rank(), distributed.get_world_size())


def leave(world: World) -> None:
    if world.size > 1:
        distributed.destroy_process_group()
