"""GuidedQuant's Hessians against per-sample gradients; guided GPTQ against GPTQ; LNQ's steps against brute force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from shared.errors import BitlawError
from shared.quantize import fake_quantize
from shared.quantize.calibration import output_error
from shared.quantize.gptq import gptq
from shared.quantize.guided import GuidedCalibration, guided_error, guided_gathering, guided_gptq, watched
from shared.quantize.lnq import (
    channel_errors,
    closest,
    coordinate_descent,
    least_squares,
    lnq,
    ordered,
    weighted_kmeans,
)
from shared.quantize.quantizer import named_quantizer
from shared.quantize.rtn import round_to_nearest


class Net(nn.Module):
    """Two layers whose rows do not meet: then a token's gradient is a sample's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8).double(), nn.Linear(8, 4).double()

    def forward(self, x_RI: Tensor) -> Tensor:
        z: Tensor = self.second(torch.tanh(self.first(x_RI)))
        return z


def batch(rows: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_RI = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return x_RI, torch.randint(0, 4, (rows,), generator=generator)


def gathered_hessians(model: Net, groups: int) -> dict[str, GuidedCalibration]:
    x_RI, targets_R = batch()
    layers = {"first": model.first, "second": model.second}
    with guided_gathering(layers, {"first": (6, 8), "second": (8, 4)}, groups) as found:
        for part in (slice(0, 15), slice(15, 40)):  # the sum over tokens does not care about batches
            F.cross_entropy(model(x_RI[part]), targets_R[part], reduction="sum").backward()
    return found


def problem(
    outputs: int, inputs: int, groups: int, seed: int, rows: int = 400, heavy: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Normal weights, correlated inputs, and gradients of which some tokens and groups have far larger ones."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(outputs, inputs, generator=generator) * 0.02
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x_RI = torch.randn(rows, inputs, generator=generator) @ mixing_II
    x_RI *= torch.exp(heavy * torch.randn(inputs, generator=generator))
    grad_RO = torch.randn(rows, outputs, generator=generator) * torch.randn(rows, 1, generator=generator).exp()
    calibration = GuidedCalibration(inputs, outputs, groups)
    calibration.add(x_RI, grad_RO * torch.exp(torch.randn(outputs, generator=generator)))
    return weight_OI, calibration.hessians_gII


# --- the Hessians -------------------------------------------------------------------------------------------------


def test_hessians_are_the_fisher_blocks_of_each_channel() -> None:
    """Remark 3.1, sample by sample in float64: with a group for each channel n H_j is the sum of (dl/dw_j)(dl/dw_j)^T.

    The sum of d H d^T over layers is |dl/dZ * (X W - X W')|^2.
    """
    model = Net()
    x_RI, targets_R = batch()
    weights = [model.first.weight, model.second.weight]
    fishers = [torch.zeros(len(w), w.shape[1], w.shape[1], dtype=torch.float64) for w in weights]
    for x_I, target in zip(x_RI, targets_R, strict=True):
        loss = F.cross_entropy(model(x_I.unsqueeze(0)), target.unsqueeze(0))
        for fisher, grad_OI in zip(fishers, torch.autograd.grad(loss, weights), strict=True):
            fisher += torch.einsum("oi,oj->oij", grad_OI, grad_OI) / len(x_RI)
    calibrations = [GuidedCalibration(6, 8, 8), GuidedCalibration(8, 4, 4)]
    hidden = model.first(x_RI)
    inner = torch.tanh(hidden)
    outer = model.second(inner)
    gradients = torch.autograd.grad(F.cross_entropy(outer, targets_R, reduction="sum"), [hidden, outer])
    objective = fisher_form = ours = 0.0
    for w, x, g, c, fisher in zip(weights, (x_RI, inner), gradients, calibrations, fishers, strict=True):
        c.add(x, g)
        torch.testing.assert_close(c.hessians_gII, fisher.float(), rtol=1e-5, atol=1e-8)
        rounded = w.detach() + 0.1 * torch.randn(w.shape, dtype=torch.float64)
        objective += (g * (x @ (rounded - w).T)).square().sum().item()
        d_OI = rounded - w.detach()
        fisher_form += len(x_RI) * torch.einsum("oi,oij,oj->", d_OI, fisher, d_OI).item()
        ours += len(x_RI) * guided_error(w.detach(), rounded, c.hessians_gII)
    assert fisher_form == pytest.approx(objective, rel=1e-12)
    assert ours == pytest.approx(objective, rel=1e-5)


def test_groups_share_the_mean_of_their_channels() -> None:
    """Consecutive channels; one group is the mean of all; hooks and `add` agree."""
    each = gathered_hessians(Net(), 4)["first"].hessians_gII  # 4 groups of 2 of the 8 channels
    two = gathered_hessians(Net(), 2)["first"].hessians_gII
    one = gathered_hessians(Net(), 1)["first"]
    torch.testing.assert_close(two, each.view(2, 2, 6, 6).mean(1))
    torch.testing.assert_close(one.hessians_gII[0], each.mean(0))
    assert one.rows == 40
    model, (x_RI, targets_R) = Net(), batch()
    z = model.first(x_RI)
    (grad_RO,) = torch.autograd.grad(F.cross_entropy(model.second(torch.tanh(z)), targets_R, reduction="sum"), [z])
    squares_Rg = grad_RO.square().view(40, 4, 2).mean(-1)
    expected = torch.stack([x_RI.T @ torch.diag(s) @ x_RI / 40 for s in squares_Rg.T])
    torch.testing.assert_close(each, expected.float(), rtol=1e-5, atol=1e-9)
    assert each.dtype == torch.float32
    saved = GuidedCalibration(6, 8, 4)
    saved.add_saliency(x_RI, squares_Rg)
    torch.testing.assert_close(saved.hessians_gII, each)


def test_equal_gradients_leave_the_plain_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 5, generator=generator)
    calibration = GuidedCalibration(5, 6, 3)
    calibration.add(x, 2 * torch.ones(3, 7, 6))
    plain_II = x.reshape(-1, 5).T @ x.reshape(-1, 5) / 21
    torch.testing.assert_close(calibration.hessians_gII, (4 * plain_II).expand(3, 5, 5))


def test_frozen_weights_and_products_side_by_side() -> None:
    """Without a weight that needs a gradient the Hessians are the same; a fused product feeds each matrix its part."""
    trained, frozen = Net(), Net()
    frozen.requires_grad_(False)
    theirs, ours = gathered_hessians(trained, 2), gathered_hessians(frozen, 2)
    for name in ("first", "second"):
        torch.testing.assert_close(ours[name].hessians_gII, theirs[name].hessians_gII)
    assert all(p.grad is None for p in frozen.parameters())
    assert not frozen(batch()[0]).requires_grad  # the hooks are gone

    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 9, 5, generator=generator)
    weights = [torch.randn(o, 5, generator=generator) for o in (4, 6)]
    fused, split = ([GuidedCalibration(5, 4, 2), GuidedCalibration(5, 6, 2)] for _ in range(2))
    watched(x, F.linear(x, torch.cat(weights)), *fused).sin().sum().backward()
    for weight, calibration in zip(weights, split, strict=True):
        watched(x, F.linear(x, weight), calibration).sin().sum().backward()
    for one, other in zip(fused, split, strict=True):
        torch.testing.assert_close(one.hessians_gII, other.hessians_gII)


