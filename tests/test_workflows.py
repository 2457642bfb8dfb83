"""The workflows of the repository: well-formed, with nothing that moves under them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GITHUB = Path(__file__).parents[1] / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FILES = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.dependabot": [GITHUB / "dependabot.yml"],
    "vendor.github-issue-forms": [GITHUB / "ISSUE_TEMPLATE" / "bug.yml", GITHUB / "ISSUE_TEMPLATE" / "idea.yml"],
    "vendor.github-issue-config": [GITHUB / "ISSUE_TEMPLATE" / "config.yml"],
}


@pytest.mark.parametrize("schema", FILES)
def test_files_are_what_github_reads(schema: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, FILES[schema])]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_a_commit(workflow: Path) -> None:
    used = re.findall(r"uses: ([^./]\S+)", workflow.read_text())
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []


def test_an_action_is_the_same_commit_everywhere() -> None:
    used = {found for path in WORKFLOWS for found in re.findall(r"uses: ([^./]\S+)@(\S+)", path.read_text())}
    assert len({action for action, _ in used}) == len(used)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_do_nothing_by_default_and_each_command_is_in_the_makefile(workflow: Path) -> None:
    text = workflow.read_text()
    assert "\npermissions: {}\n" in text
    makefile = (GITHUB.parent / "Makefile").read_text()
    for target in re.findall(r"run: make ([\w.-]+)", text):
        assert re.search(rf"^{re.sub(r'^test-3.*', 'test-3.%', target)}:", makefile, re.MULTILINE), target
