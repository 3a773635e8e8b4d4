"""Copying from the context: measured on models that do and do not, and what follows for pairs of runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulated_low_precision import M1, of_multiplier, write_runs
from torch import Tensor, nn

from replications.comparison import copied_figure
from replications.comparison.copied import explain, what_is_left
from replications.copying import COPIES, comparable, counted, low_precision, mixed, read_comparable, read_copying
from shared.errors import BitlawError
from shared.evaluate.statistics import copying
from shared.laws.tables import RUNS, read_table
from shared.model import Decoder, Shape

VOCABULARY, HALF = 64, 16
WINDOWS_ST = torch.randint(0, VOCABULARY, (5, 2 * HALF + 1), generator=torch.Generator().manual_seed(0))
W2, W3 = {"weights": "INT2@channel"}, {"weights": "INT3@channel"}


class Copier(nn.Module):
    """Puts `sure` nats of logit on what followed the last place with the same token, else is uniform."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.lm_head = nn.Linear(1, 1)
        self.sure = sure

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        logits_BTV = torch.zeros(*tokens_BT.shape, VOCABULARY, dtype=dtype)
        for b, row in enumerate(tokens_BT.tolist()):
            for t, token in enumerate(row):
                before = [s for s in range(t) if row[s] == token]
                if before:
                    logits_BTV[b, t, row[before[-1] + 1]] = self.sure
        return logits_BTV


def test_who_copies_gains_all_that_is_new_and_who_does_not_gains_nothing() -> None:
    distinct_ST = torch.stack([torch.randperm(VOCABULARY)[: 2 * HALF + 1] for _ in range(5)])
    gain = copying(Copier(50.0), distinct_ST)  # type: ignore[arg-type]
    assert gain == pytest.approx(np.log(VOCABULARY), rel=1e-6)
    assert copying(Copier(0.0), distinct_ST) == pytest.approx(0.0, abs=1e-6)  # type: ignore[arg-type]


def test_a_model_before_training_does_not_copy() -> None:
    model = Decoder(Shape(2, 32, 64, 16, VOCABULARY, 2 * HALF))
    model.initialise(1)
    assert abs(copying(model.eval(), WINDOWS_ST)) < COPIES / 2


def pool(folder: Path) -> pd.DataFrame:
    """Base runs, and two compressions of each."""
    return read_table(write_runs(folder / "runs.csv", [W2, W3], lambda spec: of_multiplier(spec, 0.8)), RUNS)


def write_statistics(folder: Path, gain: "pd.Series[float]") -> None:
    columns = {"size": "S", "n_blocks": 1, "tokens": 1, "cooled": True, "seed": 1, "weights": "none"}
    table = pd.DataFrame({"run_id": gain.index, "value": gain.to_numpy()}).assign(
        **columns, activations="none", quantity="copying", of="validation"
    )
    table.to_csv(folder / "statistics.csv", index=False)


@given(st.lists(st.floats(-0.2, 1.2), min_size=2, max_size=2))
def test_a_run_is_mixed_when_its_base_run_is_on_the_other_side(gains: list[float]) -> None:
    runs = pd.DataFrame({"run_id": ["base", "own", "stranger"], "base_run_id": ["", "base", "absent"]})
    found = mixed(runs, pd.Series(gains, index=["base", "own"]))
    assert found.tolist() == [False, (gains[0] > COPIES) != (gains[1] > COPIES), False]


def test_mixed_runs_are_left_out_and_named_and_others_stay(tmp_path: Path) -> None:
    runs = pool(tmp_path)
    assert len(comparable(runs, tmp_path)) == len(runs)  # nothing is measured
    gain = pd.Series(0.05, index=runs["run_id"])
    one = runs[(runs["size"] == "S") & (runs["tokens"] == 8 * M1) & (runs["weights"] == "INT2@channel")].iloc[0]
    gain[one["run_id"]] = 0.6
    both = runs[(runs["size"] == "M") & (runs["tokens"] == 8 * M1)]
    gain[both["run_id"]] = 1.1  # base and compressed runs alike
    write_statistics(tmp_path, gain)
    assert read_copying(tmp_path / "statistics.csv").to_dict() == pytest.approx(gain.to_dict())
    kept = read_comparable(tmp_path / "runs.csv", RUNS)
    assert set(runs["run_id"]) - set(kept["run_id"]) == {one["run_id"]}
    table = {(row["size"], row["tokens"]): row for row in counted(runs, gain)}
    row = table["S", 8.0 * M1]
    assert row["left_out"] == ["weights=INT2@channel, seed 1"]
    assert (row["unquantized"], row["unquantized_copy"], row["low_precision"], row["low_precision_copy"]) == (
        3,
        0,
        2,
        1,
    )
    assert table["M", 8.0 * M1]["left_out"] == []
    assert table["M", 8.0 * M1]["unquantized_copy"] == 3
    assert sum(int(str(row["unknown"])) for row in table.values()) == 0


