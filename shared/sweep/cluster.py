"""The executor `ray`: each trunk with its branches, or each checkpoint to measure, is one Ray task (shared.sweep.node).

Results come back into the launcher's ledger and tables (shared.sweep.desk). Ray's own reports and dashboard stay off.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.errors import BitlawError
from shared.sweep import node
from shared.sweep.claim import claimed
from shared.sweep.desk import Desk, new_desk
from shared.sweep.events import STOP_SECONDS, Event
from shared.sweep.launch import Outcome, collect, concluded, settings, threads, watched, worker_command
from shared.sweep.ledger import Ledger
from shared.sweep.spec import NUMERICS_VERSION, Run, trunks
from shared.sweep.worker import LAUNCHER, Plan

# Further tries of a task whose machine or worker died; a run that is wrong is wrong the first time.
RETRIES = 3
LOOK_SECONDS = 0.5
CHECK_SECONDS = 120.0
KNOCK_SECONDS = 10.0
ANSWER_SECONDS = 60.0
# In a process of its own: without a token file Ray aborts the process that asks.
ASK = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
# Time for a machine that was lost to come back, or for another to be started, before the command gives up.
ABSENT_SECONDS = 60.0


def launch_on_ray(
    plan: Plan, reports: Path, address: str, say: Callable[[str], None], processes_each: int = 1
) -> Outcome:
    """Run a plan on the Ray cluster at `address`; returns and raises as `launch` does.

    Raises BitlawError when there is no Ray, no cluster, no machine with enough processors, or when one of its machines
    has another bitlaw or corpus.
    """
    ray = connect(address)
    try:
        plan = replace(plan, device=device_of(ray, plan.device))
        cpus, gpus = threads(plan) * processes_each, processes_each if plan.device == "cuda" else 0
        required = requirements(plan)
        look_at_machines(ray, required, cpus, gpus)
        # As in `launch`: what cannot be read or written is said before hours of training.
        collect(plan, reports, say)
        folder = new_desk(plan.build)
        with claimed(folder / "claim"):
            try:
                return follow(ray, plan, reports, folder, required, cpus, gpus, processes_each, say)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        ray.shutdown()


def connect(address: str) -> Any:
    """The module ray, connected. Raises BitlawError when it is absent or finds no cluster."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # What Ray will do of itself in a later version; without it, it warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise BitlawError("the executor ray needs the extra `cluster`: pip install 'bitlaw[cluster]'") from error
    if address.startswith("ray://"):
        raise BitlawError(f"--address {address}: start the command on a machine of the cluster, with --address auto")
    knock(address)
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise no_cluster(address, " ".join(str(error).split())[:300]) from error
    # `log_to_driver` is about workers; this is what prints the last words of a lost machine's raylet.
    ray._private.worker._worker_logs_enabled = False
    return ray


def knock(address: str) -> None:
    """Raises BitlawError when nobody listens at the address or takes our token: Ray itself would try for minutes."""
    if address == "auto":
        # Where `ray start` notes the head's address; without the note Ray says at once that there is no cluster.
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        address = os.environ.get("RAY_ADDRESS") or (noted.read_text().strip() if noted.exists() else "")
        if not address:
            return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()
    except (OSError, ValueError) as error:
        raise no_cluster(address, str(error)) from error
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK, address], capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise no_cluster(address, f"no word in {ANSWER_SECONDS:g} s") from error
    if asked.returncode and "token" in asked.stderr:
        raise BitlawError(
            f"--address {address}: the cluster does not take this machine's token: copy ~/.ray/auth_token from the "
            "machine of `ray start --head` and export RAY_AUTH_MODE=token"
        )
    if asked.returncode:
        raise no_cluster(address, asked.stderr.strip().splitlines()[-1][:300] if asked.stderr.strip() else "no reason")


def no_cluster(address: str, reason: str) -> BitlawError:
    return BitlawError(f"--address {address}: no Ray cluster answers ({reason}): start one with `ray start`")


