"""What a plan needs beside the papers' fits: Chinchilla's law fitted to the runs that are rounded, and the errors of
formats at their groups (for the unified law), both in reports/planning/base.json."""

from pathlib import Path

from replications.papers import HELD_OUT, find
from replications.planning.unified import table_of_errors
from shared.errors import BitlawError
from shared.files import sha256_file, write_json
from shared.laws.chinchilla import LAW as CHINCHILLA
from shared.laws.fit import fit
from shared.laws.settings import HeldOut, Params, Selection, read_settings
from shared.laws.study import FITTED, select
from shared.laws.tables import read_pool, too_little

PAPER = "kumar_precision"  # whose selection of rows is taken: cooled, long enough, not held out
PHASE = "cooled"
FILE = Path("planning") / "base.json"


def write_base(reports: Path, params: Path) -> Path:
    """Raises BitlawError: a table missing, damaged, or too small for the law."""
    tables = {name: reports / name for name in ("runs.csv", "measurements.csv")}
    for path in tables.values():
        if not path.exists():
            raise BitlawError(f"{path}: there is no such table; `bitlaw train` and `bitlaw measure` write it")
    settings = read_settings(params, Params).fit
    selection = read_settings(find(PAPER).file("experiment.yaml"), Selection, "fit")
    pool = read_pool(tables["runs.csv"], tables["measurements.csv"])
    rows = select(pool, selection, read_settings(HELD_OUT, HeldOut))
    rows = rows[(rows["phase"] == PHASE) & (rows["use"] == FITTED)].drop_duplicates("run_id")
    rows = rows.assign(loss=rows["loss"].astype(float) - rows["delta"].astype(float))
    rows = rows[["N", "D", "loss", "trunk_id"]].sort_values(["N", "D", "trunk_id"], ignore_index=True)
    reason = too_little(CHINCHILLA, rows)
    if reason:
        raise BitlawError(f"{tables['runs.csv']}: {reason}")
    result = fit(CHINCHILLA, rows, n_boot=settings.n_boot, seed=settings.seed, name="unquantized runs")
    inputs = {f"reports/{name}": sha256_file(path) for name, path in tables.items()}
    target = reports / FILE
    write_json(target, {"inputs": inputs, "fit": result.kept(), "errors": table_of_errors()})
    return target