def test_what_guided_calibration_refuses() -> None:
    with pytest.raises(BitlawError, match="3 guided groups do not divide 8 output channels"):
        GuidedCalibration(6, 8, 3)
    calibration = GuidedCalibration(6, 8, 2)
    with pytest.raises(BitlawError, match="no gradient reached a layer"):
        _ = calibration.hessians_gII
    with pytest.raises(BitlawError, match=r"got inputs \(5, 7\) and gradients \(5, 8\): the layer has 6 inputs"):
        calibration.add(torch.ones(5, 7), torch.ones(5, 8))
    with pytest.raises(BitlawError, match=r"inputs \(5, 6\) and gradients \(4, 8\)"):
        calibration.add(torch.ones(5, 6), torch.ones(4, 8))
    with pytest.raises(BitlawError, match="got 5 inputs and gradients of 4 tokens"):
        calibration.add_saliency(torch.ones(5, 6), torch.ones(4, 2))
    with pytest.raises(BitlawError, match="NaN or infinite"):
        calibration.add(torch.ones(5, 6), torch.full((5, 8), torch.inf))
    x = torch.ones(5, 6)
    with torch.no_grad(), pytest.raises(BitlawError, match=r"outside of torch.no_grad"):
        watched(x, x @ torch.ones(6, 8), calibration)
    with pytest.raises(BitlawError, match="a product has 6 outputs, its guided calibrations have 8"):
        watched(x, x, calibration)
    z = watched(x, x @ torch.ones(6, 8), calibration)
    x.zero_()
    with pytest.raises(BitlawError, match="overwritten in place"):
        z.sum().backward()
    assert calibration.rows == 0


