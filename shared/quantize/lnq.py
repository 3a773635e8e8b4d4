"""LNQ (Kim et al., arXiv 2505.07004, section 4): a code book for each output channel, fitted to the layer's objective.

For each channel w, with H the Hessian of its group (one for all channels: plain LNQ; gradient-weighted: GuidedQuant),
(w - w')^T H (w - w') is lowered by turns (Algorithm 2):

    1. the code book for fixed codes, by least squares: c = (P^T H P)^-1 P^T H w, P the one-hot matrix of the codes;
    2. the codes for a fixed code book, one input after the other: round w_i - H_i,-i (w'_-i - w_-i) / H_ii.

Both are exact, so the objective never rises (Proposition 4.1). The start is SqueezeLLM's (Kim et al., arXiv
2306.07629): k-means of each channel's weights, weighted by the diagonal of H.

Shape letters: O outputs, I inputs, M entries of a code book; inside: K groups of output channels (the g of the paper),
N channels of a group, B inputs of a block.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from shared.errors import BitlawError, nearest
from shared.quantize.guided import grouped
from shared.quantize.rtn import Rounded

# T and K of the paper for 7B, 13B and Llama-3-8B (T = 1 for 70B), and its lazy batches.
ITERATIONS = 2
CYCLES = 4
BLOCK = 128
# Shares of the mean diagonal that are added to a Hessian that is not positive definite, one after the other; the first
# and the factor are the authors' (they go on without end).
DAMPINGS = tuple(10.0**k for k in range(-5, 1))
# Rounds of Lloyd's algorithm at the start; few matrices need so many.
LLOYD_ROUNDS = 50
# Share of its own diagonal that is added to P^T H P (the authors: 1e-7 absolute). It only holds an entry that hardly
# any weight uses where it is: the equations are solved for the change of the code book.
RIDGE = 1e-9
# Numbers of a one-hot block, to bound its memory: 64 MB in double precision.
ONE_HOT = 2**23

Entries = Literal["FP16", "FP32"]


@dataclass(frozen=True)
class CodeBooks(Rounded):
    """A matrix whose weight (o, i) is entry codes[o, i] of code book o; bits per weight count the code books.

    objectives  sum over channels of d H d^T: at the start, after the first code books, after the first codes, ...
    damping     the largest share of the mean diagonal that a group's H needed to be positive definite; 0 for none.
                The objectives are those of the damped H.
    proposed    of each step as it was computed, before the channels that it would raise were held back
    """

    codebook_OM: Tensor
    codes_OI: Tensor
    objectives: tuple[float, ...]
    damping: float
    proposed: tuple[float, ...]


@torch.no_grad()
def lnq(
    weight_OI: Tensor,
    hessians_gII: Tensor,
    bits: int,
    iterations: int = ITERATIONS,
    cycles: int = CYCLES,
    entries: Entries = "FP16",
    block: int = BLOCK,
) -> CodeBooks:
    """Quantize to 2^bits values a channel, in FP32 on the weight's device (sums that decide in double precision).

    hessians_gII  (g, I, I), g groups of consecutive channels; one for plain LNQ
    iterations    times that code books and codes are improved; 0 leaves the weighted k-means of the start
    entries       what a code book's values are stored in: bits + 2^bits * 16 (32) / I bits per weight
    A channel takes a step only if it lowers its objective as stored, so rounding errors raise nothing either.
    Raises BitlawError for bits outside 1..8, weights too large for FP16, a Hessian that is singular even when damped,
    and as `guided.grouped` does.
    """
    if bits not in range(1, 9):
        raise BitlawError(f"lnq: {bits} bits are not possible: use 1 to 8")
    if entries not in get_args(Entries):
        known = list(get_args(Entries))
        raise BitlawError(f"code book entries {entries!r} are unknown{nearest(entries, known)}: use FP16 or FP32")
    if iterations < 0 or cycles < 1 or block < 1:
        raise BitlawError("lnq: iterations must be 0 or more, cycles and block 1 or more")
    groups = grouped(weight_OI, hessians_gII)
    if entries == "FP16" and weight_OI.abs().amax() > torch.finfo(torch.float16).max:
        raise BitlawError("a weight is above 65,504, the largest FP16 value: store the code books in FP32")
    hessians_KII, damping = positive_definite(hessians_gII.float())
    weight_KIN = torch.stack([weight.float().T for weight, _ in groups])

    book_KMN, codes_KIN = weighted_kmeans(weight_KIN, hessians_KII.diagonal(dim1=1, dim2=2).unsqueeze(-1), 2**bits)
    book_KMN = stored(book_KMN, entries)
    error_KN = channel_errors(weight_KIN, book_KMN.gather(1, codes_KIN), hessians_KII)
    objectives, proposed = [error_KN.sum().item()], []

    def keep(other_KMN: Tensor, others_KIN: Tensor) -> None:
        """Take the step in the channels where it helps."""
        nonlocal book_KMN, codes_KIN, error_KN
        new_KN = channel_errors(weight_KIN, other_KMN.gather(1, others_KIN), hessians_KII)
        proposed.append(new_KN.sum().item())
        better_K1N = (new_KN < error_KN).unsqueeze(1)
        book_KMN = torch.where(better_K1N, other_KMN, book_KMN)
        codes_KIN = torch.where(better_K1N, others_KIN, codes_KIN)
        error_KN = torch.where(better_K1N.squeeze(1), new_KN, error_KN)
        objectives.append(error_KN.sum().item())

    for _ in range(iterations):
        fitted_KMN, sorted_KIN = ordered(least_squares(weight_KIN, hessians_KII, codes_KIN, book_KMN), codes_KIN)
        keep(stored(fitted_KMN, entries), sorted_KIN)
        keep(book_KMN, coordinate_descent(weight_KIN, hessians_KII, codes_KIN, book_KMN, cycles, block))

    outputs, inputs = weight_OI.shape
    rounded_OI = book_KMN.gather(1, codes_KIN).transpose(1, 2).reshape(outputs, inputs)
    return CodeBooks(
        weight=rounded_OI,
        bits_per_weight=bits + 2**bits * (16 if entries == "FP16" else 32) / inputs,
        squared_error=(rounded_OI - weight_OI.float()).double().square().sum().item(),
        squared_norm=weight_OI.double().square().sum().item(),
        codebook_OM=book_KMN.transpose(1, 2).reshape(outputs, -1),
        codes_OI=codes_KIN.transpose(1, 2).reshape(outputs, inputs).to(torch.uint8),
        objectives=tuple(objectives),
        damping=damping,
        proposed=tuple(proposed),
    )


def positive_definite(hessians_KII: Tensor) -> tuple[Tensor, float]:
    """The Hessians with as little damping as lets each be factored, and the largest share that was added."""
    made, most = [], 0.0
    for hessian_II in hessians_KII:
        mean = hessian_II.diagonal().mean().item()
        for share in (0.0, *DAMPINGS):
            damped_II = hessian_II + share * mean * torch.eye(len(hessian_II), device=hessian_II.device)
            _, failed = torch.linalg.cholesky_ex(damped_II.double())
            if not failed:
                break
        else:
            raise BitlawError(
                f"the Hessian of a layer is singular even with damping {DAMPINGS[-1]:g}: give more calibration text"
            )
        made.append(damped_II)
        most = max(most, share)
    return torch.stack(made), most


def channel_errors(weight_KIN: Tensor, rounded_KIN: Tensor, hessians_KII: Tensor) -> Tensor:
    """d^T H d of each channel (K, N), in double precision."""
    difference_KIN = (rounded_KIN - weight_KIN).double()
    return torch.stack([(h.double() @ d * d).sum(0) for h, d in zip(hessians_KII, difference_KIN, strict=True)])


def stored(book_KMN: Tensor, entries: Entries) -> Tensor:
    return book_KMN.half().float() if entries == "FP16" else book_KMN


def ordered(book_KMN: Tensor, codes_KIN: Tensor) -> tuple[Tensor, Tensor]:
    """The same values with ascending entries."""
    book_KMN, order_KMN = book_KMN.sort(dim=1)
    return book_KMN, order_KMN.argsort(dim=1).gather(1, codes_KIN)


def closest(book_KMN: Tensor, values_KIN: Tensor) -> Tensor:
    """Codes (K, I, N) of the closest entries of ascending code books."""
    edges_KNE = (book_KMN[:, 1:] + book_KMN[:, :-1]).div(2).transpose(1, 2).contiguous()
    return torch.searchsorted(edges_KNE, values_KIN.transpose(1, 2).contiguous()).transpose(1, 2)


def weighted_kmeans(weight_KIN: Tensor, importance_KI1: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """Code books (K, M, N), ascending, and codes (K, I, N) with a small weighted squared error in each channel.

    Lloyd's algorithm from two starts, the channel's quantiles and the even grid over its range, the better one of
    each channel; so it never loses to that grid. An entry that no weight is close to stays.
    """
    importance_KIN = importance_KI1.expand_as(weight_KIN)
    low_K1N, high_K1N = weight_KIN.amin(1, keepdim=True), weight_KIN.amax(1, keepdim=True)
    steps_M1 = torch.linspace(0, 1, entries, device=weight_KIN.device).unsqueeze(-1)
    inputs = weight_KIN.shape[1]
    middles_M = ((torch.arange(entries, device=weight_KIN.device) + 0.5) * inputs / entries).long()
    starts = (weight_KIN.sort(dim=1).values[:, middles_M], low_K1N + (high_K1N - low_K1N) * steps_M1)
    made = []
    for book_KMN in starts:
        codes_KIN = closest(book_KMN, weight_KIN)
        for _ in range(LLOYD_ROUNDS):
            mass_KMN = torch.zeros_like(book_KMN).scatter_add_(1, codes_KIN, importance_KIN)
            sum_KMN = torch.zeros_like(book_KMN).scatter_add_(1, codes_KIN, importance_KIN * weight_KIN)
            mean_KMN = torch.where(mass_KMN > 0, sum_KMN / mass_KMN, book_KMN)
            # Rounding may put the mean of equal weights beside them, past a neighbour.
            book_KMN = mean_KMN.sort(dim=1).values
            before_KIN, codes_KIN = codes_KIN, closest(book_KMN, weight_KIN)
            if torch.equal(codes_KIN, before_KIN):
                break
        error_K1N = ((book_KMN.gather(1, codes_KIN) - weight_KIN).square() * importance_KIN).sum(1, keepdim=True)
        made.append((book_KMN, codes_KIN, error_K1N))
    (first, codes, error), (second, other_codes, other_error) = made
    return torch.where(error <= other_error, first, second), torch.where(error <= other_error, codes, other_codes)


def least_squares(weight_KIN: Tensor, hessians_KII: Tensor, codes_KIN: Tensor, book_KMN: Tensor) -> Tensor:
    """The code books (K, M, N) with the least objective for these codes, not sorted; Algorithm 2, step 1.

    c is solved for as a change of `book_KMN`, (P^T H P) dc = P^T H (w - P c): unused entries stay.
    """
    residual_KIN = (weight_KIN - book_KMN.gather(1, codes_KIN)).double()
    inputs, entries = weight_KIN.shape[1], book_KMN.shape[1]
    best_KMN = book_KMN.double()
    width = max(1, ONE_HOT // (inputs * entries))
    for k, hessian_II in enumerate(hessians_KII.double()):
        for start in range(0, weight_KIN.shape[2], width):
            part = slice(start, start + width)
            used_INM = nn.functional.one_hot(codes_KIN[k, :, part], entries).double()
            through_INM = (hessian_II @ used_INM.flatten(1)).view_as(used_INM)
            normal_NMM = torch.einsum("inm,inp->nmp", used_INM, through_INM)
            right_NM = torch.einsum("inm,in->nm", through_INM, residual_KIN[k, :, part])
            diagonal_NM = normal_NMM.diagonal(dim1=1, dim2=2)
            diagonal_NM.add_(torch.where(diagonal_NM > 0, RIDGE * diagonal_NM, 1.0))
            change_NM1 = torch.cholesky_solve(right_NM.unsqueeze(-1), torch.linalg.cholesky(normal_NMM))
            best_KMN[k, :, part] += change_NM1.squeeze(-1).T
    return best_KMN.float()


def coordinate_descent(
    weight_KIN: Tensor,
    hessians_KII: Tensor,
    codes_KIN: Tensor,
    book_KMN: Tensor,
    cycles: int = CYCLES,
    block: int = BLOCK,
) -> Tensor:
    """Codes (K, I, N) after some cycles over the inputs, each set to the best entry while the others stay; step 2.

    All channels at once. The gradient H d is made anew for a block of inputs and corrected inside it as they change.
    """
    rounded_KIN, codes_KIN = book_KMN.gather(1, codes_KIN), codes_KIN.clone()
    edges_KNE = (book_KMN[:, 1:] + book_KMN[:, :-1]).div(2).transpose(1, 2).contiguous()
    inverse_KI1 = hessians_KII.diagonal(dim1=1, dim2=2).reciprocal().unsqueeze(-1)
    for _ in range(cycles):
        before_KIN = codes_KIN.clone()
        for start in range(0, weight_KIN.shape[1], block):
            rows_KBI = hessians_KII[:, start : start + block]
            within_KBB = rows_KBI[:, :, start : start + block]
            gradient_KBN = rows_KBI @ (rounded_KIN - weight_KIN)
            for b in range(rows_KBI.shape[1]):
                i = start + b
                target_KN = rounded_KIN[:, i] - gradient_KBN[:, b] * inverse_KI1[:, i]
                code_K1N = torch.searchsorted(edges_KNE, target_KN.unsqueeze(-1)).transpose(1, 2)
                new_KN = book_KMN.gather(1, code_K1N).squeeze(1)
                change_K1N = (new_KN - rounded_KIN[:, i]).unsqueeze(1)
                gradient_KBN[:, b + 1 :].addcmul_(within_KBB[:, b + 1 :, b : b + 1], change_K1N)
                rounded_KIN[:, i] = new_KN
                codes_KIN[:, i] = code_K1N.squeeze(1)
        if torch.equal(codes_KIN, before_KIN):
            break
    return codes_KIN