def device_of(ray: Any, name: str) -> str:
    """`auto` is cuda where the cluster has GPUs. Raises BitlawError when it has none and cuda is asked for."""
    gpus = sum(found["Resources"].get("GPU", 0) for found in machines(ray))
    if name == "auto":
        return "cuda" if gpus else "cpu"
    if name not in ("cpu", "cuda"):
        raise BitlawError(f"device {name!r} is not supported on a cluster: use auto, cpu or cuda")
    if name == "cuda" and not gpus:
        raise BitlawError("--device cuda: no machine of the cluster has a GPU: use --device cpu")
    return name


def machines(ray: Any) -> list[dict[str, Any]]:
    return [found for found in ray.nodes() if found["Alive"]]


def able(ray: Any, cpus: int, gpus: int) -> list[dict[str, Any]]:
    """The machines that are alive and large enough for a task, busy or not."""
    return [
        found
        for found in machines(ray)
        if found["Resources"].get("CPU", 0) >= cpus and found["Resources"].get("GPU", 0) >= gpus
    ]


def requirements(plan: Plan) -> dict[str, Any]:
    """What each machine must have (shared.sweep.node.check)."""
    return {
        "version": node.installed(),
        "numerics_version": NUMERICS_VERSION,
        "code": node.code_sha256(),
        "torch": node.installed_torch(),
        "corpora": {run.corpus: run.spec.corpus_sha256 for run in plan.runs},
    }


