"""How each paper reads the pool's low-precision runs: as rows of its law of the loss, unquantized runs among them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from replications.capybara_fp.law import LAW as SUN
from replications.compression_laws.law import GROUPED, effective_parameters
from replications.kumar_precision.law import EQ3_BIAS_TIED, EQ4_BIAS
from replications.qat_scaling.law import LOSS as CHEN
from shared.formats.names import format_named
from shared.laws.law import Law
from shared.sweep.spec import COMPRESSION, DEFAULTS

WIDE = 16.0  # bits of what is not quantized: BF16, as in Kumar's fits
BASE = "base"  # the group of unquantized, dense runs
Inputs = Mapping[str, float | str]


@dataclass(frozen=True)
class View:
    """A paper's reading: `read` gives a run's inputs of the law beside N and D, from its fields of RunSpec that are
    not at their default, or None for a run that is not the paper's. `law` is made for the groups of a table. `vary`
    names the inputs that only compressed runs tell about: of each they must have two values."""

    paper: str
    name: str
    law: Callable[[tuple[str, ...]], Law]
    base: Inputs
    read: Callable[[Mapping[str, Any], "Widths"], Inputs | None]
    vary: tuple[str, ...] = ()


@dataclass(frozen=True)
class Widths:
    """A model's inputs: four matrices of attention and two of SwiGLU read d_model values, one reads d_ff."""

    d_model: int
    d_ff: int

    @property
    def inputs(self) -> float:
        """Geometric mean of the inputs of a matrix, weighted by weights: what shares a scale per channel or token."""
        narrow, wide = 4 * self.d_model**2 + 2 * self.d_model * self.d_ff, self.d_model * self.d_ff
        return float(np.exp((narrow * np.log(self.d_model) + wide * np.log(self.d_ff)) / (narrow + wide)))


