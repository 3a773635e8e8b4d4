"""Laws fitted to runs, with their bootstrap draws, as views: ours, and files of `bitlaw fit --out`.

Ours are those that the stages kept (reports/PAPER/fits.json, reports/unified/fit.json). A law of delta needs the
unquantized loss under it: a fit of Chinchilla's law to the same runs (base.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replications.laws import saved
from replications.papers import PAPERS, kept_fits
from replications.planning import reading
from replications.planning.base import FILE
from replications.planning.setting import is_format
from replications.planning.view import Constants, View
from shared.errors import BitlawError
from shared.files import read_json
from shared.laws.law import Law
from shared.laws.result import Fit

OURS, UNIFIED = "ours", "unified"
ROUNDED = "cooled/channel"  # the part of a fit of rounding that a plan takes
COMMAND = "bitlaw replicate plan-base"
STREAMS = ("P_w", "P_a", "P_kv")
SETTING = re.compile(r"W(\d+)A(\d+)")


def fitted_views(reports: Path, files: Sequence[Path]) -> tuple[list[View], dict[str, str]]:
    """Views of our own fits and of `files`, and what has no fit, with the reason.

    Raises BitlawError for a file that is no fit, or whose law a plan cannot read.
    """
    found, without = ours(reports)
    return [*found, *_of_files(files)], without


def ours(reports: Path) -> tuple[list[View], dict[str, str]]:
    """Our own fits, and for those that a plan cannot read the reason. Raises BitlawError for a damaged file."""
    path = reports / FILE
    if not path.exists():
        return [], {OURS: f"there is no fit of our unquantized runs; `{COMMAND}` makes {path}"}
    base = read_json(path)
    try:
        clean = Fit.from_json(base["fit"])
        errors = {str(name): float(value) for name, value in base["errors"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BitlawError(f"{path}: is not what `{COMMAND}` writes ({error}); run it again") from error
    found: list[View] = []
    without: dict[str, str] = {}
    for name, fit in _kept(reports):
        kind, _, label = name.partition("/")
        view = view_of(fit, OURS, clean, label)
        if isinstance(view, str):
            without[f"{OURS}: {kind} {label}".rstrip()] = view
        else:
            found += view
    unified = reports / UNIFIED / "fit.json"
    if unified.exists():
        from replications.planning.unified import views

        try:
            found += views(saved(unified)[1], OURS, clean, _law(clean), errors)
        except BitlawError as error:
            without[f"{OURS}: {UNIFIED}"] = str(error)
    return found, without


def _kept(reports: Path) -> Iterator[tuple[str, Fit]]:
    """(paper, or paper/view of low-precision training; fit) of every fits.json that is there."""
    for paper in PAPERS:
        for name, fit in kept_fits(paper, reports).items():
            if name == ROUNDED or name.startswith(f"{paper}/"):
                yield paper if name == ROUNDED else name, fit


def _of_files(files: Sequence[Path]) -> list[View]:
    fits = {path: saved(path)[1] for path in files}
    clean = next((fit for fit in fits.values() if fit.law == "chinchilla"), None)
    found: list[View] = []
    for path, fit in fits.items():
        view = view_of(fit, str(path), clean, "")
        if isinstance(view, str):
            raise BitlawError(f"{path}: {view}")
        found += view
    return found


def view_of(fit: Fit, origin: str, clean: Fit | None, label: str) -> list[View] | str:
    """The views of a fit, or why a plan cannot read it. `label` is what a Chen fit is of, such as W3A16."""
    law = _law(fit)
    fit.check(law)
    name = f"{origin if origin == OURS else Path(origin).stem}-{label or law.name}".replace(" ", "").replace(".", "")
    status = fit.status
    notes = tuple(fit.reasons)
    main = Constants(law, fit.theta, fit.draws if len(fit.draws) else None)

    def view(name: str, title: str, how: Any, read: reading.Read, **others: Any) -> View:
        domain = {key: ends for key, ends in fit.domain.items() if key != law.grouped}
        return View(
            name, f"{title}, fitted to {'our runs' if origin == OURS else origin}", _paper(law), origin, how, main,
            read, status=status, notes=notes, domain=domain, **others,
        )  # fmt: skip

    if law.target == "delta":
        if set(law.inputs) != {"N", "D", "bits"}:
            return f"{law.name} gives a delta that needs {', '.join(law.inputs)}; plan with a law of the loss"
        if clean is None:
            return f"{law.name} is a law of delta: give a fit of chinchilla to the same runs beside it"
        base = Constants(_law(clean), clean.theta, clean.draws if len(clean.draws) else None)
        read = reading.integers(("bits",), np.inf if law.name != "page_full" else 16.0)
        return [view(name, f"{law.name}, weights rounded", "rounded", read, base=base)]
    if law.grouped:
        return _grouped(view, law, name)
    plain: Mapping[str, float] = dict(law.unquantized)
    inputs = set(law.inputs) - {"N", "D"}
    if inputs == {"bits"}:
        read = reading.integers(("bits",), 16.0)
        return [view(name, law.name, "trained", read, plain=plain, streams=reading.weights_alone)]
    if inputs == set(STREAMS):
        read, at_bits = reading.integers(STREAMS, 16.0), reading.all_in(*STREAMS)
        return [view(name, law.name, "trained", read, plain=plain, at_bits=at_bits, streams=reading.with_cache)]
    if inputs == {"G"}:
        said = SETTING.fullmatch(label)
        if said is None or int(said[1]) == 16:
            return f"{law.name} {label or ''}does not say which weights it is of: its input is the group alone"
        streams = reading.weights_alone if int(said[2]) == 16 else reading.forward_pass
        read = reading.only(f"INT{said[1]}")
        return [view(name, f"{law.name} {label}", "trained", read, plain=plain, streams=streams, sees_groups=True)]
    if inputs == {"E", "M", "B"}:
        c = law.raw(fit.theta)
        return [
            view(
                name, law.name, "trained", reading.layouts(None), plain={"E": 8.0, "M": 7.0, **plain}, sees_groups=True,
                at_bits=reading.best_layout(c["delta"], c["nu"], 128.0), streams=reading.weights_and_gradients,
            )
        ]  # fmt: skip
    if not inputs:
        return [view(name, law.name, "unquantized", reading.sixteen_alone, sees_groups=True)]
    return f"a plan cannot read {law.name}: it needs {', '.join(sorted(inputs))}"


def _grouped(view: Any, law: Law, name: str) -> list[View] | str:
    """One constant for each compression: W4 and W4A4 are of INT4, other names of formats themselves."""
    if law.name != "frantar":
        return f"a plan cannot read the pairs of {law.name}"
    codes = {group: code for code, group in enumerate(law.groups)}
    both = {f"INT{k}": f"W{k}A{k}" for k in range(1, 9)}
    weights = {f"INT{k}": f"W{k}" for k in range(1, 9)} | {group: group for group in law.groups[1:] if is_format(group)}
    found = []
    plain = {"compression": 0.0}
    for kind, of, streams in (("weights", weights, reading.weights_alone), ("all", both, reading.forward_pass)):
        if any(group in codes for group in of.values()):
            read = reading.named_groups(codes, of)
            found.append(view(f"{name}-{kind}", f"{law.name}, {kind}", "trained", read, plain=plain, streams=streams))
    return found or f"none of the groups {', '.join(law.groups[1:])} is a format such as INT4, or W4 or W4A4"


def _law(fit: Fit) -> Law:
    """The law by name. Raises BitlawError for an unknown one."""
    from replications.laws import restore

    return restore(fit.law, fit.groups)


def _paper(law: Law) -> str:
    from replications.laws import find

    return find(law.name).paper
