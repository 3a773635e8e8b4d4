"""PMPD's learned scheduler: how many decode steps a prompt needs at the high width, from the last block's cache.

Network and labels as in arXiv 2410.13461 (facts, section 4.1): keys and values averaged over heads, a learned query
(heads x heads x head size), softmax attention over the prompt, LayerNorm, Linear, ReLU, Linear to 4 classes; the label
of a prompt is the smallest number of high steps whose Rouge-L against the unquantized model's text reaches that of all
high steps, both rounded to 3 decimals; 10 % of the prompts are held out; cross-entropy and Adam.
Here instead of the search over hyperparameters (100 trials): one setting, and the epoch with the least held-out loss.
Prefixes are of one length, and the cache is that of the prefill.

Shape letters: S prompts, B prompts of a batch, H heads, P positions of the prompt, E values of a head, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import BitlawError

HELD_OUT = 0.1
LEARNING_RATE, WEIGHT_DECAY, DROPOUT, HIDDEN = 1e-3, 0.01, 0.2, 64
EPOCHS, BATCH = 20, 32
LEAST_PROMPTS = 20  # two held out
DECIMALS = 3


class Classifier(nn.Module):
    """(B, H, P, E) keys and values in, (B, K) logits out."""

    def __init__(self, heads: int, size: int, classes: int) -> None:
        super().__init__()
        self.query_HHE = nn.Parameter(torch.randn(heads, heads, size) / math.sqrt(size))
        width = heads * heads * size
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, HIDDEN)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(HIDDEN, classes)

    def forward(self, keys_BHPE: Tensor, values_BHPE: Tensor) -> Tensor:
        keys_BPE, values_BPE = keys_BHPE.mean(1), values_BHPE.mean(1)
        scores_BHHP = torch.einsum("ghe,bpe->bghp", self.query_HHE, keys_BPE) / math.sqrt(keys_BPE.shape[-1])
        read_BHHE = torch.einsum("bghp,bpe->bghe", scores_BHHP.softmax(-1), values_BPE)
        hidden_BF = F.relu(self.hidden(self.norm(read_BHHE.flatten(1))))
        logits_BK: Tensor = self.out(self.dropout(hidden_BF))
        return logits_BK


@dataclass(frozen=True)
class Learned:
    """A trained scheduler, the shares of the labels it was trained on (the prior), and its held-out accuracy."""

    network: Classifier
    prior_K: NDArray[np.float64]
    accuracy: float

    @torch.no_grad()
    def choose(self, keys_SHPE: Tensor, values_SHPE: Tensor) -> NDArray[np.int64]:
        """The class of each prompt, (S,)."""
        self.network.eval()
        return self.network(keys_SHPE, values_SHPE).argmax(-1).numpy().astype(np.int64)


def labels(rouge_SK: NDArray[np.float64]) -> NDArray[np.int64]:
    """The smallest class that reaches the last one, which is all high, (S,)."""
    rounded_SK = rouge_SK.round(DECIMALS)
    return (rounded_SK >= rounded_SK[:, -1:]).argmax(1)


def train(keys_SHPE: Tensor, values_SHPE: Tensor, labels_S: NDArray[np.int64], classes: int, seed: int = 0) -> Learned:
    """A scheduler fitted to labelled prompts. Raises BitlawError for fewer than 20."""
    count = len(labels_S)
    if count < LEAST_PROMPTS:
        raise BitlawError(f"{count} prompts cannot train a scheduler: give at least {LEAST_PROMPTS}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order_S = torch.randperm(count)
        held = max(1, round(HELD_OUT * count))
        out_S, in_S = order_S[:held], order_S[held:]
        target_S = torch.from_numpy(labels_S)
        network = Classifier(keys_SHPE.shape[1], keys_SHPE.shape[-1], classes)
        optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        least, accuracy, state = math.inf, 0.0, {}
        for _ in range(EPOCHS):
            network.train()
            for batch_B in in_S[torch.randperm(len(in_S))].split(BATCH):
                loss = F.cross_entropy(network(keys_SHPE[batch_B], values_SHPE[batch_B]), target_S[batch_B])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                logits_SK = network(keys_SHPE[out_S], values_SHPE[out_S])
                value = F.cross_entropy(logits_SK, target_S[out_S]).item()
            if value < least:
                least = value
                accuracy = (logits_SK.argmax(-1) == target_S[out_S]).double().mean().item()
                state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(state)
    return Learned(network, np.bincount(labels_S, minlength=classes) / count, accuracy)
