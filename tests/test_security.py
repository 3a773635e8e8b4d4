"""No pickle, no foreign code, no shell, and no network unless asked: read from the source, and tried on a pipeline."""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from shared import yaml_file

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("shared", "replications", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
# Methods and functions that pickle, run text as code, or start a shell, by their last name.
CALLS = {
    *("eval", "exec", "__import__", "system", "popen", "getoutput", "getstatusoutput"),
    *("read_pickle", "to_pickle", "unsafe_load", "full_load", "unsafe_load_all", "mktemp"),
    *("broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list"),
    *("save_pickle", "load_pickle", "Markup"),
}
NETWORK = {
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "telnetlib", "xmlrpc", "requests", "httpx", "aiohttp"),
    *("urllib3", "huggingface_hub", "fsspec", "boto3"),
}
# What a file may do all the same, and why.
ALLOWED = {
    # pandas' own little language over columns, typed on the command line by whoever runs it.
    ("shared/laws/user_table.py", "eval"),
    # Only for this host's name, which claims and nodes carry.
    ("shared/sweep/claim.py", "socket"),
    ("shared/sweep/cluster.py", "socket"),
    ("shared/sweep/node.py", "socket"),
    # `bitlaw ptq OWNER/NAME` asks for a model of the hub.
    ("shared/ptq/models.py", "huggingface_hub"),
    # `bitlaw published fetch` asks for tables.
    ("replications/published/sources.py", "urllib"),
    # JSON for a script, in which the line before has written every <, > and & as an escape.
    ("shared/report/explorer/data.py", "Markup"),
    # Scripts and style sheets of this repository, read from files beside them; no result goes in.
    ("shared/report/explorer/scripts.py", "Markup"),
    ("shared/report/page.py", "Markup"),
    # A subclass of the safe loader, see the test below.
    ("shared/yaml_file.py", "yaml.load"),
}


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def owner(node: ast.expr) -> str:
    return last_name(node.value) if isinstance(node, ast.Attribute) else ""


def given(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def offences(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything that this project does without."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in PICKLERS | NETWORK:
                    yield node.lineno, name.split(".")[0]
        if not isinstance(node, ast.Call):
            continue
        name, where = last_name(node.func), owner(node.func)
        if name in CALLS and not (name == "eval" and not node.args):  # model.eval() is a mode
            yield node.lineno, name
        if name == "compile" and not where:
            yield node.lineno, "compile"
        if name == "load" and where == "yaml":
            yield node.lineno, "yaml.load"
        if where == "torch" and (
            name == "save" or (name == "load" and not is_constant(given(node, "weights_only"), True))
        ):
            yield node.lineno, f"torch.{name}"
        if name == "load" and where in ("np", "numpy") and not is_constant(given(node, "allow_pickle"), False):
            yield node.lineno, "np.load without allow_pickle=False"
        for keyword in ("trust_remote_code", "shell", "allow_pickle"):
            value = given(node, keyword)
            if value is not None and not is_constant(value, False):
                yield node.lineno, f"{keyword} is not False"
        if name == "from_pretrained" and not (
            is_constant(given(node, "trust_remote_code"), False) and is_constant(given(node, "local_files_only"), True)
        ):
            yield node.lineno, "from_pretrained without trust_remote_code=False, local_files_only=True"
        if name == "Environment" and not is_constant(given(node, "autoescape"), True):
            yield node.lineno, "jinja2 without autoescape=True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_no_foreign_code_no_shell_no_network(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = [(line, what) for line, what in offences(path.read_text(encoding="utf-8")) if (name, what) not in ALLOWED]
    assert not found, f"{name}: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import joblib as j", "eval('1')", "exec(text)", "os.system('ls')",
        "torch.load(path)", "torch.load(path, weights_only=False)", "torch.save(x, path)", "np.load(path)",
        "np.load(path, allow_pickle=True)", "pd.read_pickle(path)", "yaml.load(text, yaml.Loader)",
        "subprocess.run(x, shell=True)", "f(trust_remote_code=known)", "AutoConfig.from_pretrained(folder)",
        "table.eval(text)", "import requests", "from urllib import request", "Environment(loader=x)",
        "compile(a, b, c)", "distributed.broadcast_object_list(x)", "__import__(name)", "Markup(text)",
    ],
)  # fmt: skip
def test_the_reader_of_sources_sees(text: str) -> None:
    assert list(offences(text))


def test_what_is_allowed_is_still_needed() -> None:
    for name, what in ALLOWED:
        path = ROOT / name
        if path.exists():
            assert what in {found for _, found in offences(path.read_text(encoding="utf-8"))}, (name, what)


def test_templates_switch_no_escape_off() -> None:
    templates = [path for folder in ("shared", "replications") for path in (ROOT / folder).rglob("*.html")]
    assert templates
    for path in templates:
        text = path.read_text(encoding="utf-8").replace(" ", "")
        for words in ("|safe", "autoescapefalse", "Markup("):
            assert words not in text, f"{path}: {words}"


