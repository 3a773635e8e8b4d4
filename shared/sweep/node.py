"""What runs on a machine of a cluster: one trunk with its branches, or the cells of one checkpoint, as one task.

The task starts the same worker process as on one machine and follows it. Where the machine sees the launcher's build
folder it works there; else in its own, and what it finishes goes to the desk. The working folder is the one that Ray
was started in: the machine's own clone, with its own `data/`. No torch here: a task costs little beside its worker.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import shared
from shared.corpus.load import load_corpus
from shared.errors import BitlawError, not_kept
from shared.files import write_text
from shared.sweep.desk import Call, fetch, send, step_of
from shared.sweep.events import STOP_SECONDS, Event, environment, parse

PACKAGE = Path(shared.__file__).parent
# What training and measuring import; the rest may differ between the machines.
PARTS = ("corpus", "evaluate", "formats", "model", "quantize", "sweep", "train")
# Where folders are not shared, the state of a run in the middle of a trunk travels this often.
SEND_SECONDS = 300.0


class WorkerDiedError(Exception):
    """The worker process ended without a word: memory, a signal, the machine. Worth another try."""


def code_sha256() -> str:
    """Hash of the sources that a run depends on."""
    digest = hashlib.sha256()
    files = [path for part in PARTS for path in (PACKAGE / part).rglob("*") if path.suffix in (".py", ".cpp", ".json")]
    for path in sorted([*files, *PACKAGE.glob("*.py")]):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def installed() -> str:
    try:
        return version("bitlaw")
    except PackageNotFoundError:
        return "not installed"


def installed_torch() -> str:
    """Its version, without what it was built for (2.13.0 of 2.13.0+cpu): a launcher needs no GPU."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return "not installed"


def check(required: dict[str, Any]) -> None:
    """Compare this machine with the launcher's `version`, `numerics_version`, `code`, `torch` and `corpora`
    (name -> sha256).

    Raises BitlawError, one sentence that names the machine, for the first that differs.
    """
    host = socket.gethostname()
    if (installed(), code_sha256()) != (required["version"], required["code"]):
        from shared.sweep.spec import NUMERICS_VERSION

        raise BitlawError(
            f"{host}: {PACKAGE} is bitlaw {installed()}, numerics {NUMERICS_VERSION}, code {code_sha256()}, the "
            f"launcher's is {required['version']}, numerics {required['numerics_version']}, code {required['code']}: "
            "bring both to the same revision"
        )
    if installed_torch() != required["torch"]:
        raise BitlawError(
            f"{host}: torch is {installed_torch()}, the launcher's is {required['torch']}: install the same on both, "
            "since runs would not be comparable"
        )
    for name, sha256 in required["corpora"].items():
        try:
            here = load_corpus(name, Path.cwd()).sha256
        except BitlawError as error:
            raise BitlawError(f"{host}: in {Path.cwd()} (where Ray was started) {error}") from error
        if here != sha256:
            raise BitlawError(
                f"{host}: {Path.cwd()}: corpus '{name}' is another one than the launcher's: build it again"
            )


@dataclass
class Errand:
    """One task on this machine: `plan` with this machine's folders, and what of it the desk has got."""

    plan: dict[str, Any]
    trunk_id: str  # empty when nothing is trained
    starts: dict[str, int]  # run_id -> the trunk's step at which the run leaves it
    far: bool  # the desk's ledger is not visible here
    call: Call
    given: set[str] = field(default_factory=set)
    saved: dict[str, int] = field(default_factory=dict)  # when each state was written that the desk has got
    sent: float = field(default_factory=time.monotonic)

    @property
    def build(self) -> Path:
        return Path(self.plan["build"])

    @property
    def states(self) -> list[str]:
        """Files from which a trunk goes on; a measurement has none."""
        names = ("trunk", "branch") if self.trunk_id else ()
        return [f"trunks/{self.trunk_id}/{name}.safetensors" for name in names]

    def take(self) -> None:
        """Before the work: the checkpoint to measure, or the state to go on from when it is further than our own.

        What an earlier try has finished is no longer wanted.
        """
        if not self.far:
            return
        if not self.plan["cells"]:
            have = set(self.call("have", list(self.starts)))
            wanted = [run for run, run_id in zip(self.plan["runs"], self.starts, strict=True) if run_id not in have]
            self.plan["runs"] = wanted
            self.starts = {run_id: step for run_id, step in self.starts.items() if run_id not in have}
        for run_id in self.plan["cells"]:
            for name in ("checkpoint.safetensors", "losses.safetensors", "result.json"):
                fetch(self.call, f"runs/{run_id}/{name}", self.build / "runs" / run_id / name)
        for name in self.states:
            if self.call("step", name) > step_of(self.build / name):
                fetch(self.call, name, self.build / name)

    def give(self, run_id: str) -> None:
        """Hand a finished run, or the cells of a measured one, over; what makes it count comes last."""
        if not self.far or run_id in self.given:
            return
        folder = f"runs/{run_id}"
        if cells := self.plan["cells"].get(run_id):
            stems = [f"cells/{'-'.join((cell['method'], cell['format'], cell['group_size']))}" for cell in cells]
            names = [f"{stem}.{kind}" for stem in stems for kind in ("safetensors", "json")]
        else:
            names = ["spec.json", "checkpoint.safetensors", "losses.safetensors", "result.json"]
        for name in names:
            path = self.build / folder / name
            if path.exists():  # a diverged run has no losses
                send(self.call, path, f"{folder}/{name}")
        self.given.add(run_id)

    def give_state(self) -> None:
        """Hand the state of the trunk over, unless it is past a run that the desk has not got.

        Who goes on from such a state could not make that run.
        """
        wanted = [step for run_id, step in self.starts.items() if run_id not in self.given]
        if not self.far or not wanted:
            return
        self.sent = time.monotonic()
        for name in self.states:
            copy = (self.build / name).with_name(f".{Path(name).name}.sent")
            copy.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.link(self.build / name, copy)  # the worker replaces the file meanwhile, it never changes it
                saved = copy.stat().st_mtime_ns
                if self.saved.get(name) != saved and ("branch" in name or step_of(copy) <= min(wanted)):
                    send(self.call, copy, name)
                    self.saved[name] = saved
            copy.unlink(missing_ok=True)

    def drop_states(self) -> None:
        """All of the plan is made: a branch that was on its way is not gone on from."""
        if self.far:
            for name in self.states[1:]:
                self.call("drop", name)

    def give_finished(self) -> None:
        """Hand over whatever of the plan is finished here: also what an earlier task left."""
        for run in self.starts:
            if (self.build / "runs" / run / "result.json").exists():
                self.give(run)

    def pass_on(self, event: Event) -> None:
        if run_id := event.get("finished") or event.get("measured"):
            self.give(run_id)
        self.call("tell", event)
        if "finished" in event:
            self.give_state()


