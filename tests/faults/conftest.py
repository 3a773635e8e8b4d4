"""Marks of the fault tests, and the undisturbed run that all of them are compared with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from sample_corpus import make_corpus
from simulated_results import write_results

from faults.micro import State, commands, state_of

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "faults: kills, damage and full disks; `make test-faults`")
    config.addinivalue_line("markers", "long: a fault test that CI's sample leaves out")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("faults")
            item.add_marker("slow")  # which a normal run leaves out


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro profile, trained and measured by two workers that nothing disturbs; never written to."""
    root = tmp_path_factory.mktemp("golden")
    make_corpus(root)
    commands(root)
    return root


@pytest.fixture(scope="session")
def expected(golden: Path) -> State:
    return state_of(golden)


@pytest.fixture
def copied(golden: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the undisturbed run each time it is called."""
    count = iter(range(1000))

    def copy() -> Path:
        return Path(shutil.copytree(golden, tmp_path / f"copy{next(count)}"))

    return copy


@pytest.fixture
def analysed(tmp_path: Path) -> Path:
    """Tables and results of a simulated pool, and settings that take seconds."""
    root = tmp_path / "root"
    write_results(root)
    settings = {"n_starts": 4, "n_boot": 20, "seed": 1, "condition_limit": 1e8, "signal_to_noise": 4}
    (root / "params.yaml").write_text(yaml.safe_dump({"fit": settings}))
    return root