def test_yaml_makes_no_objects() -> None:
    assert issubclass(yaml_file._Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getpid []", yaml_file._Loader)


# --- no network -------------------------------------------------------------------------------------------------

# Read by every Python that starts with this folder on its path: the command, its workers, whatever they start.
GUARD = """
import os, socket, sys

def refuse(what, arguments):
    with open(os.environ["BITLAW_CALLS"], "a") as opened:
        opened.write(f"{sys.argv[:3]} {what} {arguments}\\n")
    raise OSError(101, "this test has no network")

def guarded(name):
    original = getattr(socket.socket, name)
    def call(self, *arguments):
        if self.family != socket.AF_UNIX:
            refuse(name, arguments)
        return original(self, *arguments)
    setattr(socket.socket, name, call)

for name in ("connect", "connect_ex", "sendto", "bind", "listen"):
    guarded(name)
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection", "create_server"):
    setattr(socket, name, lambda *arguments, name=name, **more: refuse(name, arguments))
"""


ONE_BY_ONE = """
import json, sys
from replications.cli import main

for words in json.loads(sys.argv[1]):
    sys.argv = ["bitlaw", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


def cut_off() -> list[str]:
    """What starts a command in a network namespace of its own, without any network; nothing where that is not ours."""
    for before in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if shutil.which("unshare") and subprocess.run([*before, "true"], capture_output=True).returncode == 0:
            return before
    return []


class Offline:
    """Commands in a folder, with every call of the network refused and noted."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, root / "calls.txt"
        guard = root / "guard"
        guard.mkdir()
        (guard / "sitecustomize.py").write_text(textwrap.dedent(GUARD))
        path = os.pathsep.join([str(guard), str(ROOT)])
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSF"))}
        self.environment |= {"PYTHONPATH": path, "BITLAW_CALLS": str(self.calls), "OMP_NUM_THREADS": "1"}
        self.environment |= {"HF_HOME": str(root / "hub")}

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*cut_off(), sys.executable, *words], cwd=self.root, env=self.environment, capture_output=True, text=True,
            timeout=900,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def each(self, *commands: Sequence[str]) -> str:
        """Commands one after the other in one process, which imports torch once; workers are processes of their own."""
        return self.run("-c", ONE_BY_ONE, json.dumps(commands))

    def bitlaw(self, *words: str, code: int = 0) -> str:
        return self.run("-m", "replications.cli", *words, code=code)

    def said(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""


@pytest.fixture
def offline(tmp_path: Path) -> Offline:
    return Offline(tmp_path)


def test_the_guard_sees_a_call(offline: Offline) -> None:
    """In a process and in what it starts."""
    call = "import socket; socket.create_connection(('127.0.0.1', 9))"
    offline.run("-c", call, code=1)
    assert "create_connection" in offline.said()
    offline.calls.unlink()
    inner = "import socket; socket.socket().connect(('127.0.0.1', 9))"
    offline.run(
        "-c", f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {inner!r}]).returncode)", code=1
    )
    assert "connect" in offline.said()


@pytest.mark.slow
def test_the_whole_micro_pipeline_without_a_network(offline: Offline) -> None:
    """A text, a corpus, training, measuring, fits, claims and the page: no process so much as asks for an address."""
    root = offline.root
    words = [f"def f{n % 97}(x):\n    return x * {n % 31} + {n * n % 53}\n" for n in range(9000)]
    (root / "mine.txt").write_text("\n".join(words))
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    shared = ("--corpus", "mine", "--reports", "reports", "--build", "build")
    few = ("--starts", "4", "--resamples", "20")
    said = offline.each(
        ("data", "build", "--text", "mine.txt", "--name", "mine"),
        ("train", "micro", *shared),
        ("measure", "micro", *shared),
        ("keep", "micro", *shared),
        ("status", "micro", "--corpus", "mine", "--reports", "reports"),
        ("fit", "reports/measurements.csv", "--law", "ouyang_bits", *few, "--out", "fits"),
        ("replicate", "fit", "kumar_precision", "--reports", "reports"),
        ("replicate", "claims", "kumar_precision", "--reports", "reports"),
        ("replicate", "fit", "undertrained_qid", "--reports", "reports"),
        ("replicate", "claims", "undertrained_qid", "--reports", "reports"),
        ("report", "--reports", "reports"),
    )
    assert "complete" in said
    assert (root / "reports" / "index.html").stat().st_size > 10_000
    assert json.loads((root / "fits" / "fit.json").read_text())["law"] == "ouyang_bits"
    assert not offline.said()


@pytest.mark.slow
def test_a_local_model_is_quantized_without_a_network(offline: Offline) -> None:
    from ptq_models import CONTEXT, folder, text

    made, words = folder(offline.root, "llama"), text(offline.root / "words.txt")
    offline.bitlaw(
        "ptq", str(made), "--text", str(words), "--context", str(CONTEXT), "--calibration", "4", "--windows", "4",
        "--methods", "rtn", "--formats", "INT4", "INT2", "--groups", "8", "--out", "out",
    )  # fmt: skip
    assert (offline.root / "out" / "results.json").exists()
    assert not offline.said()
