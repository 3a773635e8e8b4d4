"""dvc.yaml and the Makefile agree, and what they name is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def expanded(stage: dict[str, Any], part: str) -> list[str]:
    """Paths of deps or outs, once for each paper of a matrix."""
    names = [next(iter(item)) if isinstance(item, dict) else item for item in stage[part]]
    papers = stage.get("matrix", {}).get("paper", [""])
    return [name.replace("${item.paper}", paper) for name in names for paper in papers]


def analysis() -> list[str]:
    """The Makefile's stages, in its order."""
    found = re.search(r"^ANALYSIS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " "), re.M)
    assert found
    return found[1].split()


def test_the_makefile_names_every_stage_but_smoke() -> None:
    assert set(analysis()) == set(STAGES) - {"smoke"}


@pytest.mark.parametrize("name", [name for name in STAGES if name != "smoke"])
def test_what_a_stage_reads_and_writes_is_in_the_tree(name: str) -> None:
    for path in expanded(STAGES[name], "deps") + expanded(STAGES[name], "outs"):
        assert (ROOT / path).exists(), path


def test_an_out_has_one_stage_and_comes_before_who_reads_it() -> None:
    """The order of the Makefile is that of the stages: a forced run makes what the next one reads."""
    order = analysis()
    made: dict[str, str] = {}
    for name in order:
        for path in expanded(STAGES[name], "outs"):
            assert path not in made, path
            made[path] = name
    for name in order:
        for path in expanded(STAGES[name], "deps"):
            if path in made:
                assert order.index(made[path]) < order.index(name), (name, path)
