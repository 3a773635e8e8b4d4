"""The unified law (replications/unified) as views: a format enters by its relative error for normal values alone.

Errors of the usual formats and groups stand in fits.json: computing one needs shared/quantize, and so torch, which
takes longer to import than a plan takes to make. For others it is imported.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from replications.planning import reading
from replications.planning.cost import Streams
from replications.planning.setting import BLOCKS, CHANNEL, FORMATS, SIXTEEN, Setting
from replications.planning.view import Constants, View
from replications.unified.forms import INPUT, STREAMS, TRAINED, delta_law
from replications.unified.law import CHOSEN
from shared.errors import BitlawError
from shared.laws.law import Array, Law
from shared.laws.result import Fit

ROWS = tuple(2**k for k in range(6, 16))  # lengths of rows between which a channel's error is interpolated
GROUPS = (16, 32, 64, 128, 256)
Errors = Mapping[str, float]


def table_of_errors() -> dict[str, float]:
    """Relative errors by the text of a quantizer; of a channel as FORMAT@ROW, for each of ROWS. Needs torch."""
    found = {}
    for name in FORMATS:
        if name == SIXTEEN:
            continue
        for text in [name] if name in BLOCKS else [f"{name}@{group}" for group in sorted({*GROUPS, *ROWS})]:
            found[text] = _computed(text)
    return found


def _computed(text: str) -> float:
    from replications.unified.error import relative_error

    group = text.partition("@")[2]
    return relative_error(text, float(group or ROWS[-1]))


def law_of(fit: Fit) -> Law:
    """The law with the streams that the fit could tell."""
    streams = tuple(x for x in STREAMS if f"r_{x}" in fit.parameters)
    return delta_law(CHOSEN, "unified_pool", streams=streams, trained=True)


def views(fit: Fit, origin: str, clean: Fit, base: Law, errors: Errors) -> list[View]:
    """Rounded after training; weights trained in the format; weights and activations, where the fit could tell them.

    Raises BitlawError for a fit of another form than replications/unified/law.py registers.
    """
    law = law_of(fit)
    fit.check(law)
    main = Constants(law, fit.theta, fit.draws if len(fit.draws) else None)
    under = Constants(base, clean.theta, clean.draws if len(clean.draws) else None)
    kinds: list[tuple[str, Any, tuple[str, ...], Any]] = [
        ("rounded", "rounded", (), lambda setting: Streams()),
        ("weights", "trained", (), reading.weights_alone),
    ]
    if STREAMS["a"] in law.inputs:
        kinds.append(("all", "trained", (STREAMS["a"],), reading.forward_pass))
    return [
        View(
            f"{origin}-unified-{kind}", f"unified law, {kind}, fitted to our runs", "unified", origin, how, main,
            _read(law, float(how == "trained"), same, errors), under, dict.fromkeys(law.inputs[2:], 0.0),
            streams=streams, domain={name: ends for name, ends in fit.domain.items() if name != TRAINED},
            sees_groups=True, status=fit.status, notes=tuple(fit.reasons),
        )
        for kind, how, same, streams in kinds
    ]  # fmt: skip


def _read(law: Law, trained: float, same: tuple[str, ...], errors: Errors) -> reading.Read:
    """`same` names the inputs that have the error of the weights too."""

    def read(setting: Setting, row: Array) -> reading.Inputs | str:
        inputs: dict[str, float | Array] = dict.fromkeys(law.inputs[2:], 0.0)
        if TRAINED in inputs:
            inputs[TRAINED] = trained
        if setting.format == SIXTEEN:
            return inputs
        try:
            e = error_of(setting, row, errors)
        except BitlawError as error:
            return str(error)
        return inputs | dict.fromkeys((INPUT, *same), e)

    return read


def error_of(setting: Setting, row: Array, errors: Errors) -> float | Array:
    """The relative error of a setting; for a channel, whose error depends on the row, of rows of these lengths (n,).

    Raises BitlawError for a format whose error is not known (with zero points).
    """
    if setting.format in BLOCKS:
        return _known(setting.format, errors)
    if setting.group != CHANNEL:
        return _known(f"{setting.format}@{setting.group}", errors)
    at = [_known(f"{setting.format}@{length}", errors) for length in ROWS]
    return np.exp(np.interp(np.log(row), np.log(ROWS), np.log(at)))


def _known(text: str, errors: Errors) -> float:
    return errors[text] if text in errors else _computed(text)
