"""The wheel, in an environment that has the core dependencies and nothing else."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata, parse_email
from packaging.requirements import Requirement

import stigg_guard

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
OPTIONAL = (
    "django",
    "flask",
    "redis",
    "prometheus_client",
    "grpc_health",
    "grpc_reflection",
    "openfeature",
    "opentelemetry",
)


def required(name: str) -> Iterator[Distribution]:
    """What a distribution needs without extras, with what that needs."""
    for requirement in map(Requirement, distribution(name).requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed = distribution(requirement.name)
            yield needed
            yield from required(needed.name)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    return build(tmp_path_factory.mktemp("built"))


def build(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the built wheel and links to its core dependencies."""
    folder = tmp_path_factory.mktemp("environment")
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    for needed in required("stigg-guard"):
        for file in needed.files or []:
            target = folder / file
            if ".." not in file.parts and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(needed.locate_file(file))
    return folder


def run(environment: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program with the environment's packages and the standard library only."""
    program = f"import sys; sys.path.insert(0, {str(environment)!r})\n{program}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_wheel_and_sdist_are_the_same_each_time(built: Path, tmp_path: Path) -> None:
    assert digests(build(tmp_path)) == digests(built)
    assert len(digests(built)) == 2


@pytest.mark.parametrize("inspect", ["twine check --strict", "check-wheel-contents --config pyproject.toml"])
def test_inspectors_find_no_fault(built: Path, inspect: str) -> None:
    program, *options = inspect.split()
    files = [str(path) for path in built.glob("*.whl" if program != "twine" else "*")]
    command = [str(Path(sys.executable).with_name(program)), *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_metadata_lack_nothing_that_is_expected(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        metadata, problems = parse_email(opened.read(name))
    assert problems == {}
    described = Metadata.from_raw(metadata)
    assert str(described.version) == stigg_guard.__version__
    assert set(described.project_urls or ()) == {"Homepage", "Documentation", "Changelog", "Issues", "Source"}
    assert described.license_expression == "Apache-2.0"
    assert str(described.author_email).partition("<")[2].rstrip(">") in (ROOT / "SECURITY.md").read_text()


def test_the_projects_address_is_in_one_place() -> None:
    """It is a placeholder until there is one: see CONTRIBUTING.md."""
    (address,) = re.findall(r'^Source = "https://(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    folders = ("src", "docs", ".github", "example_projects")
    files = [*(path for folder in folders for path in (ROOT / folder).rglob("*")), *ROOT.glob("*.md")]
    texts = (path for path in files if path.suffix in {".py", ".md", ".yml", ".json", ".html", ".toml"})
    assert [str(path) for path in texts if address in path.read_text(encoding="utf-8")] == []


def test_the_classifiers_name_what_is_tested(built: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = re.search(r"^MATRIX := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert pythons is not None
    prefix = "Programming Language :: Python :: 3."
    named = [name.removeprefix(prefix) for name in project["classifiers"] if name.startswith(prefix)]
    assert [f"3.{minor}" for minor in named] == pythons[1].split()


def test_imports_without_any_extra(environment: Path) -> None:
    done = run(environment, f"import stigg_guard; print([name for name in {OPTIONAL} if name in sys.modules])")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("django", "stigg_guard.django"),
        ("flask", "stigg_guard.flask"),
        ("sidecar", "stigg_guard.sidecar.server"),
        ("prometheus", "stigg_guard.metrics"),
        ("openfeature", "stigg_guard.openfeature"),
        ("otel", "stigg_guard.otel"),
        ("redis", "stigg_guard.ledger.redis"),
        ("redis", "stigg_guard.cache.redis"),
    ],
)
def test_a_missing_extra_says_the_pip_line(environment: Path, extra: str, module: str) -> None:
    done = run(environment, f"import {module}")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"pip install 'stigg-guard[{extra}]'")


def test_the_sidecar_command_says_the_pip_line_without_a_traceback(environment: Path) -> None:
    done = run(environment, "sys.argv[1:] = ['sidecar']; from stigg_guard.__main__ import main; main()")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pip install 'stigg-guard[sidecar]'" in done.stderr


def test_has_its_data_and_says_that_it_is_typed(environment: Path) -> None:
    package = environment / "stigg_guard"
    pages = (
        "web/denied.html",
        "web/denied_fragment.html",
        "web/paywall.html",
        "django/locale/de/LC_MESSAGES/django.mo",
    )
    for name in (
        "py.typed",
        *pages,
        "wire/sidecar_pb2.pyi",
        "wire/sidecar.proto",
        "sidecar/demo.toml",
        "sidecar/catalog.schema.json",
    ):
        assert (package / name).is_file(), name


def test_an_offline_guard_works_without_extras(environment: Path) -> None:
    program = (
        "from importlib.resources import files; import stigg_guard as s\n"
        "catalog = files('stigg_guard.sidecar') / 'demo.toml'\n"
        "guard = s.Guard(s.Config(sidecar='offline', offline_file=str(catalog)))\n"
        "print(guard.check('feature-templates', customer='customer-demo-01').usage_limit)"
    )
    done = run(environment, program)
    assert (done.returncode, done.stdout.strip()) == (0, "6.0"), done.stderr
