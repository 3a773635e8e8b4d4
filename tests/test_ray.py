"""The executor `ray`: files between machines, refusals, and a local cluster of two nodes that do not share a folder."""

import contextlib
import csv
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray_driver
import torch
from faults.micro import heard, unheard
from sample_corpus import make_corpus

from shared.corpus.load import load_corpus
from shared.errors import BitlawError
from shared.evaluate.ptq import Cell
from shared.sweep import cluster, node
from shared.sweep.claim import claimed
from shared.sweep.desk import PIECE, Call, Desk, fetch, new_desk, send
from shared.sweep.ledger import Ledger
from shared.sweep.node import Errand
from shared.sweep.tables import UNREPEATABLE
from shared.train.state import load, save

ROOT = Path(__file__).parent.parent
# Of a stop that must come before all is done: on a busy machine it may come too late.
TRIES = 5
RUN, TRUNK = "a" * 12, "b" * 12
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray (the extra `cluster`) is absent")


# --- without Ray ------------------------------------------------------------------------------------------------


def a_desk(tmp_path: Path) -> tuple[Desk, Call]:
    folder = new_desk(tmp_path / "build")
    folder.mkdir(parents=True)
    desk = Desk(str(folder))
    return desk, lambda method, *values: getattr(desk, method)(*values)


@pytest.mark.parametrize("size", [1, PIECE, 2 * PIECE + 3])
def test_a_file_arrives_whole_and_goes_back_whole(tmp_path: Path, size: int) -> None:
    desk, call = a_desk(tmp_path)
    source, back = tmp_path / "source", tmp_path / "there" / "back"
    source.write_bytes(os.urandom(size))
    send(call, source, f"runs/{RUN}/checkpoint.safetensors")
    assert (desk.build / "runs" / RUN / "checkpoint.safetensors").read_bytes() == source.read_bytes()
    assert list(desk.folder.iterdir()) == []
    assert fetch(call, f"runs/{RUN}/checkpoint.safetensors", back)
    assert back.read_bytes() == source.read_bytes()
    assert not fetch(call, f"runs/{RUN}/result.json", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_file_changed_on_its_way_gets_no_name(tmp_path: Path) -> None:
    desk, call = a_desk(tmp_path)
    (tmp_path / "source").write_bytes(b"0123456789")

    def noisy(method: str, *values: Any) -> Any:
        return call(method, values[0], b"x" + values[1][1:]) if method == "put" else call(method, *values)

    with pytest.raises(BitlawError, match="was changed on its way"):
        send(noisy, tmp_path / "source", f"runs/{RUN}/result.json")
    assert not (desk.build / "runs").exists()


@pytest.mark.parametrize("name", ["/etc/passwd", "runs/../../x", "runs/x", "desks/a/b", f"runs/{RUN}/../../../x"])
def test_a_desk_gives_and_takes_only_files_of_the_ledger(tmp_path: Path, name: str) -> None:
    desk, call = a_desk(tmp_path)
    (tmp_path / "source").write_bytes(b"0")
    for act in (lambda: send(call, tmp_path / "source", name), lambda: desk.get(name, 0), lambda: desk.drop(name)):
        with pytest.raises(BitlawError, match="names no file of a run or a trunk"):
            act()


def test_desks_of_dead_launchers_are_removed(tmp_path: Path) -> None:
    dead, alive = (tmp_path / "desks" / name for name in ("dead", "alive"))
    dead.mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (dead / "claim").write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid, "token": "x"}))
    with claimed(alive / "claim"):
        new_desk(tmp_path)
        assert alive.exists()
        assert not dead.exists()


def an_errand(tmp_path: Path, call: Call, starts: dict[str, int]) -> Errand:
    plan: dict[str, Any] = {"build": str(tmp_path / "far"), "cells": {}, "runs": list(starts)}
    return Errand(plan, TRUNK, starts, True, call)


def write_state(build: Path, step: int, name: str = "trunk") -> None:
    save(build / "trunks" / TRUNK / f"{name}.safetensors", {"x": torch.full((3,), float(step))}, {"step": step})