# --- guided GPTQ --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["INT4@channel", "INT3@16", "UINT4@32", "NVFP4", "INT4@tensor"])
@pytest.mark.parametrize("act_order", [False, True])
def test_one_group_is_gptq(text: str, act_order: bool) -> None:
    weight_OI, hessians_gII = problem(24, 64, 1, 0)
    q = named_quantizer(text)
    ours = guided_gptq(weight_OI, hessians_gII, q, act_order=act_order)
    theirs = gptq(weight_OI, hessians_gII[0], q, act_order=act_order)
    assert torch.equal(ours.weight, theirs.weight)
    assert (ours.bits_per_weight, ours.squared_error) == (theirs.bits_per_weight, theirs.squared_error)


def test_guidance_lowers_the_guided_error() -> None:
    """Each channel by its own group's Hessian; what is counted once for a tensor counts once for a group here."""
    q = named_quantizer("INT3@32")
    errors = {"guided": 0.0, "plain": 0.0, "rtn": 0.0}
    for seed in range(3):
        weight_OI, hessians_gII = problem(32, 64, 4, seed)
        guided = guided_gptq(weight_OI, hessians_gII, q)
        errors["guided"] += guided_error(weight_OI, guided.weight, hessians_gII)
        plain = gptq(weight_OI, hessians_gII.mean(0), q)
        errors["plain"] += guided_error(weight_OI, plain.weight, hessians_gII)
        errors["rtn"] += guided_error(weight_OI, fake_quantize(weight_OI, q), hessians_gII)
        third = gptq(weight_OI[16:24], hessians_gII[2], q)
        assert torch.equal(guided.weight[16:24], third.weight)
        assert guided.squared_norm == pytest.approx(plain.squared_norm)
    assert errors["guided"] < errors["plain"] < errors["rtn"]
    four = guided_gptq(weight_OI, hessians_gII, named_quantizer("NVFP4"))
    assert four.bits_per_weight == pytest.approx(4 + 8 / 16 + 32 / (64 * 8))


def test_the_error_of_equal_hessians_is_the_output_error() -> None:
    weight_OI, hessians_gII = problem(12, 16, 1, 3)
    rounded_OI = fake_quantize(weight_OI, named_quantizer("INT4@channel"))
    plain = output_error(weight_OI, rounded_OI, hessians_gII[0])
    assert guided_error(weight_OI, rounded_OI, hessians_gII.expand(3, 16, 16)) == pytest.approx(plain)


# --- LNQ ----------------------------------------------------------------------------------------------------------


def transposed(weight_OI: Tensor, groups: int) -> Tensor:
    return torch.stack([part.T for part in weight_OI.chunk(groups)])


