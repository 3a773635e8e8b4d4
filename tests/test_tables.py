"""Bad tables get one sentence that names file, row and column."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from simulated_pool import HORIZONS, Truth, fit_table, simulate, write_pool

from replications.kumar_precision.law import LAW
from shared.errors import BitlawError
from shared.laws.fit import fit
from shared.laws.tables import read_pool

Change = Callable[[pd.DataFrame], pd.DataFrame]
TRUTH = Truth(LAW, {"C_T": 5.0, "gamma_D": 0.5, "gamma_N": 0.35, "gamma_post": 0.55})
RUNS, MEASURED = "runs.csv", "measurements.csv"
THIRD = "row 3 (line 4), column "


def damaged(tmp_path: Path, name: str, change: Change) -> tuple[Path, Path]:
    """A small pool on disk with one of its tables changed by `change(table as text) -> table`."""
    tables = simulate(TRUTH, {"S": 1, "M": 1}, np.random.default_rng(0), bits=(2, 4), horizons=HORIZONS[1:4])
    paths = write_pool(tmp_path, tables)
    path = paths[name == MEASURED]
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table).to_csv(path, index=False)
    return paths


def cell(column: str, value: str) -> Change:
    """Put `value` into the third row of `column`."""
    return lambda table: table.assign(**{column: [value if i == 2 else x for i, x in enumerate(table[column])]})


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (MEASURED, lambda t: t.rename(columns={"delta_se": "deltase"}), "column 'delta_se' is missing, did you mean"),
        (RUNS, lambda t: t.drop(columns="tokens"), "column 'tokens' is missing"),
        (MEASURED, cell("delta", "large"), THIRD + "'delta': 'large' is not a number"),
        (MEASURED, cell("delta", "nan"), THIRD + "'delta': nan is not finite"),
        (MEASURED, cell("loss", "inf"), THIRD + "'loss': inf is not finite"),
        (MEASURED, cell("delta_se", "-0.1"), THIRD + "'delta_se': a standard error cannot be negative"),
        (MEASURED, cell("bits", "0"), THIRD + "'bits': '0' must be above zero"),
        (RUNS, cell("loss", ""), THIRD + "'loss': nan is not finite"),
        (RUNS, cell("n_blocks", "-5"), THIRD + "'n_blocks': '-5' must be above zero"),
        (RUNS, cell("tokens", "0"), THIRD + "'tokens': '0' must be above zero"),
        (RUNS, cell("cooled", "perhaps"), THIRD + "'cooled': 'perhaps' is neither True nor False"),
        (RUNS, cell("trunk_id", ""), THIRD + "'trunk_id': the cell is empty"),
        (MEASURED, cell("run_id", "abc"), THIRD + "'run_id': run 'abc' is not in"),
        (MEASURED, lambda t: pd.concat([t, t.iloc[[4]]]), "the row repeats row 5; keep one of them"),
        (RUNS, lambda t: pd.concat([t, t.iloc[[1]]]), "column 'run_id': the row repeats row 2"),
        (MEASURED, cell("numerics_version", "2"), THIRD + "'numerics_version': 2 where its run"),
    ],
)  # fmt: skip
def test_bad_tables_get_a_sentence(tmp_path: Path, name: str, change: Change, sentence: str) -> None:
    paths = damaged(tmp_path, name, change)
    with pytest.raises(BitlawError) as error:
        read_pool(*paths)
    assert sentence in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_tables_get_a_sentence(tmp_path: Path) -> None:
    runs, measurements = damaged(tmp_path, RUNS, lambda t: t)
    for text in (b"", b"\xff\xfe\x00", b"a,b\n1,2,3\n"):
        runs.write_bytes(text)
        with pytest.raises(BitlawError, match=r"runs\.csv"):
            read_pool(runs, measurements)
    with pytest.raises(BitlawError, match="cannot be read"):
        read_pool(tmp_path / "absent.csv", measurements)
    runs.write_text("run_id,run_id\n1,2\n")
    with pytest.raises(BitlawError, match="column 'run_id' stands twice"):
        read_pool(runs, measurements)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t[t["size"] == "S"], "column 'N' has one value only"),
        (lambda t: t.iloc[:3], "3 rows are fewer than the 4 parameters"),
        (lambda t: pd.concat([t, t.iloc[[0]]]), "repeats row 1"),
        (lambda t: t.assign(delta=t["delta"].where(t.index != 4)), "row 5 (line 6), column 'delta': nan is not finite"),
        (lambda t: t.assign(D=t["D"].where(t.index != 4, -1)), "column 'D': -1 must be above zero"),
        (lambda t: t.assign(bits=t["bits"].astype(str).where(t.index != 4, "four")), "'four' is not a number"),
        (lambda t: t.rename(columns={"bits": "bit"}), "column 'bits' is missing, did you mean 'bit'?"),
    ],
)  # fmt: skip
def test_tables_that_no_fit_can_use_get_a_sentence(change: Change, sentence: str) -> None:
    tables = simulate(TRUTH, {"S": 1, "M": 1}, np.random.default_rng(0), bits=(2, 4))
    sound = fit_table(tables[1])
    with pytest.raises(BitlawError) as error:
        fit(LAW, change(sound), name="my.csv")
    assert sentence in str(error.value)
    assert str(error.value).startswith("my.csv: ")
