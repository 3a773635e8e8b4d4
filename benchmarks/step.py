"""The training step against Hugging Face's Trainer: the same shapes, batch, optimizer, schedule and text.

Both run in one process on one thread. Our step is timed in a callback of the Trainer, right after each of its own.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.turns import CONTEXT, SEQUENCES, SIZES, compared, gemm, in_turns, spread
from shared.corpus.load import load_corpus
from shared.model import Shape
from shared.model.exchange import to_transformers
from shared.train.batches import Batches
from shared.train.recipe import Recipe, trunk_fraction
from shared.train.trunk import Trainer as Ours

STEPS, WARM_UP, ROUNDS = 60, 10, 30
LEARNING_RATE = 0.002


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The sequences of our batches, in their order."""

    def __init__(self, batches: Batches, steps: int) -> None:
        self.rows = torch.cat([batches(step)[0] for step in range(steps)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def race(shape: Shape, compiled: bool, folder: Path) -> dict[str, Any]:
    """Seconds and losses of STEPS steps of each, in turns."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.compiler.reset()
    corpus = load_corpus("python", Path.cwd())
    recipe = Recipe(shape, seed=1, learning_rate=LEARNING_RATE, batch_tokens=SEQUENCES * CONTEXT)
    ours = Ours(recipe, Batches(corpus.train, CONTEXT, SEQUENCES, seed=1), torch.device("cpu"))
    llama = to_transformers(ours.model).train()
    seconds: dict[str, list[float]] = {"ours": [], "trainer": []}
    losses: dict[str, list[float]] = {"ours": [], "trainer": []}
    resumed = time.perf_counter()

    class InTurns(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal resumed
            now = time.perf_counter()
            seconds["trainer"].append(now - resumed)
            losses["ours"].append(ours.advance(trunk_fraction(recipe, ours.step)))
            seconds["ours"].append(time.perf_counter() - now)
            resumed = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                losses["trainer"].append(float(logs["loss"]))

    trainer = transformers.Trainer(
        model=llama,
        args=transformers.TrainingArguments(
            output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=SEQUENCES, learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant_with_warmup", warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            adam_beta1=recipe.beta1, adam_beta2=recipe.beta2, adam_epsilon=recipe.epsilon, max_grad_norm=recipe.clip,
            bf16=True, use_cpu=True, optim="adamw_torch_fused", torch_compile=compiled, logging_steps=1,
            save_strategy="no", report_to=[], disable_tqdm=True, train_sampling_strategy="sequential",
        ),
        train_dataset=Windows(Batches(corpus.train, CONTEXT, SEQUENCES, seed=1), STEPS),
        callbacks=[InTurns()],
    )  # fmt: skip
    trainer.train()
    return {"seconds": {k: v[WARM_UP:] for k, v in seconds.items()}, "losses": losses}


def beside_the_trainer(found: dict[str, Any]) -> dict[str, float]:
    """Of what `race` found: the ratio, and both losses after the same tokens."""
    losses = found["losses"]
    return {
        **compared("times_faster_than_trainer", found["seconds"], "trainer", "ours"),
        "loss_after_the_same_tokens": float(np.mean(losses["ours"][-5:])),
        "trainer_loss": float(np.mean(losses["trainer"][-5:])),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "torch_compile"])
@pytest.mark.parametrize("size", SIZES)
def test_step_against_trainer(benchmark: Any, size: str, compiled: bool, tmp_path: Path) -> None:
    found = race(SIZES[size], compiled, tmp_path)
    seconds = found["seconds"]
    tokens = SEQUENCES * CONTEXT
    mine = float(np.median(seconds["ours"]))
    benchmark.extra_info |= {
        "size": size,
        "d_model": SIZES[size].d_model,
        "tokens_per_second": tokens / mine,
        "trainer_tokens_per_second": tokens / float(np.median(seconds["trainer"])),
        **beside_the_trainer(found),
    }
    turns = iter(seconds["ours"])
    benchmark.pedantic(lambda: next(turns), rounds=1)
    benchmark.extra_info["step_seconds"] = mine


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", SIZES)
def test_share_of_the_gemm_peak(benchmark: Any, size: str) -> None:
    """FLOP/s of the step, alone, over those of a large BF16 product timed in turns with it (medians)."""
    torch.set_num_threads(1)
    torch.compiler.reset()
    corpus = load_corpus("python", Path.cwd())
    shape = SIZES[size]
    recipe = Recipe(shape, seed=1, learning_rate=LEARNING_RATE, batch_tokens=SEQUENCES * CONTEXT)
    ours = Ours(recipe, Batches(corpus.train, CONTEXT, SEQUENCES, seed=1), torch.device("cpu"))
    product, flops = gemm()
    seconds = in_turns({"step": lambda: ours.advance(1.0), "gemm": product}, rounds=60, warm_up=WARM_UP)
    step, peak = float(np.median(seconds["step"])), flops / float(np.median(seconds["gemm"]))
    speed = shape.flops_per_token() * SEQUENCES * CONTEXT / step
    benchmark.extra_info |= {
        "size": size,
        "d_model": shape.d_model,
        "tokens_per_second": SEQUENCES * CONTEXT / step,
        "step_gflops": speed / 1e9,
        "gemm_peak_gflops": peak / 1e9,
        "share_of_gemm_peak": speed / peak,
        "share_of_gemm_peak_spread": spread(seconds, "gemm", "step"),
        "loss": ours.loss,
    }
    turns = iter(seconds["step"])
    benchmark.pedantic(lambda: next(turns), rounds=1)


@pytest.mark.filterwarnings("ignore")
def test_threads_and_processes(benchmark: Any) -> None:
    """Two threads against one, at S, in turns: the reason for one-thread workers. Both train the same batches."""
    corpus = load_corpus("python", Path.cwd())
    torch.compiler.reset()
    recipe = Recipe(SIZES["S"], seed=1, learning_rate=LEARNING_RATE, batch_tokens=SEQUENCES * CONTEXT)
    trainers = {
        threads: Ours(recipe, Batches(corpus.train, CONTEXT, SEQUENCES, seed=1), torch.device("cpu"))
        for threads in (1, 2)
    }

    def step(threads: int) -> None:
        torch.set_num_threads(threads)
        trainers[threads].advance(1.0)

    seconds = in_turns({"1": lambda: step(1), "2": lambda: step(2)}, rounds=ROUNDS)
    torch.set_num_threads(1)
    benchmark.extra_info |= {
        **{f"tokens_per_second_{k}_threads": SEQUENCES * CONTEXT / float(np.median(seconds[k])) for k in seconds},
        **compared("two_threads_over_one_ratio", seconds, "2", "1"),
        **{f"loss_{threads}_threads": trainer.loss for threads, trainer in trainers.items()},
    }
    benchmark.pedantic(lambda: None, rounds=1)