def random_codes(weight_KIN: Tensor, entries: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending code books drawn from the weights' distribution, and any codes."""
    generator = torch.Generator().manual_seed(seed)
    groups, _, channels = weight_KIN.shape
    book_KMN = (0.02 * torch.randn(groups, entries, channels, generator=generator)).sort(dim=1).values
    return book_KMN, torch.randint(0, entries, weight_KIN.shape, generator=generator)


@pytest.mark.parametrize(("entries", "groups"), [(4, 1), (8, 2), (16, 4)])
def test_code_books_are_the_least_squares_optimum(entries: int, groups: int) -> None:
    """By lstsq of L^T P c = L^T w, H = L L^T, in float64; an unused entry stays where it is."""
    weight_OI, hessians_gII = problem(8, 48, groups, 4)
    weight_KIN = transposed(weight_OI, groups)
    book_KMN, codes_KIN = random_codes(weight_KIN, entries, 0)
    codes_KIN[codes_KIN == 1] = 2
    best_KMN = least_squares(weight_KIN, hessians_gII, codes_KIN, book_KMN)
    assert torch.equal(best_KMN[:, 1], book_KMN[:, 1])
    for k, hessian_II in enumerate(hessians_gII.double()):
        root_II = torch.linalg.cholesky(hessian_II).T
        for n in range(weight_KIN.shape[2]):
            used = codes_KIN[k, :, n].unique().tolist()
            assert 1 < len(used) < entries
            one_hot_IM = F.one_hot(codes_KIN[k, :, n], entries).double()[:, used]
            solved = torch.linalg.lstsq(root_II @ one_hot_IM, root_II @ weight_KIN[k, :, n : n + 1].double()).solution
            torch.testing.assert_close(best_KMN[k, used, n].double(), solved.squeeze(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block", [1, 3, 16, 128])
def test_coordinate_descent_ends_where_no_single_code_helps(block: int) -> None:
    """And the block changes the work, not the result."""
    weight_OI, hessians_gII = problem(8, 20, 2, 5)
    weight_KIN = transposed(weight_OI, 2)
    book_KMN, codes_KIN = random_codes(weight_KIN, 4, 1)
    start_KN = channel_errors(weight_KIN, book_KMN.gather(1, codes_KIN), hessians_gII)
    found_KIN = coordinate_descent(weight_KIN, hessians_gII, codes_KIN, book_KMN, cycles=100, block=block)
    least_KN = channel_errors(weight_KIN, book_KMN.gather(1, found_KIN), hessians_gII)
    assert (least_KN < start_KN).all()
    for i, m in itertools.product(range(20), range(4)):
        other_KIN = found_KIN.clone()
        other_KIN[:, i] = m
        changed_KN = channel_errors(weight_KIN, book_KMN.gather(1, other_KIN), hessians_gII)
        assert (changed_KN >= least_KN * (1 - 1e-5)).all()
    plain_KIN = coordinate_descent(weight_KIN, hessians_gII, codes_KIN, book_KMN, cycles=100, block=20)
    assert torch.equal(found_KIN, plain_KIN)


def test_coordinate_descent_lies_between_rounding_and_brute_force() -> None:
    """All 3^6 codes of each channel. From the codes of rounding to a k-means code book."""
    weight_OI, hessians_gII = problem(64, 6, 1, 6)
    weight_KIN = transposed(weight_OI, 1)
    book_KMN, rounded_KIN = weighted_kmeans(weight_KIN, torch.ones(1, 6, 1), 3)
    found_KIN = coordinate_descent(weight_KIN, hessians_gII, rounded_KIN, book_KMN, cycles=20)
    nearest_N = channel_errors(weight_KIN, book_KMN.gather(1, rounded_KIN), hessians_gII)[0]
    found_N = channel_errors(weight_KIN, book_KMN.gather(1, found_KIN), hessians_gII)[0]
    best_N = torch.full_like(found_N, torch.inf)
    for choice in itertools.product(range(3), repeat=6):
        codes_KIN = torch.tensor(choice).view(1, 6, 1).expand_as(rounded_KIN)
        error_KN = channel_errors(weight_KIN, book_KMN.gather(1, codes_KIN), hessians_gII)
        best_N = torch.minimum(best_N, error_KN[0])
    assert (found_N <= nearest_N * (1 + 1e-6)).all()
    assert (found_N >= best_N * (1 - 1e-6)).all()
    assert best_N.sum() < found_N.sum() < 0.97 * nearest_N.sum()


def test_coordinate_descent_is_its_formula() -> None:
    """Round_j(w_i - H_i,-i (w'_-i - w_-i) / H_ii), one channel and input after the other, in float64."""
    weight_OI, hessians_gII = problem(6, 12, 2, 11)
    weight_KIN = transposed(weight_OI, 2)
    book_KMN, codes_KIN = random_codes(weight_KIN, 4, 4)
    found_KIN = coordinate_descent(weight_KIN, hessians_gII, codes_KIN, book_KMN, cycles=2, block=5)
    for k, n in itertools.product(range(2), range(3)):
        h_II, w_I, book_M = hessians_gII[k].double(), weight_KIN[k, :, n].double(), book_KMN[k, :, n].double()
        codes_I = codes_KIN[k, :, n].clone()
        for i in [*range(12), *range(12)]:
            others = [j for j in range(12) if j != i]
            pull = h_II[i, others] @ (book_M[codes_I[others]] - w_I[others]) / h_II[i, i]
            codes_I[i] = (book_M - (w_I[i] - pull)).abs().argmin()
        assert torch.equal(found_KIN[k, :, n], codes_I)
    assert not torch.equal(found_KIN, closest(book_KMN, weight_KIN))


def test_closest_entries() -> None:
    weight_KIN = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(3))
    book_KMN, _ = random_codes(weight_KIN, 5, 3)
    by_hand = (weight_KIN.unsqueeze(1) - 50 * book_KMN.unsqueeze(2)).abs().argmin(1)
    assert torch.equal(closest(50 * book_KMN, weight_KIN), by_hand)
    shuffled = book_KMN[:, [2, 0, 1, 4, 3]]  # not its own inverse
    straight, codes = ordered(shuffled, by_hand)
    assert torch.equal(straight, book_KMN)
    assert torch.equal(straight.gather(1, codes), shuffled.gather(1, by_hand))


def test_weighted_kmeans_against_all_partitions() -> None:
    """Optimal clusters of sorted numbers are contiguous: 3 clusters of 10. Lloyd is near them, and never loses to
    the even grid; each entry is the weighted mean of its weights."""
    generator = torch.Generator().manual_seed(4)
    weight_KIN = torch.randn(1, 10, 40, generator=generator)
    importance_KI1 = torch.exp(torch.randn(1, 10, 1, generator=generator))
    book_KMN, codes_KIN = weighted_kmeans(weight_KIN, importance_KI1, 3)

    def errors(rounded_KIN: Tensor) -> Tensor:
        return ((rounded_KIN - weight_KIN).square() * importance_KI1).sum((0, 1))

    ours_N = errors(book_KMN.gather(1, codes_KIN))
    low, high = weight_KIN.amin(1, keepdim=True), weight_KIN.amax(1, keepdim=True)
    grid_KMN = torch.cat([low, (low + high) / 2, high], dim=1)
    assert (ours_N <= errors(grid_KMN.gather(1, closest(grid_KMN, weight_KIN))) * (1 + 1e-5)).all()
    best_N = torch.full((40,), torch.inf)
    for n in range(40):
        order_I = weight_KIN[0, :, n].argsort()
        w_I, h_I = weight_KIN[0, order_I, n], importance_KI1[0, order_I, 0]
        for cut, other in itertools.combinations(range(1, 10), 2):
            clusters = (slice(0, cut), slice(cut, other), slice(other, 10))
            means = [(w_I[c] * h_I[c]).sum() / h_I[c].sum() for c in clusters]
            error = sum(((w_I[c] - m).square() * h_I[c]).sum() for c, m in zip(clusters, means, strict=True))
            best_N[n] = torch.minimum(best_N[n], torch.as_tensor(error))
    assert (ours_N >= best_N * (1 - 1e-4)).all()
    assert ours_N.sum() < 1.3 * best_N.sum()
    for m in range(3):
        mine = codes_KIN == m
        mean_N = (mine * importance_KI1 * weight_KIN).sum((0, 1)) / (mine * importance_KI1).sum((0, 1))
        torch.testing.assert_close(book_KMN[0, m], mean_N, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(1, 5),
    groups=st.sampled_from([1, 2, 4]),
    inputs=st.integers(1, 24),
    rows=st.sampled_from([3, 10, 200]),
    entries=st.sampled_from(["FP16", "FP32"]),
    heavy=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_the_objective_never_rises(
    seed: int, bits: int, groups: int, inputs: int, rows: int, entries: str, heavy: float
) -> None:
    """Proposition 4.1, also with fewer rows than inputs (damped) and inputs whose scales differ by thousands."""
    weight_OI, hessians_gII = problem(8, inputs, groups, seed, rows, heavy)
    made = lnq(weight_OI, hessians_gII, bits, iterations=3, cycles=2, entries=entries, block=7)  # type: ignore[arg-type]
    assert len(made.objectives) == 7
    assert all(after <= before for before, after in itertools.pairwise(made.objectives))
    assert len(made.proposed) == 6
    assert all(kept <= out * (1 + 1e-12) for kept, out in zip(made.objectives[1:], made.proposed, strict=True))
    assert torch.equal(made.weight, made.codebook_OM.gather(1, made.codes_OI.long()))
    assert (made.codebook_OM.diff(dim=1) >= 0).all()
    if entries == "FP16":
        assert torch.equal(made.codebook_OM, made.codebook_OM.half().float())
    if not made.damping:
        assert guided_error(weight_OI, made.weight, hessians_gII) == pytest.approx(
            made.objectives[-1], rel=1e-4, abs=1e-12
        )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), entries=st.integers(2, 9))
def test_each_step_alone_raises_nothing(seed: int, entries: int) -> None:
    """Without the comparison that `lnq` makes after a step: from any codes and books, up to FP32's rounding."""
    weight_OI, hessians_gII = problem(6, 16, 2, seed)
    weight_KIN = transposed(weight_OI, 2)
    book_KMN, codes_KIN = random_codes(weight_KIN, entries, seed)
    start_KN = channel_errors(weight_KIN, book_KMN.gather(1, codes_KIN), hessians_gII)
    fitted_KMN = least_squares(weight_KIN, hessians_gII, codes_KIN, book_KMN)
    fitted_KN = channel_errors(weight_KIN, fitted_KMN.gather(1, codes_KIN), hessians_gII)
    assert (fitted_KN <= start_KN * (1 + 1e-5) + 1e-12).all()
    moved_KIN = coordinate_descent(weight_KIN, hessians_gII, codes_KIN, book_KMN, cycles=1)
    moved_KN = channel_errors(weight_KIN, book_KMN.gather(1, moved_KIN), hessians_gII)
    assert (moved_KN <= start_KN * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lnq_beats_rounding_and_its_start(bits: int) -> None:
    """At equal bits a code, on symmetric and asymmetric grids (a code book costs more than their scales)."""
    for seed in range(2):
        weight_OI, hessians_gII = problem(32, 64, 4, seed)
        made = lnq(weight_OI, hessians_gII, bits)
        start = lnq(weight_OI, hessians_gII, bits, iterations=0)
        assert start.objectives == made.objectives[:1]
        assert made.objectives[-1] < 0.8 * start.objectives[0]
        for text in (f"INT{bits}@channel", f"UINT{bits}@channel", f"INT{bits}@channel:mse"):
            rounded = round_to_nearest(weight_OI, named_quantizer(text))
            assert made.objectives[-1] < 0.5 * guided_error(weight_OI, rounded.weight, hessians_gII)
        assert made.bits_per_weight == bits + 2**bits * 16 / 64
        assert lnq(weight_OI, hessians_gII, bits, entries="FP32").bits_per_weight == bits + 2**bits * 32 / 64
        assert made.codes_OI.dtype == torch.uint8
        assert made.codes_OI.max() == 2**bits - 1
        assert made.squared_error == pytest.approx((made.weight - weight_OI).square().sum().item(), rel=1e-4)


def test_a_group_is_quantized_alone() -> None:
    weight_OI, hessians_gII = problem(12, 32, 3, 7)
    whole = lnq(weight_OI, hessians_gII, 2)
    part = lnq(weight_OI[4:8], hessians_gII[1:2], 2)
    torch.testing.assert_close(whole.weight[4:8], part.weight)
    again = lnq(weight_OI, 1e6 * hessians_gII, 2)  # the scale of the loss means nothing
    torch.testing.assert_close(again.weight, whole.weight)


def test_as_many_values_as_inputs_lose_nothing() -> None:
    weight_OI, hessians_gII = problem(4, 8, 2, 8)
    made = lnq(weight_OI, hessians_gII, 3, entries="FP32")
    torch.testing.assert_close(made.weight, weight_OI, rtol=1e-3, atol=1e-5)


def test_singular_hessians_are_damped() -> None:
    weight_OI, hessians_gII = problem(8, 32, 2, 9, rows=5)
    made = lnq(weight_OI, hessians_gII, 2)
    assert 0 < made.damping <= 1e-3
    rounded_OI = fake_quantize(weight_OI, named_quantizer("UINT2@channel"))
    assert guided_error(weight_OI, made.weight, hessians_gII) < guided_error(weight_OI, rounded_OI, hessians_gII)
    assert lnq(*problem(8, 32, 2, 9), 2).damping == 0.0
    indefinite = torch.eye(32).expand(2, 32, 32).clone()
    indefinite[1, 0, 1] = indefinite[1, 1, 0] = 5.0
    with pytest.raises(BitlawError, match="singular even with damping 1: give more calibration text"):
        lnq(weight_OI, indefinite, 2)


def test_what_lnq_refuses() -> None:
    weight_OI, hessians_gII = problem(8, 16, 2, 10)
    broken_OI = weight_OI.clone()
    broken_OI[0, 0] = torch.nan
    dead_gII = hessians_gII.clone()
    dead_gII[1] = 0.0
    q = named_quantizer("INT4@16")
    for refused, sentence in (
        ((broken_OI, hessians_gII), "the weight has NaN"),
        ((weight_OI, hessians_gII * torch.inf), "a guided Hessian has NaN or infinite"),
        ((weight_OI, hessians_gII[:, :8, :8]), r"of shape \(2, 8, 8\) do not fit a matrix of 8 outputs and 16 inputs"),
        ((weight_OI, hessians_gII[0]), "do not fit"),
        ((weight_OI[:7], hessians_gII), "a g that divides 7"),
        ((weight_OI, dead_gII), "no gradient reached output channels 4 to 7"),
    ):
        with pytest.raises(BitlawError, match=sentence):
            lnq(*refused, 4)
        with pytest.raises(BitlawError, match=sentence):
            guided_gptq(*refused, q)
    with pytest.raises(BitlawError, match="9 bits are not possible"):
        lnq(weight_OI, hessians_gII, 9)
    with pytest.raises(BitlawError, match=r"'FP8' are unknown.*use FP16 or FP32"):
        lnq(weight_OI, hessians_gII, 4, entries="FP8")  # type: ignore[arg-type]
    with pytest.raises(BitlawError, match="cycles and block 1 or more"):
        lnq(weight_OI, hessians_gII, 4, cycles=0)
    with pytest.raises(BitlawError, match="above 65,504"):
        lnq(weight_OI * 1e7, hessians_gII, 4)