def test_a_state_travels_only_when_the_runs_before_it_have(tmp_path: Path) -> None:
    """Else whoever goes on from it could not make them."""
    desk, call = a_desk(tmp_path)
    errand = an_errand(tmp_path, call, {RUN: 10, "c" * 12: 20})
    name = f"trunks/{TRUNK}/trunk.safetensors"
    write_state(errand.build, 10)
    errand.give_state()
    assert desk.step(name) == 10
    write_state(errand.build, 15)
    errand.give_state()
    assert desk.step(name) == 10
    folder = errand.build / "runs" / RUN
    folder.mkdir(parents=True)
    for file in ("spec.json", "checkpoint.safetensors", "losses.safetensors", "result.json"):
        (folder / file).write_text(file)
    errand.pass_on({"finished": RUN})
    assert desk.step(name) == 15
    assert desk.have([RUN, "c" * 12]) == [RUN]
    assert desk.told() == [{"finished": RUN}]
    assert load(desk.build / name)[0]["x"].tolist() == [15.0] * 3
    assert not list((errand.build / "trunks" / TRUNK).glob(".*"))


def test_another_machine_goes_on_from_the_further_state_and_leaves_what_is_finished(tmp_path: Path) -> None:
    desk, call = a_desk(tmp_path)
    write_state(desk.build, 15)
    write_state(desk.build, 18, "branch")
    (desk.build / "runs" / RUN).mkdir(parents=True)
    (desk.build / "runs" / RUN / "result.json").write_text("{}")
    errand = an_errand(tmp_path, call, {RUN: 10, "c" * 12: 20})
    write_state(errand.build, 12)
    errand.take()
    assert errand.plan["runs"] == ["c" * 12] == list(errand.starts)
    assert [node.step_of(errand.build / name) for name in errand.states] == [15, 18]
    write_state(errand.build, 17)
    errand.take()
    assert node.step_of(errand.build / errand.states[0]) == 17
    errand.drop_states()
    assert (desk.step(errand.states[0]), desk.step(errand.states[1])) == (15, -1)


def required(**changes: Any) -> dict[str, Any]:
    known = {"version": node.installed(), "numerics_version": 2, "code": node.code_sha256(), "corpora": {}}
    known["torch"] = node.installed_torch()
    return known | changes


def test_a_machine_with_other_code_or_text_refuses_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    node.check(required())
    for changed in ({"version": "0.0.1"}, {"code": "0" * 12}):
        with pytest.raises(BitlawError, match=r"numerics \d, code .* bring both to the same revision"):
            node.check(required(**changed))
    with pytest.raises(BitlawError, match=r"torch is 2\..*, the launcher's is 1\.0: install the same on both"):
        node.check(required(torch="1.0"))
    with pytest.raises(BitlawError, match=r"where Ray was started.* there is no corpus 'sample'"):
        node.check(required(corpora={"sample": "0" * 64}))
    make_corpus(tmp_path)
    node.check(required(corpora={"sample": load_corpus("sample", tmp_path).sha256}))
    with pytest.raises(BitlawError, match="'sample' is another one than the launcher's"):
        node.check(required(corpora={"sample": "0" * 64}))


def test_a_worker_that_dies_is_worth_another_try_and_one_that_refuses_is_not(tmp_path: Path) -> None:
    errand = replace(an_errand(tmp_path, lambda *values: None, {}), far=False)
    for code, error, sentence in (
        ("import os; os.kill(os.getpid(), 9)", node.WorkerDiedError, "code -9"),
        ("import sys; sys.exit('no memory')", node.WorkerDiedError, "no memory"),
        ('import sys; print(\'{"error": "a bad run"}\'); sys.exit(2)', BitlawError, "^a bad run$"),
    ):
        with pytest.raises(error, match=sentence):
            node.run(errand, [sys.executable, "-c", code], dict(os.environ), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--executor", "rya"), "did you mean 'ray'"),
        (("--executor", "ray", "--address", "127.0.0.1:1"), "no Ray cluster answers"),
        (("--executor", "ray", "--address", "ray://x:1"), "on a machine of the cluster, with --address auto"),
    ],
)
def test_a_wrong_executor_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    if "ray" in arguments and importlib.util.find_spec("ray") is None:
        sentence = "pip install 'bitlaw[cluster]'"
    make_corpus(tmp_path)
    done = bitlaw(tmp_path, "train", "micro", *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BitlawError, match=r"pip install 'bitlaw\[cluster\]'"):
        cluster.connect("auto")


class FakeRay:
    """What of Ray a launcher that gives up asks for."""

    class exceptions:  # noqa: N801
        RayError = OSError

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.waited: list[float] = []

    def cancel(self, ref: str, **_: bool) -> None:
        self.cancelled.append(ref)

    def wait(self, refs: list[str], num_returns: int, timeout: float) -> None:
        assert len(refs) == num_returns
        self.waited.append(timeout)

    def shutdown(self) -> None:
        pass


