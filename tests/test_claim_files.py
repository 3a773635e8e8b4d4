"""Claims that two workers find stale at once, and claims that say anything but who holds them."""

import contextlib
import os
import socket
from pathlib import Path

import pytest

from shared.sweep import claim


@pytest.mark.parametrize("left", ['{"host": "elsewhere", "pid": 1, "token": "x"}', '{"host": "elsew', ""])
@pytest.mark.parametrize("written", [True, False])
def test_a_stale_claim_has_one_heir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, written: bool) -> None:
    """Two find it stale; one takes it over before the other acts: its claim survives, also before it is written."""
    path = tmp_path / "claim"
    path.write_text(left)
    os.utime(path, (1, 1))
    real = claim.is_stale
    with contextlib.ExitStack() as other:

        def slow(path: Path) -> bool:
            """The answer, and what another worker did while it was given."""
            answer = real(path)
            monkeypatch.setattr(claim, "is_stale", real)
            assert other.enter_context(claim.claimed(path))
            if not written:
                path.write_text("")
            return answer

        monkeypatch.setattr(claim, "is_stale", slow)
        with claim.claimed(path) as mine:
            assert not mine
            assert [entry.name for entry in tmp_path.iterdir()] == ["claim"]


@pytest.mark.parametrize(
    "damage", ['{"host": "%s", "pid": 1e999, "token": "x"}', '{"host": "%s", "pid": NaN}', "[" * 100_000, "\xff", "3"]
)
def test_a_damaged_claim_goes_stale_by_age(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "claim"
    path.write_text(damage.replace("%s", socket.gethostname()), encoding="latin-1")
    assert not claim.is_stale(path)
    os.utime(path, (1, 1))
    assert claim.is_stale(path)
    with claim.claimed(path) as mine:
        assert mine