def test_a_bad_cell_of_the_statistics_is_named(tmp_path: Path) -> None:
    runs = pool(tmp_path)
    write_statistics(tmp_path, pd.Series(["much"], index=runs["run_id"][:1]))
    with pytest.raises(BitlawError, match=r"statistics.csv.*value"):
        read_comparable(tmp_path / "runs.csv", RUNS)


def rounded(growth: float) -> tuple[pd.DataFrame, "pd.Series[float]"]:
    """Cells of six trunks by a known law: larger models copy, from some horizon on."""
    rows, gain = [], {}
    for k, (N, layers) in enumerate(zip((1e5, 1e5, 2e5, 3e5, 4e5, 7e5), (2, 2, 1, 3, 4, 4), strict=True)):
        for D in (8e6, 16e6, 32e6):
            run = f"{k}-{D:g}"
            gain[run] = 1.0 if N * D > 4e12 else 0.05
            delta = 0.1 * (D / 1e7) ** 0.5 * (N / 3e5) ** -0.2 * np.exp(growth * gain[run])
            known = {
                "run_id": run,
                "trunk_id": str(k),
                "n_layer": layers,
                "n_blocks": N,
                "tokens": D,
                "cooled": True,
                "method": "rtn",
            }
            rows.append(known | {"format": "INT3", "group_size": "channel", "delta": delta})
    return pd.DataFrame(rows), pd.Series(gain)


def test_exponents_are_told_apart_from_what_copying_adds() -> None:
    cells, gain = rounded(0.5)
    (row,) = explain(cells, gain)
    assert (row["phase"], row["format"], row["cells"], row["trunks"]) == ("cooled", "INT3", 18, 6)
    found = row["with_copying"]
    assert isinstance(found, dict)
    for name, value in {"slope_D": 0.5, "slope_N": -0.2, "growth": 0.5}.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-9)
    without = row["without"]
    assert isinstance(without, dict)
    assert without["slope_N"]["value"] > 0  # what copying adds looks as if size did
    assert float(str(row["rms_with_copying"])) < 1e-9 < float(str(row["rms_with_layers"]))
    assert float(str(row["rms_without"])) > 0.1
    layers = row["with_layers"]
    assert isinstance(layers, dict)
    assert set(layers) == {"slope_D", "slope_N", "slope_layers"}


def test_nothing_is_explained_where_nobody_copies_more_or_trunks_are_few() -> None:
    cells, gain = rounded(0.5)
    assert explain(cells, gain * 0 + 0.05) == []
    assert explain(cells[cells["trunk_id"].isin(["0", "5"])], gain) == []
    assert explain(cells.assign(group_size="8"), gain) == []


def test_the_figure_shows_every_run_and_says_how_many_are_left_out(tmp_path: Path) -> None:
    runs = pool(tmp_path)
    gain = pd.Series(0.05, index=runs["run_id"])
    own = low_precision(runs, gain)
    assert len(own) == (runs["base_run_id"] != "").sum()
    gain[runs.loc[runs["base_run_id"] != "", "run_id"].iloc[0]] = 0.6
    own = low_precision(runs, gain)
    cells, of_cells = rounded(0.5)
    left = what_is_left(cells.assign(size="S"), of_cells, "INT3")
    assert left["left"].mean() == pytest.approx(0.0, abs=1e-9)
    assert left.loc[left["copying"] > COPIES, "left"].mean() > 0
    drawing = copied_figure.draw(own, left)
    assert f"1 of {len(own)} left out" in drawing.caption
    drawn = [np.size(line.get_xdata()) for line in drawing.figure.axes[0].lines if line.get_linestyle() == "None"]
    assert sum(drawn) == len(own)