def test_a_launcher_that_gives_up_lets_its_tasks_save() -> None:
    ray = FakeRay()
    with pytest.raises(BitlawError, match="full"), cluster.let_save(ray, {"a": "x", "b": "y"}):
        raise BitlawError("the disk is full")
    assert (ray.cancelled, ray.waited) == (["a", "b"], [cluster.STOP_SECONDS])
    with cluster.let_save(ray, {"c": "z"}):
        pass
    assert ray.cancelled == ["a", "b"]


def test_a_table_that_cannot_be_read_is_said_before_a_task_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "connect", lambda address: FakeRay())
    monkeypatch.setattr(cluster, "device_of", lambda ray, name: "cpu")
    monkeypatch.setattr(cluster, "look_at_machines", lambda *words: None)
    monkeypatch.setattr(cluster, "follow", lambda *words: pytest.fail("started"))
    plan = ray_driver.plan()
    ledger = Ledger(plan.build)
    spec = plan.runs[0].spec
    weights, losses_S = {"w": torch.zeros(2)}, torch.zeros(3)
    ledger.finish(plan.runs[0], weights, losses_S, {"run_id": spec.run_id, "diverged": False})
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "runs.csv").write_text("damaged")
    with pytest.raises(BitlawError, match="column 'run_id' is missing"):
        cluster.launch_on_ray(plan, tmp_path / "reports", "auto", lambda sentence: None)


@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_a_damaged_cell_is_a_task_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    make_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = ray_driver.plan().runs[0]
    cell = Cell("rtn", "INT4", "channel")
    plan = replace(ray_driver.plan(), runs=[run], cells={run.spec.run_id: [cell]})
    ledger = Ledger(plan.build)
    said: list[str] = []
    assert len(list(cluster.pieces(plan, said.append))) == 1
    ledger.finish_cell(run.spec.run_id, cell.name, {"run_id": run.spec.run_id}, torch.zeros(3))
    assert not list(cluster.pieces(plan, said.append))
    path = ledger.cell_file(run.spec.run_id, cell.name).with_suffix(f".{part}")
    path.write_bytes(path.read_bytes()[:-3])
    assert [list(p.cells.values()) for p, *_ in cluster.pieces(plan, said.append)] == [[[cell]]]
    assert len(said) == 1
    assert path.name in said[0]


@pytest.mark.parametrize("deaf", [True, False])
def test_a_task_hears_a_cancel_whatever_started_its_node(deaf: bool) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
    try:
        node.hear_cancel()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# --- two nodes on this machine ----------------------------------------------------------------------------------


def popen(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "replications.cli", *arguments, "--corpus", "sample"]
    folders = ["--reports", "reports"] + (["--build", "build"] if arguments[0] != "status" else [])
    return subprocess.Popen(
        [*command, *folders], cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heard,
    )  # fmt: skip


