"""Where published run tables come from: list, fetch and check them."""

import ast
import csv
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from shared.errors import BitlawError, nearest
from shared.files import replacing, sha256_file
from shared.laws.settings import Strict, read_yaml

VARIABLE = "BITLAW_PUBLISHED_RUNS"
FOLDER = Path("build") / "published_runs"
RAW = "https://raw.githubusercontent.com/{origin}/{commit}/{path}"
SECONDS = 60.0
QUEST_COLUMNS = (
    "model_size", "non_embedding_parameters", "w_bits", "a_bits", "loss", "tokens", "w_quant", "a_quant", "clip_scale",
)  # fmt: skip
QUEST_SETTINGS = (
    "lr", "iterations", "batch_size", "sequence_length", "acc_steps", "world_size", "vocab_size", "n_layer", "n_embd",
    "n_head",
)  # fmt: skip
QUARTET_SIZES = {
    "30M": 30482560, "50M": 49556736, "100M": 102777856, "200M": 203188480, "430M": 443068288, "800M": 822151168,
}  # fmt: skip
QUARTET_TOKENS_PER_STEP = 512 * 512


class Source(Strict):
    """One table of sources.yaml."""

    file: str
    rows: int
    about: str
    origin: str
    commit: str
    path: str
    licence: str
    form: Literal["as it is", "quest_json", "quartet_notebook", "transcribed"]
    sha256: str

    @property
    def address(self) -> str:
        return RAW.format(origin=self.origin, commit=self.commit, path=self.path)


def sources(path: Path = Path(__file__).parent / "sources.yaml") -> dict[str, Source]:
    """Raises BitlawError for a damaged file."""
    try:
        return {name: Source.model_validate(value) for name, value in read_yaml(path).items()}
    except ValidationError as error:
        fault = error.errors()[0]
        raise BitlawError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}") from error


def folder() -> Path:
    """Where the tables are: $BITLAW_PUBLISHED_RUNS, or what `fetch` writes."""
    return Path(os.environ.get(VARIABLE) or FOLDER)


def locate(name: str) -> Path:
    """The checked path of a table. Raises BitlawError: unknown, absent, or another content."""
    known = sources()
    if name not in known:
        raise BitlawError(f"published table '{name}' is unknown{nearest(name, list(known)) or ': ' + ', '.join(known)}")
    path = folder() / known[name].file
    if not path.exists():
        raise BitlawError(f"{path}: is not there; run `bitlaw published fetch`, or set {VARIABLE} to a folder with it")
    if sha256_file(path) != known[name].sha256:
        raise BitlawError(f"{path}: is not the table that was published at {known[name].commit[:7]}; fetch it again")
    return path


def fetch(source: Source, target: Path, address: str | None = None) -> Path:
    """Download a table, bring it into its form, check it, write it to the folder `target`; returns its path.

    Raises BitlawError: nothing to fetch, no answer, or another content than the pinned one.
    """
    if source.form == "transcribed":
        raise BitlawError(f"{source.file}: was transcribed by hand from {source.path}, so there is nothing to fetch")
    address = address or source.address
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            data: bytes = answer.read()
    except (urllib.error.URLError, TimeoutError) as error:
        raise BitlawError(
            f"{address}: cannot be fetched ({getattr(error, 'reason', error)}); set {VARIABLE} to a folder with "
            f"{source.file}"
        ) from error
    try:
        table = FORMS[source.form](data)
    except (ValueError, KeyError, TypeError, IndexError, SyntaxError) as error:
        raise BitlawError(f"{address}: has another form than at commit {source.commit[:7]} ({error!r})") from error
    found = hashlib.sha256(table).hexdigest()
    if found != source.sha256:
        raise BitlawError(
            f"{address}: gives another table than the pinned one (sha256 {found[:12]}...); nothing written"
        )
    path = target / source.file
    with replacing(path) as temporary:
        temporary.write_bytes(table)
    return path


def quest_table(data: bytes) -> bytes:
    """QuEST's list of runs as CSV, with the family that its notebook sorts each run into (cell 3)."""
    rows = []
    for run in json.loads(data):
        settings = {name: run["args"][name] for name in QUEST_SETTINGS}
        rows.append({**{name: run[name] for name in QUEST_COLUMNS}, **settings, "family": _family(run)})
    return _csv((*QUEST_COLUMNS, *QUEST_SETTINGS, "family"), rows)


def _family(run: dict[str, Any]) -> str:
    weights, activations = run["w_quant"], run["a_quant"]
    if "FourEight" in weights:
        return "quest_2:4_int4"
    if "FP4" in weights:
        return "quest_fp4"
    if "Hadamard" in weights:
        return "quest_weight_only" if activations == "NoQuantizer" else "quest_int"
    return "bf16" if weights == "NoQuantizer" else "no_hadamard"


def quartet_table(data: bytes) -> bytes:
    """The dictionary of Quartet's notebook, cell 2, as CSV: size, forward, backward, steps, loss."""
    cells = json.loads(data)["cells"]
    text = next("".join(c["source"]) for c in cells if "size_fwd_bwd_iters_loss = {" in "".join(c["source"]))
    values = ast.literal_eval(ast.parse(text).body[0].value)  # type: ignore[attr-defined]
    rows = [
        {
            "size": size, "N_non_embedding": QUARTET_SIZES[size], "forward": forward, "backward": backward,
            "iterations": steps, "D_tokens": steps * QUARTET_TOKENS_PER_STEP, "loss_c4_val": loss,
        }
        for size, by_forward in values.items()
        for forward, by_backward in by_forward.items()
        for backward, by_steps in by_backward.items()
        for steps, loss in by_steps.items()
    ]  # fmt: skip
    return _csv(tuple(rows[0]), rows)


def _csv(columns: tuple[str, ...], rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda data: data,
    "quest_json": quest_table,
    "quartet_notebook": quartet_table,
}
