"""The order in git of what claims say and of the rows that decide them."""

import subprocess
from pathlib import Path

import pytest
import yaml

from replications.precedence import Order, history, orders, regions
from shared.errors import BitlawError

ROOT = Path(__file__).parents[1]


def claims(high: str) -> str:
    return f'CLAIM = Claim(id="K1a", statement="words", region=Region("x < high", 0.0, {high}))\n'


def commit(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for arguments in (["add", "."], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit(tmp_path, {"README.md": "a history of one commit has no order\n"})
    return tmp_path


def settings(after: dict[str, str] | None = None, where: str = "bits == '2'", **more: object) -> str:
    rows = {"table": "reports/runs.csv", "key": ["run_id"], "where": where, "claims": ["K1a"], **more}
    return yaml.safe_dump({"rows": [rows], "after": after or {}})


PAPER = "replications/paper/claims.py"
SETTINGS = "replications/precedence.yaml"
TABLE = "reports/runs.csv"


def only(root: Path) -> Order:
    (found,) = orders(root)
    return found


def test_a_region_before_its_rows_is_right(repository: Path) -> None:
    commit(repository, {PAPER: claims("1.0"), SETTINGS: settings(), TABLE: "run_id,bits\na,4\n"})
    assert only(repository).right
    assert only(repository).measured is None
    commit(repository, {TABLE: "run_id,bits\na,4\nb,2\n"})
    found = only(repository)
    assert found.right
    assert found.measured not in (None, found.stated)


def test_a_region_changed_after_its_rows_is_wrong_unless_it_says_so(repository: Path) -> None:
    commit(repository, {PAPER: claims("1.0"), SETTINGS: settings()})
    commit(repository, {TABLE: "run_id,bits\nb,2\n"})
    commit(repository, {PAPER: claims("2.0")})
    assert not only(repository).right
    commit(repository, {SETTINGS: settings({"K1a": "it touched the bound"})})
    assert only(repository).right


def test_wording_may_change_and_columns_may_come(repository: Path) -> None:
    commit(repository, {PAPER: claims("1.0"), SETTINGS: settings()})
    commit(repository, {TABLE: "run_id,bits\nb,2\n"})
    commit(repository, {PAPER: claims("1.0").replace("words", "other words"), TABLE: "run_id,bits,new\nb,2,0\n"})
    assert only(repository).before


def test_an_excuse_that_is_not_needed_is_wrong(repository: Path) -> None:
    commit(repository, {PAPER: claims("1.0"), SETTINGS: settings({"K1a": "no reason"}), TABLE: "run_id,bits\n"})
    assert not only(repository).right


def test_rows_of_other_runs_do_not_count(repository: Path) -> None:
    cells = settings(table="reports/cells.csv", where="", of="bits == '2'")
    commit(repository, {PAPER: claims("1.0"), SETTINGS: cells, TABLE: "run_id,bits\na,4\nb,2\n"})
    commit(repository, {"reports/cells.csv": "run_id\na\n"})
    assert only(repository).measured is None
    commit(repository, {"reports/cells.csv": "run_id\na\nb\n"})
    assert only(repository).measured is not None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (settings().replace("K1a", "K9"), "no claims.py in git states 'K9'"),
        (settings({"K2": "why"}), "'after' names K2"),
        (settings(where="no_such == '2'"), "cannot be asked of"),
    ],
)
def test_bad_settings_get_a_sentence(repository: Path, text: str, said: str) -> None:
    commit(repository, {PAPER: claims("1.0"), SETTINGS: text, TABLE: "run_id,bits\nb,2\n"})
    with pytest.raises(BitlawError, match=said):
        orders(repository)


def test_without_all_history_nothing_is_said(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    commit(repository, {PAPER: claims("1.0")})
    commit(repository, {PAPER: claims("2.0")})
    shallow = tmp_path_factory.mktemp("shallow") / "clone"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{repository}", str(shallow)], check=True)
    with pytest.raises(BitlawError, match="part of the history"):
        history(shallow)
    with pytest.raises(BitlawError, match="git rev-parse failed"):
        history(tmp_path_factory.mktemp("none"))


def test_bounds_are_read_in_every_form() -> None:
    source = (
        '_c("C10", "words", "text", "x < 1", 0.0, 1.0)\n'
        '(_m("K11", "words", Region("x > 0", 0.0, math.inf)), "pool/x")\n'
        'Claim(id="O1g", region=Region("within", -DRIFT, DRIFT))\n'
        'other("not a claim", 1, 2)\n'
    )
    assert regions(source) == {
        "C10": ("0.0", "1.0"),
        "K11": ("0.0", "math.inf"),
        "O1g": ("-DRIFT", "DRIFT"),
    }


def test_every_measured_claim_is_listed() -> None:
    """Those that can be judged on our runs: each has its rows in precedence.yaml."""
    import json

    listed = {claim for rows in yaml.safe_load((ROOT / SETTINGS).read_text())["rows"] for claim in rows["claims"]}
    measured = {
        claim["id"]
        for path in (ROOT / "reports").glob("*/claims.json")
        for claim in json.loads(path.read_text())["claims"]
        if claim["evidence"] == "measured" and claim["verdict"] != "out of reach"
    }
    assert measured <= listed