def compression_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The compression fields of a RunSpec or of a row of runs.csv that are not at their default."""
    found = {}
    for name in COMPRESSION:
        value, default = fields[name], DEFAULTS[name]
        if isinstance(value, str) and not isinstance(default, str):
            value = value == "True" if isinstance(default, bool) else type(default)(float(value or 0))
        if value is None or (isinstance(value, float) and np.isnan(value)):
            value = default
        if value != default:
            found[name] = value
    return found


def _split(text: str) -> tuple[str, str]:
    """INT4@channel:... -> (INT4, channel)."""
    name, _, rest = text.partition("@")
    return name, rest.partition(":")[0]


def _elements(group: str, widths: Widths) -> float:
    return float(group) if group.isdigit() else widths.inputs


def _integer(text: str, groups: tuple[str, ...]) -> float | None:
    name, group = _split(text)
    bits = name.removeprefix("INT")
    return float(bits) if name.startswith("INT") and bits.isdigit() and group in groups else None


def _kumar(fields: Mapping[str, Any], widths: Widths) -> Inputs | None:
    """Weights per channel, activations per tensor, keys and values per token (his section 2)."""
    places = {
        "weights": ("P_w", ("channel",)), "activations": ("P_a", ("tensor",)), "keys_values": ("P_kv", ("token",)),
    }  # fmt: skip
    if not set(fields) <= set(places):
        return None
    found: dict[str, float | str] = {column: WIDE for column, _ in places.values()}
    for name, text in fields.items():
        column, groups = places[name]
        bits = _integer(text, groups)
        if bits is None:
            return None
        found[column] = bits
    return found


def _kumar_weights(fields: Mapping[str, Any], widths: Widths) -> Inputs | None:
    """Weights alone, per channel."""
    read = _kumar(fields, widths)
    return {"bits": read["P_w"]} if read and set(fields) == {"weights"} else None


def _chen(which: tuple[str, ...], bits: int) -> Callable[[Mapping[str, Any], Widths], Inputs | None]:
    """Integers of `bits` on `which` of weights and activations, all with one group, per channel and token at most."""

    def read(fields: Mapping[str, Any], widths: Widths) -> Inputs | None:
        if set(fields) != set(which):
            return None
        parts = [_split(fields[name]) for name in which]
        groups = {_elements(group, widths) for _, group in parts}
        fine = all(form == f"INT{bits}" and (g.isdigit() or g in ("channel", "token")) for form, g in parts)
        return {"G": groups.pop()} if fine and len(groups) == 1 else None

    return read


def _sun(fields: Mapping[str, Any], widths: Widths) -> Inputs | None:
    """One minifloat on P2, P4 and P6: weights forward and backward, activations backward (his section 3)."""
    if set(fields) != {"weights", "weights_backward", "activations_backward"}:
        return None
    parts = [_split(text) for text in fields.values()]
    sizes = {_elements(group, widths) for _, group in parts}
    if len({form for form, _ in parts}) != 1 or len(sizes) != 1:
        return None
    form = format_named(parts[0][0])
    if form.kind != "float":
        return None
    return {"E": float(form.exponent), "M": float(form.mantissa), "B": sizes.pop()}


def _frantar(fields: Mapping[str, Any], widths: Widths) -> Inputs | None:
    """A name for each way to compress that he studies: weights, weights and activations, sparsity, and both."""
    rest = dict(fields)
    sparsity, pattern = rest.pop("sparsity", 0.0), rest.pop("sparsity_pattern", "unstructured")
    for name in ("sparsity_begin", "sparsity_end"):
        rest.pop(name, None)
    label = ""
    if sparsity:
        label = pattern if pattern != "unstructured" else f"sparse{sparsity:g}"
    if not set(rest) <= {"weights", "activations"} or ("activations" in rest and "weights" not in rest):
        return None
    forms = {name: _split(text) for name, text in rest.items()}
    if any(group not in ("channel", "token") for _, group in forms.values()):
        return None
    names = [form.replace("INT", "").replace("BINARY", "1").replace("TERNARY", "1.58") for form, _ in forms.values()]
    if len(set(names)) > 1 or any(not name.replace(".", "").isdigit() for name in names):
        return None
    label += ("+" if label and names else "") + "".join(f"{n[0].upper()}{names[0]}" for n in forms)
    return {GROUPED: label} if label else None


UNQUANTIZED = {GROUPED: BASE}
VIEWS = (
    View("kumar_precision", "Eq. 3", lambda _: EQ3_BIAS_TIED, {"bits": WIDE}, _kumar_weights, ("bits",)),
    View(
        "kumar_precision",
        "Eq. 4",
        lambda _: EQ4_BIAS,
        dict.fromkeys(("P_w", "P_a", "P_kv"), WIDE),
        _kumar,
        ("P_w", "P_a", "P_kv"),
    ),
    *(
        View("qat_scaling", name, lambda _: CHEN, dict(CHEN.unquantized), _chen(which, bits), ("N", "D", "G"))
        # The paper's settings are those of 4 bits; in fewer the same law has more to tell from at our scale.
        for name, bits, which in (
            ("W4A4", 4, ("weights", "activations")),
            ("W4A16", 4, ("weights",)),
            ("W16A4", 4, ("activations",)),
            ("W3A3", 3, ("weights", "activations")),
            ("W3A16", 3, ("weights",)),
            ("W2A16", 2, ("weights",)),
        )
    ),
    View("capybara_fp", "P2, P4, P6", lambda _: SUN, {"E": 8.0, "M": 7.0, "B": 1.0}, _sun, ("E", "M", "B")),
    View("compression_laws", "multipliers", effective_parameters, UNQUANTIZED, _frantar),
)


def rows_of(view: View, runs: pd.DataFrame) -> tuple[Law, pd.DataFrame] | None:
    """The view's rows of a table with columns n_blocks, tokens, d_model, d_ff and the fields of compression: its law
    for these rows, and the table with the law's inputs added. None when none of the runs is compressed its way."""
    rows, inputs = [], []
    for index, row in runs.iterrows():
        fields = compression_of(row.to_dict())
        read = view.read(fields, Widths(int(row["d_model"]), int(row["d_ff"]))) if fields else view.base
        if read is not None:
            rows.append(index)
            inputs.append(dict(read))
    if all(read == dict(view.base) for read in inputs):
        return None
    table = runs.loc[rows].reset_index(drop=True)
    added = pd.DataFrame(inputs)
    groups: tuple[str, ...] = ()
    if GROUPED in added:
        groups = (BASE, *sorted(set(added[GROUPED]) - {BASE}))
        added[GROUPED] = added[GROUPED].map({name: float(k) for k, name in enumerate(groups)})
    table = table.assign(N=table["n_blocks"].astype(float), D=table["tokens"].astype(float))
    return view.law(groups), pd.concat([table, added], axis=1)