def work(required: dict[str, Any], order: dict[str, Any], call: Call) -> None:
    """Do one task. Plain values come in, so that another version of bitlaw can read them and say that it is one.

    Raises BitlawError for what another try would not mend, WorkerDiedError for what it might.
    """
    check(required)
    hear_cancel()
    root = Path.cwd()
    build = root / order["build"]  # an absolute one stays what it is
    plan = order["plan"] | {"root": str(root), "build": str(build)}
    far = not (build / "desks" / order["token"]).is_dir()
    errand = Errand(plan, order["trunk_id"], order["starts"], far, call)
    try:
        errand.take()
        if not errand.starts:
            return
        text = json.dumps(errand.plan, sort_keys=True)
        plan_file = build / "plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        write_text(plan_file, text)
        # The code that was checked is the code that runs, whatever else lies in the working folder.
        variables = environment(order["settings"], order["launcher"]) | {"PYTHONPATH": str(PACKAGE.parent)}
        run(errand, [sys.executable, "-P", *order["command"], str(plan_file)], variables, root)
    except OSError as error:
        raise BitlawError(f"{socket.gethostname()}: {not_kept(error)}") from error


def run(errand: Errand, command: list[str], variables: dict[str, str], root: Path) -> None:
    """Follow one worker process to its end; a cancelled task lets it save its state, and hands that over."""
    errors: list[str] = []
    failed: str | None = None
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, cwd=root
    ) as process:
        try:
            for event in events(process, errors):
                if event is None:
                    if time.monotonic() - errand.sent > SEND_SECONDS:
                        errand.give_state()
                elif "error" in event:
                    failed = failed or str(event["error"])
                else:
                    errand.pass_on(event)
        except BaseException:
            with undisturbed():
                stop(process)
                errand.give_finished()
                errand.give_state()
            raise
    errand.give_finished()
    if failed is not None:
        raise BitlawError(f"{socket.gethostname()}: {failed}" if errand.far else failed)
    if process.returncode != 0:
        errand.give_state()
        tail = "".join(errors[-20:]).strip()
        raise WorkerDiedError(f"{socket.gethostname()}: code {process.returncode}: {tail or 'it said nothing'}")
    errand.drop_states()


def events(process: "subprocess.Popen[str]", errors: list[str]) -> Iterator[Event | None]:
    """What a worker says, to its end; None each second in which it says nothing, so that a cancel is heard."""
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.Queue[str | None] = queue.Queue()
    stdout, stderr = process.stdout, process.stderr

    def follow() -> None:
        for line in stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=follow, daemon=True).start()
    drain = threading.Thread(target=lambda: errors.extend(stderr), daemon=True)
    drain.start()
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            yield None
            continue
        if line is None:
            break
        yield parse(line)
    process.wait()
    drain.join()


def stop(process: "subprocess.Popen[str]") -> None:
    """Let a worker save and end; what it says meanwhile is in its files."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def hear_cancel() -> None:
    """Ray cancels a task by raising Ctrl-C inside its process. A node that a job script has started in its background
    is deaf to Ctrl-C, its processes too: the task would go on to its end."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ray asks again and again until a cancelled task has ended: once is enough."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
