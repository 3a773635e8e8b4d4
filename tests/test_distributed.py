"""What processes of one run share, without starting any: shares, and what one alone does."""

import pytest
import torch

from shared.errors import BitlawError
from shared.train.distributed import World, join


def test_the_shares_make_the_whole() -> None:
    x_B = torch.arange(12).view(6, 2)
    parts = [World(rank, 3).part(x_B) for rank in range(3)]
    assert torch.equal(torch.cat(parts), x_B)
    with pytest.raises(BitlawError, match="cannot be shared by 4 processes"):
        World(0, 4).part(x_B)


def test_alone_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join(torch.device("cpu"))
    assert world == World(0, 1)
    assert world.first
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    world.average([weight])
    assert weight.grad.tolist() == [1.0, 2.0, 3.0]
    assert world.mean_and_any(2.5, True, torch.device("cpu")) == (2.5, True)
    assert world.told("x") == "x"