def look_at_machines(ray: Any, required: dict[str, Any], cpus: int, gpus: int) -> None:
    """Ask each machine before anything is trained. Raises BitlawError, naming the machine, for the first refusal."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found_able = able(ray, cpus, gpus)
    if not found_able:
        raise BitlawError(f"no machine of the cluster has the {cpus} CPUs and {gpus} GPUs that each run needs")

    # Nested, so that it travels as it is: a machine without bitlaw can still answer.
    def look(required: dict[str, Any]) -> str | None:
        import socket
        import sys

        try:
            from shared.sweep.node import check
        except ImportError as error:
            return f"{socket.gethostname()}: {sys.executable} cannot import bitlaw ({error}): install it there"
        try:
            check(required)
        except ValueError as error:
            return str(error)
        return None

    asked = [
        ray.remote(look)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(found["NodeID"], soft=False))
        .remote(required)
        for found in found_able
    ]
    for found, answer in zip(found_able, asked, strict=True):
        try:
            refusal = ray.get(answer, timeout=CHECK_SECONDS)
        except ray.exceptions.RayError as error:
            refusal = f"{found['NodeManagerHostname']}: does not answer ({' '.join(str(error).split())[:200]})"
        if refusal:
            raise BitlawError(refusal)


def pieces(plan: Plan, say: Callable[[str], None]) -> Iterator[tuple[Plan, str, dict[str, int]]]:
    """What is still to do, a task each: a plan of it, its trunk, and the trunk's step at which each run leaves it.
    What is damaged is named through `say`."""
    ledger = Ledger(plan.build)
    if plan.cells:
        for run in plan.runs:
            run_id = run.spec.run_id
            cells = [c for c in plan.cells.get(run_id, []) if not ledger.measured(run_id, c.name, say)]
            if cells:
                yield replace(plan, runs=[run], cells={run_id: cells}), "", {run_id: 0}
        return
    for trunk_id, members in trunks(plan.runs).items():
        missing = [run for run in members if not ledger.whole(run.spec.run_id, say)]
        if missing:
            yield replace(plan, runs=missing), trunk_id, {run.spec.run_id: leaves(run) for run in missing}


def leaves(run: Run) -> int:
    recipe, tokens = run.spec.recipe, run.spec.tokens
    return recipe.branch_step(tokens) if run.spec.cooled else recipe.steps(tokens)


def follow(
    ray: Any, plan: Plan, reports: Path, folder: Path, required: dict[str, Any],
    cpus: int, gpus: int, processes_each: int, say: Callable[[str], None],
) -> Outcome:  # fmt: skip
    """Start the tasks and put what comes back into the tables, until all have ended."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    desk = ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote(str(folder))
    # On each machine in its own clone, unless it lies outside of this one.
    build = plan.build.relative_to(plan.root) if plan.build.is_relative_to(plan.root) else plan.build
    common = {
        "token": folder.name,
        "build": str(build),
        "command": worker_command(processes_each),
        "settings": settings(plan),
        "launcher": LAUNCHER if processes_each == 1 else "",
    }
    task = ray.remote(run_task)
    options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
    options |= {"max_retries": RETRIES, "retry_exceptions": [node.WorkerDiedError]}
    tasks = {}
    for part, trunk_id, starts in pieces(plan, say):
        label = part.runs[0].label
        order = common | {"plan": part.to_json(), "trunk_id": trunk_id, "starts": starts}
        tasks[task.options(**options, name=label).remote(required, order, desk)] = label
    # A polite kill is a Ctrl-C: tasks save and stop. (ray.init has put its own handler there.)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    events: list[Event] = []
    error: str | None = None
    deadline: float | None = None
    seen_able = time.monotonic()
    with let_save(ray, tasks), watched(plan, reports, say) as take:

        def hear() -> None:
            for event in ray.get(desk.told.remote()):
                events.append(event)
                take(event)

        while tasks and (deadline is None or time.monotonic() < deadline):
            try:
                ended, _ = ray.wait(list(tasks), timeout=LOOK_SECONDS)
                hear()
                for ref in ended:
                    label = tasks.pop(ref)
                    failure = failure_of(ray, ref)
                    if failure and deadline is None:
                        error = error or f"{label}: {failure}"
                if ended or able(ray, cpus, gpus):
                    seen_able = time.monotonic()
                elif time.monotonic() - seen_able > ABSENT_SECONDS and deadline is None:
                    # Ray itself would wait for such a machine without a word, and without end.
                    error = error or (
                        f"no machine that is left in the cluster has the {cpus} CPUs and {gpus} GPUs that each run "
                        f"needs, for {ABSENT_SECONDS:g} s: start one with `ray start` and run the command again"
                    )
                    break
            except KeyboardInterrupt:
                deadline = time.monotonic() + 2 * STOP_SECONDS
                for ref in tasks:
                    ray.cancel(ref, force=False, recursive=False)
            except ray.exceptions.RayActorError as lost:
                error = error or f"the process that receives results died ({lost}): run the command again"
                break
        with contextlib.suppress(ray.exceptions.RayActorError):
            hear()
    if deadline is not None:
        collect(plan, reports, say)
        raise KeyboardInterrupt
    return concluded(plan, reports, say, events, error)


@contextlib.contextmanager
def let_save(ray: Any, tasks: dict[Any, str]) -> Iterator[None]:
    """No task outlives its launcher, which a full disk or a damaged table may end: each is given time to save."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(ray.exceptions.RayError):
            for ref in tasks:
                ray.cancel(ref, force=False, recursive=False)
            if tasks:
                ray.wait(list(tasks), num_returns=len(tasks), timeout=STOP_SECONDS)
        raise


def run_task(required: dict[str, Any], order: dict[str, Any], desk: Any) -> None:
    """A task, on its machine."""
    import ray

    node.work(required, order, lambda method, *values: ray.get(getattr(desk, method).remote(*values)))


def failure_of(ray: Any, ref: Any) -> str | None:
    """Why a task failed, in one sentence; None when it did not."""
    try:
        ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, node.WorkerDiedError):
            return f"its worker died {RETRIES + 1} times, last on {cause}"
        return str(cause) if isinstance(cause, BitlawError) else f"{type(cause).__name__}: {cause}"
    except ray.exceptions.RayError as error:
        return f"its machine or process was lost, {RETRIES + 1} times ({' '.join(str(error).split())[:300]})"
    return None
