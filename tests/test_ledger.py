"""What a ledger does with files that are damaged in ways that parsers trip over."""

from pathlib import Path

import pytest
import torch

from shared.sweep.ledger import Ledger
from shared.train.state import DamagedFileError, save


def test_a_deep_result_and_losses_of_another_kind_are_damage(tmp_path: Path) -> None:
    ledger, run_id, said = Ledger(tmp_path), "a" * 12, list[str]()
    path = ledger.run_folder(run_id) / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text("[" * 100_000)
    assert ledger.result(run_id, said.append) is None
    assert "is damaged" in said[0]
    assert not path.exists()
    save(path.with_name("losses.safetensors"), {"weights": torch.ones(2)}, {"run_id": run_id})
    with pytest.raises(DamagedFileError, match=r"losses\.safetensors: holds no losses"):
        ledger.losses(run_id)
    cell = ledger.cell_file(run_id, "rtn-INT4-32").with_suffix(".safetensors")
    save(cell, {"weights": torch.ones(2)}, {"run_id": run_id})
    assert ledger.cell_losses(run_id, "rtn-INT4-32", said.append) is None
    assert "holds no losses" in said[1]
    assert not cell.exists()
