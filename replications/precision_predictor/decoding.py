"""Decoding under a schedule of widths: losses of given text by step, and text generated greedily.

The weights switch between steps, and the keys and values in the cache stay what the weights of their own step made
them. A run of steps at one width is one forward pass when the text is given: causal attention makes it the same.

A window has T + 1 tokens. The prefill reads the first P and predicts token P; decode step t reads token P + t and
predicts token P + t + 1, so that there are T - P steps. PMPD counts so too: 255 steps for 256 tokens.

Shape letters: S windows, B windows of a batch, T positions, P of them prefix, t decode steps, V vocabulary, H heads,
E values of a head, W tokens of a text.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from replications.precision_predictor.nested import Switch
from replications.precision_predictor.schedules import Schedule
from shared.errors import BitlawError
from shared.model.transformer import token_losses

Tell = Callable[[], None]


def check_prefix(prefix: int, context: int) -> int:
    """Decode steps after the prefix. Raises BitlawError when the prefix is empty or leaves none."""
    if prefix < 1:
        raise BitlawError(f"a prefix of {prefix} tokens: the prefill needs at least one")
    if prefix >= context:
        raise BitlawError(f"a prefix of {prefix} tokens leaves nothing of a context of {context} to decode: shorten it")
    return context - prefix


@torch.no_grad()
def check_cache(model: Any) -> None:
    """Raises BitlawError when the model keeps no keys and values between forward passes."""
    kind = model.config.model_type
    sentence = f"a model of type '{kind}' keeps no cache of keys and values: progressive decoding needs one"
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise BitlawError(sentence)
    probe_BT = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    cache = getattr(model(input_ids=probe_BT, use_cache=True), "past_key_values", None)
    if cache is None or cache.get_seq_length() != 2:
        raise BitlawError(sentence)


@torch.no_grad()
def step_losses(
    model: Any,
    switch: Switch,
    windows_ST: Tensor,
    prefix: int,
    schedule: Schedule,
    batch: int,
    tell: Tell = lambda: None,
) -> Tensor:
    """Loss of each decode step, (S, t) float64, nats/token, of windows (S, T + 1) given as text.

    Raises BitlawError when the schedule has another number of steps than the windows.
    """
    steps = check_prefix(prefix, windows_ST.shape[1] - 1)
    if len(schedule.widths) != steps:
        raise BitlawError(f"schedule '{schedule.name}' has {len(schedule.widths)} steps, the windows have {steps}")
    device = next(model.parameters()).device
    parts = []
    for windows_BT in windows_ST.split(batch):
        windows_BT = windows_BT.to(device)
        switch.use(schedule.prefill)
        cache = model(input_ids=windows_BT[:, :prefix], use_cache=True).past_key_values
        losses = []
        for width, start, end in schedule.segments:
            switch.use(width)
            read_BT = windows_BT[:, prefix + start : prefix + end]
            out = model(input_ids=read_BT, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            losses.append(token_losses(out.logits, windows_BT[:, prefix + start + 1 : prefix + end + 1]).cpu())
        parts.append(torch.cat(losses, dim=1))
        tell()
    return torch.cat(parts).double()


@torch.no_grad()
def generate(
    model: Any,
    switch: Switch,
    prompts_SP: Tensor,
    schedule: Schedule,
    batch: int,
    tell: Tell = lambda: None,
) -> Tensor:
    """The most likely next token again and again: (S, t + 1), of which the prefill gives the first.

    Every text has the same length: an end-of-text token is one token among the others and ends nothing.
    """
    device = next(model.parameters()).device
    parts = []
    for prompts_BP in prompts_SP.split(batch):
        switch.use(schedule.prefill)
        out = model(input_ids=prompts_BP.to(device), use_cache=True)
        tokens = [out.logits[:, -1].argmax(-1)]
        for width, start, end in schedule.segments:
            switch.use(width)
            for _ in range(start, end):
                out = model(input_ids=tokens[-1][:, None], past_key_values=out.past_key_values, use_cache=True)
                tokens.append(out.logits[:, -1].argmax(-1))
        parts.append(torch.stack(tokens, dim=1).cpu())
        tell()
    return torch.cat(parts)


@torch.no_grad()
def prefill_cache(model: Any, switch: Switch, prompts_SP: Tensor, width: int, batch: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the last block after the prefill, each (S, H, P, E): what the learned scheduler reads."""
    device = next(model.parameters()).device
    switch.use(width)
    keys, values = [], []
    for prompts_BP in prompts_SP.split(batch):
        last = model(input_ids=prompts_BP.to(device), use_cache=True).past_key_values.layers[-1]
        keys.append(last.keys.cpu())
        values.append(last.values.cpu())
    return torch.cat(keys), torch.cat(values)


def rouge_l(texts_SW: Tensor, references_SW: Tensor) -> NDArray[np.float64]:
    """Rouge-L's F1 of token sequences, (S,): twice their longest common subsequence over both lengths.

    A row of the table of subsequences is a running maximum over the row before, so it is done at once for all texts.
    """
    texts, references = texts_SW.numpy(), references_SW.numpy()
    row_SW = np.zeros((len(texts), references.shape[1] + 1), dtype=np.int32)
    for token_S in texts.T:
        same_SW = token_S[:, None] == references
        best_SW = np.maximum(row_SW[:, 1:], row_SW[:, :-1] + same_SW)
        row_SW = np.maximum.accumulate(np.pad(best_SW, ((0, 0), (1, 0))), axis=1)
    return 2.0 * row_SW[:, -1] / (texts.shape[1] + references.shape[1])


def agreement(texts_SW: Tensor, references_SW: Tensor) -> NDArray[np.float64]:
    """Tokens before the first that differs, (S,)."""
    equal_SW = (texts_SW == references_SW).numpy()
    return np.logical_and.accumulate(equal_SW, axis=1).sum(1).astype(np.float64)
