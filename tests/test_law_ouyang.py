"""Ouyang et al.: the printed forms, the laws behind Table 1, where it leaves the joint law (numbers: facts)."""

import numpy as np
import pytest
from judged import judged, verdicts
from law_cases import CASES, published

from replications.undertrained_qid import audit
from replications.undertrained_qid.law import BITS, LAW, LOSS_16BIT, SIZE, TOKENS, tokens_to_reach

C = published("undertrained_qid")


def test_equation_8_is_the_printed_one() -> None:
    table = CASES["ouyang_joint"].grid
    direct = C["k"] * table.D ** C["beta"] / (table.N ** C["alpha"] * table.bits ** C["gamma"])
    np.testing.assert_allclose(LAW.predict(LAW.internal(C), CASES["ouyang_joint"].columns), direct, rtol=1e-12)


@pytest.mark.parametrize(
    ("law", "column", "exponent"), [(TOKENS, "D", "beta"), (SIZE, "N", "alpha"), (BITS, "bits", "gamma")]
)
def test_laws_of_one_factor(law, column: str, exponent: str) -> None:  # type: ignore[no-untyped-def]
    x = np.array([2.0, 3.0, 4.0]) * (1 if column == "bits" else 1e9)
    found = law.predict(law.internal({"k": 0.02, exponent: 0.5}), {column: x})
    sign = 1 if column == "D" else -1
    np.testing.assert_allclose(found, 0.02 * x ** (sign * 0.5), rtol=1e-12)


def test_the_16_bit_loss() -> None:
    at = {"N": np.array([11.3e9]), "D": np.array([206e9])}
    found = LOSS_16BIT.predict(LOSS_16BIT.internal(C), at)[0]
    direct = ((4.74e19 / 11.3e9) ** (0.045 / 0.399) + 7.63e10 / 206e9) ** 0.399
    assert found == pytest.approx(direct, rel=1e-12)
    assert found == pytest.approx(2.74, abs=0.005)


def test_the_joint_law_at_100T_tokens() -> None:
    """7B, 70B and 405B, as recomputed in the notes on the paper."""
    for bits, values in {2: (50.3, 29.9, 20.1), 3: (5.41, 3.21, 2.16), 4: (1.11, 0.66, 0.45)}.items():
        found = [audit.delta(C, N, 1e14, bits) for N in (7e9, 70e9, 405e9)]
        np.testing.assert_allclose(found, values, rtol=0.015)
    assert tokens_to_reach(C, 0.2, 405e9, 4) == pytest.approx(21.8e12, rel=0.005)
    assert audit.delta(C, 405e9, tokens_to_reach(C, 0.2, 405e9, 4), 4) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("bits", "k", "beta", "alpha", "half_digit"),
    [
        (2, 4.11e-4, 0.520, 0.224, 6e-4),  # three digits: the table's smallest entries have two
        (3, 1.1695e-5, 0.6728, 0.3547, 6e-5),
        (4, 6.1325e-6, 0.6551, 0.3835, 6e-5),
    ],
)
def test_the_laws_behind_table_1(bits: int, k: float, beta: float, alpha: float, half_digit: float) -> None:
    law = audit.per_bit_law(C, bits)
    assert (law.beta, law.alpha) == pytest.approx((beta, alpha), abs=half_digit)
    assert law.k == pytest.approx(k, rel=1.5e-3 if bits == 2 else 1e-4)
    assert law.largest_miss == pytest.approx(0.0126, abs=5e-5) if bits == 2 else law.largest_miss < 1.5e-4


def test_table_1_does_not_follow_the_joint_law() -> None:
    assert audit.largest_ratio(C, 3)[0] == pytest.approx(2.40, abs=0.005)
    assert audit.largest_ratio(C, 3)[1].startswith("405B")
    assert audit.largest_ratio(C, 4)[0] == pytest.approx(2.22, abs=0.005)
    assert tokens_to_reach(C, 0.2, 405e9, 3) == pytest.approx(1.07e12, rel=0.005)
    assert abs(np.log(audit.largest_ratio(C, 2)[0])) < 0.06  # at 2 bits it nearly does


def test_the_table_holds_48_numbers_that_grow_with_everything() -> None:
    table = np.array(
        [[[C[f"tokens_{size}_{b}bit_{q}"] for q in audit.LEVELS] for b in audit.BITS] for size in audit.SIZES]
    )
    assert table.shape == (4, 3, 4)
    for axis in range(3):
        assert np.all(np.diff(table, axis=axis) > 0)


def test_verdicts_that_the_constants_decide() -> None:
    holds, fails = ("O2b", "O2d", "O6a", "O6b"), ("O2c", "O2e", "O5", "O5b")
    assert verdicts("undertrained_qid") == dict.fromkeys(holds, "holds") | dict.fromkeys(fails, "fails")
    found = judged("undertrained_qid")
    assert "Eq. 8 gives 10.3T where Table 1 prints 17.35T" in found["O5"].detail
    assert found["O2"].verdict == "out of reach"
    assert {f"O{n}" for n in range(1, 9)} <= {id.rstrip("abcdefg") for id in found}


def test_a_table_made_from_the_joint_law_would_pass() -> None:
    """The claims can come out the other way."""
    made = dict(C)
    for size, N in audit.SIZES.items():
        for bits in audit.BITS:
            for level in audit.LEVELS:
                made[f"tokens_{size}_{bits}bit_{level}"] = tokens_to_reach(C, level, N, bits)
    found = {finding.claim.id: finding.verdict for finding in audit.judge(made)}
    assert (found["O2c"], found["O2d"], found["O2e"]) == ("holds", "holds", "holds")
