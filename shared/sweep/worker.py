"""One worker: takes trunks from a plan, trains them, measures their cells, and publishes what it finished.

Started by `launch` as `python -m shared.sweep.worker PLAN`; any number may work on one plan, on any number of
machines over a shared folder. Started by `torchrun -m shared.sweep.worker PLAN` its processes share each trunk.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from shared.corpus.load import Corpus, load_corpus, verify
from shared.errors import BitlawError, not_kept
from shared.evaluate.calibrate import calibration_text
from shared.evaluate.losses import evaluator, mean, validation_windows
from shared.evaluate.ptq import Cell, measure_losses
from shared.files import read_json, write_text
from shared.model import Decoder
from shared.quantize.training import baked
from shared.sweep.claim import claimed
from shared.sweep.ledger import Ledger, Result
from shared.sweep.spec import NUMERICS_VERSION, Run, RunSpec, trunks
from shared.train import trunk
from shared.train.batches import Batches
from shared.train.device import pick, processor
from shared.train.distributed import World, join, leave
from shared.train.state import DamagedFileError
from shared.train.trunk import ALONE

# How often progress is written for whoever watches.
PROGRESS_SECONDS = 2.0
# The environment names the launcher's process: it may be gone before a worker has been imported and can ask.
LAUNCHER = "BITLAW_LAUNCHER"


@dataclass(frozen=True)
class Plan:
    """What workers share: the runs to train, or, when there are cells, what to measure of checkpoints at hand."""

    root: Path
    build: Path
    runs: list[Run]
    cells: dict[str, list[Cell]]
    device: str
    save_seconds: float
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {
            "root": str(self.root),
            "build": str(self.build),
            "runs": [run.to_json() for run in self.runs],
            "cells": {run_id: [vars(cell) for cell in cells] for run_id, cells in self.cells.items()},
            "device": self.device,
            "save_seconds": self.save_seconds,
            "provenance": self.provenance,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Plan":
        return Plan(
            Path(value["root"]),
            Path(value["build"]),
            [Run.from_json(run) for run in value["runs"]],
            {run_id: [Cell(**cell) for cell in cells] for run_id, cells in value["cells"].items()},
            value["device"],
            value["save_seconds"],
            value["provenance"],
        )


@dataclass
class Worker:
    """One process at work on a plan."""

    plan: Plan
    stopping: Callable[[], bool]
    device: torch.device
    world: World = ALONE

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.plan.build)
        self.corpora: dict[str, Corpus] = {}
        self.benches: dict[Any, tuple[Decoder, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = {}

    def corpus(self, run: Run) -> Corpus:
        """The run's corpus, checked once against the hash that the run's identity names."""
        if run.corpus not in self.corpora:
            corpus = load_corpus(run.corpus, self.plan.root)
            verify(corpus)
            self.corpora[run.corpus] = corpus
        corpus = self.corpora[run.corpus]
        if corpus.sha256 != run.spec.corpus_sha256:
            raise BitlawError(f"corpus '{run.corpus}' changed since this run was planned: start the command again")
        return corpus

    def provenance(self) -> Result:
        return self.plan.provenance | {
            "device": self.device.type,
            "cpu_model": processor(self.device),
            "torch_version": str(torch.__version__),
            "numerics_version": NUMERICS_VERSION,
        }

    def train_trunk(self, runs: list[Run]) -> None:
        """Train what is missing of one trunk."""
        whole = [self.ledger.whole(run.spec.run_id, warn) for run in runs] if self.world.first else []
        missing = [run for run, there in zip(runs, self.world.told(whole), strict=True) if not there]
        if not missing:
            return
        # Compiled steps of earlier trunks count towards a limit beyond which torch falls back to eager, unasked.
        torch.compiler.reset()
        spec, corpus = missing[0].spec, self.corpus(missing[0])
        batches = Batches(corpus.train, spec.context, spec.recipe.batch_sequences, spec.seed)
        wanted = {(run.spec.tokens, run.spec.cooled): run for run in missing}
        horizons = {t: ((t, False) in wanted, (t, True) in wanted) for t in sorted({t for t, _ in wanted})}
        folder = self.ledger.trunk_folder(spec.trunk_id)
        folder.mkdir(parents=True, exist_ok=True)
        if self.world.first:
            self.bench(missing[0])  # before the step is compiled: it resets the compiler
        told = 0.0

        def tick(step: int) -> None:
            nonlocal told
            if self.world.first and time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                write_text(folder / "progress.json", json.dumps({"trunk_id": spec.trunk_id, "step": step}))

        for made in trunk.run(
            spec.recipe, batches, horizons, folder, self.device, self.world,
            save_seconds=self.plan.save_seconds, stop=self.stopping, tick=tick, warn=warn,
        ):  # fmt: skip
            if not self.world.first:
                continue
            run = wanted[made.tokens, made.cooled]
            model, losses, windows_ST = self.bench(run)
            losses_S, loss = None, None
            if not made.diverged:
                model.load_state_dict(made.weights)
                losses_S = losses(windows_ST)
                loss = mean(losses_S)
            shape = run.spec.shape
            result = (
                {name: getattr(run.spec, name) for name in run.spec.__dataclass_fields__}
                | {
                    "run_id": run.spec.run_id,
                    "base_run_id": run.spec.base.run_id,
                    "trunk_id": run.spec.trunk_id,
                    "size": run.size,
                    "corpus": run.corpus,
                }
                | {"n_blocks": shape.n_blocks, "n_embedding": shape.n_embedding, "n_head": shape.n_head}
                | {"corpus_passes": batches.repeats(made.tokens), "lr_fraction": made.lr_fraction}
                | {"loss": loss and loss.value, "loss_se": loss and loss.se, "train_loss": made.train_loss}
                | {"diverged": made.diverged, "train_flops": run.spec.train_flops, "seconds": made.seconds}
                | self.provenance()
            )
            self.ledger.finish(run, made.weights, losses_S, result)
            say({"finished": run.spec.run_id})

    def measure_run(self, run: Run) -> None:
        """Measure the cells of one checkpoint, when it is at hand."""
        run_id = run.spec.run_id
        cells = [cell for cell in self.plan.cells.get(run_id, []) if not self.ledger.measured(run_id, cell.name, warn)]
        result = self.ledger.result(run_id, warn)
        if not cells or result is None or result["diverged"]:
            return
        try:
            weights, base_S = self.ledger.weights(run_id), self.ledger.losses(run_id).double()
        except DamagedFileError as error:
            warn(f"{error}; its cells wait until `bitlaw train` has trained it again")
            return
        model, losses, windows_ST = self.bench(replace(run, spec=run.spec.base))
        model.load_state_dict(deployed(run.spec, weights))
        text = None
        if any(cell.needs_text for cell in cells):
            text = calibration_text(run.corpus, self.corpus(run).train, run.spec.context)
        names = ("run_id", "trunk_id", "size", "corpus", "n_blocks", "tokens", "cooled", "seed", "numerics_version")
        known = {name: result[name] for name in names} | {"base_loss": result["loss"]}
        for cell in cells:
            if self.stopping():
                raise trunk.StoppedError
            row, losses_S = measure_losses(model, cell, losses, windows_ST, base_S, text)
            self.ledger.finish_cell(run_id, cell.name, known | row, losses_S)
        say({"measured": run_id, "cells": len(cells)})

    def bench(self, run: Run) -> tuple[Decoder, Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """A model of the run's shape, its compiled losses, and the validation windows; kept for the next run."""
        spec = run.spec
        recipe = spec.recipe
        text = (run.corpus, spec.validation_tokens)
        key = (recipe.shape, recipe.precision, recipe.sparsity, *text, spec.threads, spec.compile)
        if key not in self.benches:
            torch.compiler.reset()
            torch.set_num_threads(spec.threads)
            model = trunk.low_precision(recipe.shape, recipe.precision, recipe.sparsity).to(self.device)
            windows_ST = validation_windows(self.corpus(run).val, spec.context, spec.validation_tokens)
            self.benches = {key: (model, evaluator(model, spec.compile), windows_ST)}
        return self.benches[key]

    def work(self) -> None:
        """Go through the plan until nothing is left that this worker can take: trunks to train, runs to measure."""
        if self.plan.cells:
            tasks = [
                (self.ledger.run_folder(run.spec.run_id), partial(self.measure_run, run)) for run in self.plan.runs
            ]
        else:
            tasks = [
                (self.ledger.trunk_folder(trunk_id), partial(self.train_trunk, runs))
                for trunk_id, runs in trunks(self.plan.runs).items()
            ]
        while tasks:
            left = []
            for folder, task in tasks:
                with claimed(folder / "claim") if self.world.first else nullcontext(False) as here:
                    if self.world.told(here):
                        task()
                    else:
                        left.append((folder, task))
            if len(left) == len(tasks):
                # Somebody else holds all of them: look again, they may die.
                if self.world.mean_and_any(0.0, self.stopping(), self.device)[1]:
                    raise trunk.StoppedError
                time.sleep(PROGRESS_SECONDS)
            tasks = left


