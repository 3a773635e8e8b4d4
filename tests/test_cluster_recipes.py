"""The shell recipes of README.md and docs/cluster.md, as shells and Slurm run them."""

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/cluster.md")}
# In the place of bitlaw: says when it is ready, and what reaches it.
STAND_IN = """#!{python}
import signal, sys, time
def told(number, frame):
    print("told", *sys.argv[1:], flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, told)
print("ready", flush=True)
time.sleep(60)
"""


def options(page: str) -> list[str]:
    """What `sbatch` is given, on its command line or in the script's head."""
    return re.findall(r"(?:#SBATCH|(?<=\s)(?=--\w)) ?(--\S+)", PAGES[page])


def batch_script(page: str) -> str:
    """What Slurm runs: a script of its own, which `--wrap` puts the command into, or the one of the page."""
    wrapped = re.search(r"--wrap '(.+)'", PAGES[page])
    if wrapped:
        return f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{wrapped[1]}\n"
    found = re.search(r"```bash\n(#!/bin/bash\n.+?)```", PAGES[page], re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("page", PAGES)
def test_slurms_signal_reaches_bitlaw(page: str, tmp_path: Path) -> None:
    """Without `srun` there is no job step to signal: `B:` is the batch shell alone, whose place bitlaw has taken."""
    assert [option for option in options(page) if option.startswith("--signal")] == ["--signal=B:TERM@120"]
    program = tmp_path / ".venv" / "bin" / "bitlaw"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    script = tmp_path / "slurm_script"
    script.write_text(batch_script(page))
    script.chmod(0o755)
    process = subprocess.Popen(
        [script], cwd=tmp_path, env=os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)  # to this process only
    assert process.communicate(timeout=30)[0] == "told train cpu --workers 1\n"
    assert process.returncode == 130


@pytest.mark.parametrize("page", PAGES)
def test_the_token_is_nobody_elses_to_read(page: str, tmp_path: Path) -> None:
    """The recipe's words, with a `ray` that writes its token as Ray 2.60 does: with the mode that the umask leaves."""
    recipe = next(line for line in PAGES[page].splitlines() if "get-auth-token" in line)
    stand_in = tmp_path / "ray"
    stand_in.write_text('#!/bin/sh\n[ "$1 $2" = "get-auth-token --generate" ] && echo secret > "$HOME/auth_token"\n')
    stand_in.chmod(0o755)
    environment = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    words = f"umask 022\n{recipe}\ntouch after"
    subprocess.run(["bash", "-ec", words], cwd=tmp_path, env=environment, check=True, timeout=30)
    assert stat.S_IMODE((tmp_path / "auth_token").stat().st_mode) == 0o600
    # The rest of the session is as it was: what bitlaw writes is read by others.
    assert stat.S_IMODE((tmp_path / "after").stat().st_mode) == 0o644
