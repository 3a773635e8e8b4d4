"""corpus.lock: the packages that the text comes from, pinned by hash, and how they are fetched.

The lock is apart from the environment's own lock, so that a library update never changes the corpus.
"""

import email.parser
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.errors import BitlawError
from shared.files import sha256_file, write_text
from shared.yaml_file import read_yaml

LOCK = Path("corpus.lock")
DOWNLOADS = Path("build/downloads")
MAX_DOWNLOAD_BYTES = 150_000_000
# `by document` is for English: three packages are too few to keep whole ones out (see extract.py).
SPLITS = {"python": ("train", "val"), "english": ("by document",)}
LICENCES = ("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "PSF-2.0", "Unlicense")
HEADER = """\
# The packages whose text makes the corpora of data/: portable wheels, permissive licences, pinned by hash.
# python: whole packages are held out for validation (split: val); the others train.
# english: three packages only, so the split is by document (a president's addresses, a service, an API).
# Edit a name, version, split or licence here, then run `bitlaw data build --repin`: it fills in the rest.
"""


@dataclass(frozen=True)
class Package:
    """One wheel. ``size`` in bytes; ``licence`` an SPDX name, checked by hand against the wheel's metadata."""

    corpus: str
    name: str
    version: str
    split: str
    licence: str
    filename: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        return DOWNLOADS / self.filename


def read_lock(path: Path = LOCK, *, pinned: bool = True) -> list[Package]:
    """The packages in the lock's order. ``pinned=False`` accepts entries whose hash is not known yet.

    Raises BitlawError for a missing or malformed lock, an unknown corpus, split or licence, and a download over
    150 MB.
    """
    values = read_yaml(path)
    entries = values.get("packages") if isinstance(values, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BitlawError(f"{path}: 'packages' must be a list with at least one package")
    packages = [_package(path, row, entry, pinned) for row, entry in enumerate(entries, start=1)]
    check_size(packages, path)
    names = [package.name for package in packages]
    for name in names:
        if names.count(name) > 1:
            raise BitlawError(f"{path}: package '{name}' is listed twice; remove one")
    return packages


def check_size(packages: list[Package], path: Path = LOCK) -> None:
    """Raises BitlawError when the packages are over 150 MB together."""
    total = sum(package.size for package in packages)
    if total > MAX_DOWNLOAD_BYTES:
        raise BitlawError(f"{path}: {total / 1e6:.0f} MB to download, 150 MB are allowed; remove a package")


def _package(path: Path, row: int, entry: Any, pinned: bool) -> Package:
    where = f"{path}, package {row}"
    asked = ("corpus", "name", "version", "split", "licence")
    missing = [key for key in asked if not isinstance(entry, dict) or not isinstance(entry.get(key), str)]
    if missing:
        raise BitlawError(f"{where}: '{missing[0]}' is missing or no text")
    known = {
        "corpus": tuple(SPLITS),
        "split": SPLITS.get(entry["corpus"], ()),
        "licence": LICENCES,
    }
    for key, values in known.items():
        if entry[key] not in values:
            raise BitlawError(f"{where} ({entry['name']}): {key} '{entry[key]}' is not one of {', '.join(values)}")
    pins = ("filename", "size", "sha256")
    if pinned and not all(entry.get(key) for key in pins):
        raise BitlawError(f"{where} ({entry['name']}): has no hash yet; run `bitlaw data build --repin`")
    filename, digest = str(entry.get("filename") or ""), str(entry.get("sha256") or "")
    size = entry.get("size") or 0
    if not isinstance(size, int) or not 0 <= size <= 2**63:
        raise BitlawError(f"{where} ({entry['name']}): size must be a number of bytes")
    # The file name becomes a path: nothing but a plain portable wheel may pass.
    if pinned and not re.fullmatch(r"[\w.+-]+-none-any\.whl", filename):
        raise BitlawError(f"{where} ({entry['name']}): '{filename}' is no portable wheel (*-none-any.whl)")
    if pinned and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BitlawError(f"{where} ({entry['name']}): sha256 must have 64 hexadecimal digits")
    return Package(**{key: entry[key] for key in asked}, filename=filename, size=size, sha256=digest)


def write_lock(packages: list[Package], path: Path = LOCK) -> None:
    body = yaml.safe_dump({"packages": [asdict(package) for package in packages]}, sort_keys=False)
    write_text(path, HEADER + body)


def fetch(packages: list[Package]) -> int:
    """Download with pip, without dependencies, what is not in build/downloads yet; return how many were fetched.

    Every file is compared with the lock's sha256, also those found there. Raises BitlawError when pip fails.
    """
    wanted = [package for package in packages if not _have(package)]
    if wanted:
        _pip([f"{p.name}=={p.version} --hash=sha256:{p.sha256}" for p in wanted], ["--require-hashes"], DOWNLOADS)
    for package in wanted:
        if not _have(package):
            raise BitlawError(
                f"{package.path}: pip fetched another file for {package.name} {package.version} than corpus.lock names"
            )
    return len(wanted)


def repin(packages: list[Package]) -> list[Package]:
    """Fetch every package by name and version alone; return them with file name, size and sha256 filled in."""
    pinned = []
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    for package in packages:
        if package.sha256 and _have(package) and _version(package.path) == package.version:
            pinned.append(package)
            continue
        with tempfile.TemporaryDirectory(dir=DOWNLOADS) as folder:
            _pip([f"{package.name}=={package.version}"], [], Path(folder))
            (wheel,) = Path(folder).iterdir()
            kept = wheel.replace(DOWNLOADS / wheel.name)
        fields = asdict(package) | {
            "filename": kept.name,
            "size": kept.stat().st_size,
            "sha256": sha256_file(kept),
        }
        pinned.append(Package(**fields))
    return pinned


def _have(package: Package) -> bool:
    """Whether the right file is there; a wrong one (cut short, changed) is removed so that pip fetches it anew."""
    if not package.path.is_file():
        return False
    if sha256_file(package.path) == package.sha256:
        return True
    package.path.unlink()
    return False


def _version(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return str(email.parser.BytesHeaderParser().parsebytes(archive.read(name))["Version"])


def _pip(requirements: list[str], options: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        listing = Path(temporary) / "requirements.txt"
        listing.write_text("\n".join(requirements) + "\n", encoding="utf-8")
        # Only portable wheels are asked for, whatever runs this; their code is read, never run, so the Python
        # version that they ask for does not matter.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--platform", "any", "--implementation", "py", "--abi", "none", "--ignore-requires-python"]
        command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), "-r", str(listing), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = lines[0] if lines else (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BitlawError(f"pip could not fetch the packages of corpus.lock: {reason.rstrip('. ')}")
