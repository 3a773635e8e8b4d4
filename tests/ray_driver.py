"""A sweep of two trunks that takes a few seconds, by either executor: `python ray_driver.py local|ADDRESS [SECONDS]`.

SECONDS is how long no machine may be able to go on. Started by tests that disturb it; exits with 130 after Ctrl-C,
with 2 and one sentence on an error.
"""

import sys
from pathlib import Path

from shared.corpus.load import load_corpus
from shared.errors import BitlawError
from shared.sweep import cluster
from shared.sweep.cluster import launch_on_ray
from shared.sweep.launch import Outcome, checked, launch
from shared.sweep.spec import Run, RunSpec
from shared.sweep.worker import Plan

STEPS = (20, 60, 400)
TOKENS = 512


def plan() -> Plan:
    root = Path.cwd()
    first = {"n_layer": 2, "d_model": 64, "d_ff": 128, "learning_rate": 0.004, "context": 64, "batch_tokens": TOKENS}
    fixed = {"warmup_steps": 4, "validation_tokens": 2048, "compile": False}
    sha256 = load_corpus("sample", root).sha256
    runs = [
        Run(RunSpec(sha256, **first, **fixed, seed=seed, tokens=steps * TOKENS, cooled=cooled), "S", "sample")  # type: ignore[arg-type]
        for seed in (1, 2)
        for steps in STEPS
        for cooled in (True, False)
    ]
    return Plan(root, root / "build", runs, {}, "cpu", 0.5, {"git_revision": "none", "dirty": False})


def drive(executor: str) -> Outcome:
    def say(sentence: str) -> None:
        print(sentence, file=sys.stderr)

    reports = Path("reports")
    if executor == "local":
        return launch(plan(), reports, 2, say)
    return launch_on_ray(plan(), reports, executor, say)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        cluster.ABSENT_SECONDS = float(sys.argv[2])
    try:
        checked(drive(sys.argv[1]))
    except BitlawError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