def bitlaw(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = popen(root, *arguments)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def content(root: Path, *names: str) -> list[list[dict[str, str]]]:
    """Tables without what cannot repeat."""
    found = []
    for name in names:
        with (root / "reports" / name).open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        found.append([{k: v for k, v in row.items() if k not in UNREPEATABLE} for row in rows])
    return found


@dataclass(frozen=True)
class Nodes:
    """Two nodes of one CPU each, started in clones of their own: `folders`; the launcher's is `root`."""

    address: str
    root: Path
    folders: list[Path]
    processes: list["subprocess.Popen[bytes]"]


def raylets(address: str) -> int:
    code = (
        f"import ray; ray.init(address={address!r}, logging_level='ERROR', log_to_driver=False);"
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


@contextlib.contextmanager
def two_nodes(tmp_path: Path, cpus: tuple[int, ...] = (1, 1)) -> Iterator[Nodes]:
    """One node for each of `cpus`, at most two, deaf to Ctrl-C: as a job script starts them in its background."""
    # Its sockets' names have at most 107 characters.
    temporary = Path(tempfile.mkdtemp(prefix="bitlaw-"))
    # As docs/cluster.md starts it: who has no token is no part of the cluster.
    token = temporary / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    authority = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = os.environ | {"RAY_TMPDIR": str(temporary), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    environment |= authority
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in (tmp_path / "launcher", *folders):
        make_corpus(folder)
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    start += ["--object-store-memory", str(80 * 2**20)]
    processes = []
    try:
        roles = (["--head", "--port", str(port), "--include-dashboard=false"], ["--address", address])
        for folder, role, count in zip(folders, roles, cpus, strict=False):
            processes.append(
                subprocess.Popen(
                    [*start, "--num-cpus", str(count), *role], cwd=folder, env=environment, start_new_session=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=unheard,
                )
            )  # fmt: skip
        deadline = time.monotonic() + 180
        with mock.patch.dict(os.environ, authority):
            while raylets(address) < len(cpus):
                assert time.monotonic() < deadline, "the cluster did not start"
            yield Nodes(address, tmp_path / "launcher", folders, processes)
    finally:
        for process in reversed(processes):
            if process.poll() is None:
                process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


@needs_ray
@pytest.mark.slow
def test_without_the_cluster_s_token_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another = tmp_path / "token"
    another.write_text(secrets.token_hex(32))
    with two_nodes(tmp_path, cpus=(1,)) as nodes:
        for path in (another, tmp_path / "absent", None):
            if path:
                monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
            else:
                monkeypatch.delenv("RAY_AUTH_MODE")
            started = time.monotonic()
            done = bitlaw(nodes.root, "train", "micro", "--executor", "ray", "--address", nodes.address)
            assert done.returncode == 2, done.stderr
            assert "copy ~/.ray/auth_token" in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1
            assert time.monotonic() - started < 90


@needs_ray
def test_two_nodes_give_the_rows_of_one_machine(tmp_path: Path) -> None:
    """Train and measure profile micro: nodes write into their own folders, all comes back, to the last bit."""
    alone = tmp_path / "alone"
    make_corpus(alone)
    for verb in ("train", "measure"):
        assert bitlaw(alone, verb, "micro").returncode == 0
    with two_nodes(tmp_path) as nodes:
        ray = ("--executor", "ray", "--address", nodes.address)
        for verb in ("train", "measure"):
            done = bitlaw(nodes.root, verb, "micro", *ray)
            assert done.returncode == 0, done.stderr
        names = ("runs.csv", "measurements.csv")
        assert content(nodes.root, *names) == content(alone, *names)
        trunks = [{path.name for path in (folder / "build" / "trunks").iterdir()} for folder in nodes.folders]
        assert [len(found) for found in trunks] == [1, 1]
        for run in (alone / "build" / "runs").iterdir():
            path = nodes.root / "build" / "runs" / run.name / "checkpoint.safetensors"
            theirs = load(path)[0]
            assert all(torch.equal(value, theirs[key]) for key, value in load(run / path.name)[0].items())
        assert list((nodes.root / "build" / "desks").iterdir()) == []
        assert bitlaw(nodes.root, "status", "micro").returncode == 0

        # A node with another text is refused before anything is trained.
        shutil.rmtree(nodes.folders[1] / "build")
        make_corpus(nodes.folders[1], 50_000)
        shutil.rmtree(nodes.root / "reports")
        shutil.rmtree(nodes.root / "build" / "runs")
        refused = bitlaw(nodes.root, "train", "micro", *ray)
        assert refused.returncode == 2
        assert f"{nodes.folders[1]}: corpus 'sample' is another one" in refused.stderr
        assert not (nodes.root / "build" / "runs").exists()


def driver(root: Path, executor: str, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "ray_driver.py"), executor, *more], cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(process: "subprocess.Popen[str]", count: int) -> None:
    """Wait until so many runs are said to be finished."""
    assert process.stdout is not None
    while count and (line := process.stdout.readline()):
        count -= line.startswith("finished ")
    assert not count


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its code and what it complained of."""
    complaints = process.communicate()[1]
    return process.returncode, complaints


def workers_in(folder: Path) -> list[int]:
    """Worker processes on a plan of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/build/plans/" in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
    return found


def afresh(nodes: Nodes) -> None:
    for folder in (nodes.root, *nodes.folders):
        for name in ("runs", "trunks"):
            shutil.rmtree(folder / "build" / name, ignore_errors=True)
    shutil.rmtree(nodes.root / "reports")


def kill_a_worker(nodes: Nodes) -> None:
    os.kill(workers_in(nodes.folders[1])[0], signal.SIGKILL)


def kill_a_node(nodes: Nodes) -> None:
    assert workers_in(nodes.folders[1])
    os.killpg(nodes.processes[1].pid, signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/cwd"):
        # Its processes have sessions of their own.
        with contextlib.suppress(OSError):
            if path.readlink() == nodes.folders[1]:
                os.kill(int(path.parent.name), signal.SIGKILL)


def kill_a_raylet(nodes: Nodes) -> None:
    """Only that, so that the rest of its node lives long enough to publish its log."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cwd").readlink() == nodes.folders[1] and (path / "exe").readlink().name == "raylet":
                os.kill(int(path.name), signal.SIGKILL)
                return
    raise AssertionError("the node has no raylet")


@needs_ray
@pytest.mark.slow
def test_faults_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    """A polite stop, a killed worker, a killed node: each time the rows are those of an undisturbed sweep."""
    alone = tmp_path / "alone"
    make_corpus(alone)
    assert ended(driver(alone, "local")) == (0, "")
    faults: list[Callable[[Nodes], None]] = [kill_a_worker, kill_a_node]
    with two_nodes(tmp_path) as nodes:
        for _ in range(TRIES):
            stopped = driver(nodes.root, nodes.address)
            finished(stopped, 1)
            stopped.send_signal(signal.SIGTERM)
            assert ended(stopped) in ((130, ""), (0, ""))
            some = content(nodes.root, "runs.csv")[0]
            if len(some) < 12:
                break
            afresh(nodes)
        assert 1 <= len(some) < 12, "the stop came too late each time"
        assert not any(workers_in(folder) for folder in nodes.folders)
        states = list((nodes.root / "build" / "trunks").glob("*/trunk.safetensors"))
        assert states, "a stopped task hands its state over"
        assert ended(driver(nodes.root, nodes.address)) == (0, "")
        assert content(nodes.root, "runs.csv") == content(alone, "runs.csv")
        for fault in faults:
            afresh(nodes)
            disturbed = driver(nodes.root, nodes.address)
            finished(disturbed, 3)
            fault(nodes)
            assert ended(disturbed)[0] == 0
            assert content(nodes.root, "runs.csv") == content(alone, "runs.csv")


@needs_ray
@pytest.mark.slow
def test_when_the_last_able_machine_is_lost_the_command_says_so(tmp_path: Path) -> None:
    """In one sentence, without the machine's last words; what was finished is kept."""
    with two_nodes(tmp_path, cpus=(0, 1)) as nodes:
        process = driver(nodes.root, nodes.address, "3")
        finished(process, 1)
        kill_a_raylet(nodes)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 2, out + err
        assert "no machine that is left in the cluster has the 1 CPUs and 0 GPUs that each run needs" in err
        assert len(err.splitlines()) == 1, err
        assert all(line.startswith("finished ") for line in out.splitlines() if line), out
        assert content(nodes.root, "runs.csv")[0]
        assert not list((nodes.root / "build" / "desks").iterdir())


@needs_ray
@pytest.mark.slow
def test_faults_while_measuring(tmp_path: Path) -> None:
    """Ctrl-C, a killed worker and a killed node: each time the cells are those of an undisturbed `measure`."""
    alone = tmp_path / "alone"
    make_corpus(alone)
    for verb in ("train", "measure"):
        assert bitlaw(alone, verb, "micro").returncode == 0
    with two_nodes(tmp_path) as nodes:
        shutil.copytree(alone / "build" / "runs", nodes.root / "build" / "runs")
        shutil.copytree(alone / "reports", nodes.root / "reports")

        def disturbed(fault: Callable[["subprocess.Popen[str]"], None]) -> tuple[int, str]:
            """A `measure` of everything, with a fault once the second node is at work."""
            for folder in (nodes.root, *nodes.folders):
                for cells in (folder / "build" / "runs").glob("*/cells"):
                    shutil.rmtree(cells)
            (nodes.root / "reports" / "measurements.csv").unlink(missing_ok=True)
            process = popen(nodes.root, "measure", "micro", "--executor", "ray", "--address", nodes.address)
            while not workers_in(nodes.folders[1]):
                assert process.poll() is None
                time.sleep(0.01)
            fault(process)
            return ended(process)

        whole = content(alone, "measurements.csv")[0]
        for _ in range(TRIES):
            code, said = disturbed(lambda process: process.send_signal(signal.SIGINT))
            if code:
                break
        assert code == 130
        assert said.strip() == "bitlaw: stopped; run the same command to resume"
        if (nodes.root / "reports" / "measurements.csv").exists():
            assert all(row in whole for row in content(nodes.root, "measurements.csv")[0])
        assert not any(workers_in(folder) for folder in nodes.folders)
        for fault in (kill_a_worker, kill_a_node):
            code, said = disturbed(lambda process, fault=fault: fault(nodes))  # type: ignore[misc]
            assert code == 0, said
            assert content(nodes.root, "measurements.csv")[0] == whole
