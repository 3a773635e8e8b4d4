"""`bitlaw --help` answers in under half a second: it imports nothing heavy."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    *("torch", "transformers", "numpy", "scipy", "pandas", "matplotlib", "seaborn", "datasets", "tokenizers"),
    *("safetensors", "jinja2", "yaml", "ray", "dvc", "bitsandbytes", "torchao", "auto_gptq", "peft"),
)
PROGRAM = """
import sys
from replications.cli import main
sys.argv = ["bitlaw", *{words!r}]
try:
    main()
except SystemExit as error:
    assert not error.code, error.code
print(",".join(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
"""
# Of processor time, which is about the wall time of a machine left alone (.27 to .31 s); beside other work, which takes
# its share of the caches, it is a little more.
SECONDS, SLACK = 0.5, 1.3


@pytest.mark.parametrize(
    "words", [["--help"], ["fit", "--help"], ["train", "--help"], ["ptq", "--help"], ["data", "--help"]]
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    program = PROGRAM.format(words=words, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stderr.strip() == ""


def test_ctrl_c_during_an_import_is_heard_after_it(tmp_path: Path) -> None:
    """Torch's C++ aborts when its import is interrupted."""
    (tmp_path / "slow.py").write_text(
        "import sys, time\nprint('begun', flush=True)\nend = time.monotonic() + 0.5\n"
        "while time.monotonic() < end: pass\nprint('imported', flush=True)\n"
    )
    program = (
        "import signal, time\nfrom shared.interrupt import wait_for_imports\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\nwait_for_imports()\n"
        "try:\n    import slow\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('stopped', flush=True)\n"
    )
    paths = f"{tmp_path}{os.pathsep}{Path(__file__).parent.parent}"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "imported\nstopped\n"


def processor_seconds(*program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *program], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_answers_at_once() -> None:
    """The best of three; benchmarks/startup.py says the number."""
    assert min(processor_seconds("-m", "replications.cli", "--help") for _ in range(3)) < SECONDS * SLACK


def test_a_slow_start_would_be_seen() -> None:
    """A start that takes the whole half second, and what Python takes by itself, is over the limit on this clock."""
    spin = f"import time\nend = time.process_time() + {SECONDS * SLACK}\nwhile time.process_time() < end: pass"
    assert processor_seconds("-c", spin) >= SECONDS * SLACK
