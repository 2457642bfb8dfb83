"""``py.typed``: a user's own code is checked with the types of the package, by two type checkers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

USER = Path(__file__).parent / "data" / "user.py"
MYPY = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file="]
PYRIGHT = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
WRONG = {
    'customer=Customer("c", "r")': "customer=5",
    "left: float | None": "left: str",
    "step.seconds + 1": 'step.seconds + "s"',
    "number: int": "number: str",
}


def checked(checker: list[str], program: Path) -> subprocess.CompletedProcess[str]:
    """What the checker says of the program, away from this project's own configuration."""
    if find_spec(checker[2]) is None:
        pytest.skip(f"{checker[2]} is not installed here")
    return subprocess.run(
        [*checker, program.name], cwd=program.parent, capture_output=True, text=True, check=False, timeout=110
    )


@pytest.mark.parametrize("checker", [MYPY, PYRIGHT], ids=["mypy", "pyright"])
def test_a_user_s_code_is_right(checker: list[str], tmp_path: Path) -> None:
    done = checked(checker, Path(shutil.copy(USER, tmp_path)))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("checker", [MYPY, PYRIGHT], ids=["mypy", "pyright"])
def test_each_mistake_is_found(checker: list[str], tmp_path: Path) -> None:
    source = USER.read_text()
    for right, wrong in WRONG.items():
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    (tmp_path / "user.py").write_text(source)
    done = checked(checker, tmp_path / "user.py")
    lines = {number for number, line in enumerate(source.splitlines(), 1) if any(bad in line for bad in WRONG.values())}
    assert [number for number in lines if f"user.py:{number}:" not in done.stdout] == []
