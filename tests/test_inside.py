"""Ratios about the inside of checkpoints, against numbers by hand."""

import numpy as np
import pandas as pd
import pytest

from replications.comparison.inside import COLUMNS, collect, four_bits, read_statistics
from shared.errors import BitlawError
from shared.sweep.spec import DEFAULTS


def row(run_id: str, size: str, quantity: str, of: str, value: float, **more: object) -> dict[str, object]:
    plain: dict[str, object] = {"n_blocks": 1e5, "tokens": 2**23, "cooled": True, "seed": 1, "weights": "none"}
    return (
        plain
        | {"activations": "none", "run_id": run_id, "size": size, "quantity": quantity, "of": of, "value": value}
        | more
    )


def cell(run_id: str, delta: float, error: float) -> dict[str, object]:
    return {
        "run_id": run_id,
        "method": "rtn",
        "group_size": "channel",
        "format": "INT4",
        "delta": delta,
        "relative_mse": error,
    }


def test_ratios_are_geometric_means_of_pairs() -> None:
    statistics = pd.DataFrame(
        [
            row("a", "S", "second", "english INT4@channel", 0.2),
            row("b", "M", "second", "english INT4@channel", 0.4),
            row("a", "S", "change", "all", 0.03, cooled=False),
            row("a", "S", "change", "down", 9.0, cooled=False),
            row("b", "M", "change", "all", 0.12, cooled=False),
            row("a", "S", "kurtosis", "down", 10.0),
            row("b", "M", "kurtosis", "down", 20.0),
            row("c", "S", "kurtosis", "down", 5.0, weights="INT4@8", activations="INT4@8"),
            row("d", "M", "kurtosis", "down", 5.0, weights="INT4@8", activations="INT4@8"),
            row("e", "S", "kurtosis", "down", 500.0, weights="INT2@8"),
            row("f", "S", "kurtosis", "down", 900.0),  # of the same size, and nobody's base run
        ]
    )
    found = collect(statistics, pd.DataFrame([cell("a", 0.1, 0.01), cell("b", 0.1, 0.01)]), {"c": "a", "d": "b"})
    assert found["pool/second/cooled/INT4"].value == pytest.approx(np.sqrt(8))
    assert found["pool/change/INT4"].value == pytest.approx(6.0)
    kurtosis = found["pool/kurtosis/down/W4A4"]
    assert kurtosis.value == pytest.approx(np.sqrt(0.125))
    # Student's 12.706 with one degree of freedom; half the difference of two logarithms is their standard error.
    half = 12.7062 * abs(np.log(0.5) - np.log(0.25)) / 2
    assert (kurtosis.low, kurtosis.high) == pytest.approx(
        (np.sqrt(0.125) * np.exp(-half), np.sqrt(0.125) * np.exp(half)), rel=1e-4
    )
    assert kurtosis.trunks == 2


def test_nothing_is_said_without_pairs(tmp_path) -> None:  # type: ignore[no-untyped-def]
    empty = read_statistics(tmp_path / "statistics.csv")
    assert collect(empty, pd.DataFrame([cell("a", 0.1, 0.01)]), {"c": "a"}) == {}
    one = pd.DataFrame([row("a", "S", "kurtosis", "down", 10.0)])
    assert collect(one, pd.DataFrame([cell("a", 0.1, 0.01)]), {"c": "a"}) == {}


def test_a_missing_column_is_one_sentence(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "statistics.csv"
    pd.DataFrame({name: [] for name in COLUMNS if name != "of"}).to_csv(path, index=False)
    with pytest.raises(BitlawError, match="column 'of' is missing"):
        read_statistics(path)


def test_only_runs_of_four_bits_throughout_are_paired_each_with_its_base() -> None:
    both: dict[str, object] = {"weights": "INT4@8", "activations": "INT4@8"}
    kinds: list[dict[str, object]] = [
        both,
        both | {"keys_values": "INT4@token"},
        both | {"sparsity": 0.5},
        {"weights": "INT4@8"},
        {},
    ]
    runs = pd.DataFrame([DEFAULTS | kind | {"run_id": f"r{k}", "base_run_id": "b"} for k, kind in enumerate(kinds)])
    assert four_bits(runs) == {"r0": "b"}