def deployed(spec: RunSpec, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A plain model's tensors: of a run that trains with quantized weights, those that its products read.

    What is quantized further is what would be deployed (Kumar et al., arXiv 2411.04330, section 5), not the weights in
    full precision behind it. Raises BitlawError when more than weights is cast: no plain model computes that.
    """
    if spec == spec.base:
        return weights
    recipe = spec.recipe
    trained = trunk.low_precision(recipe.shape, recipe.precision, recipe.sparsity)
    trained.load_state_dict(weights)
    return baked(trained).state_dict()


def say(event: dict[str, Any]) -> None:
    """One line of JSON for the launcher."""
    print(json.dumps(event), flush=True)


def warn(sentence: str) -> None:
    say({"warning": sentence})


def main(arguments: Iterable[str]) -> int:
    """Exit codes: 0 done, 2 bad input (said as an event), 130 stopped (by a signal, or left by its launcher)."""
    (plan_file,) = arguments
    # Beyond its limit of recompilations torch would go on uncompiled, with other numbers, and only warn.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    asked: list[int] = []
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, frame: asked.append(received))
    world = ALONE
    try:
        plan = Plan.from_json(read_json(Path(plan_file)))
        device = pick(plan.device)
        world = join(device)
        if world.size > 1 and plan.cells:
            raise BitlawError("measuring is not shared by the processes of one run: start `bitlaw measure` by itself")
        Worker(plan, lambda: bool(asked) or os.getppid() != launcher, device, world).work()
    except trunk.StoppedError:
        return 130
    except BitlawError as error:
        say({"error": str(error)})
        return 2
    except OSError as error:
        say({"error": str(not_kept(error))})
        return 2
    finally:
        leave(world)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
