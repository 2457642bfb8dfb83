"""Finds the features that a project names, in its Python files and templates, which are read and not run.

Where an id is no literal, nobody can tell it without running the project; such places are found too.
"""

from __future__ import annotations

import ast
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from stigg_guard.errors import ConfigError
from stigg_guard.foreign import printable

TEMPLATE_SUFFIXES = (".html", ".htm", ".xhtml", ".xml", ".txt", ".jinja", ".jinja2", ".j2")

TEXT_SHOWN = 60

_FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})
_OWN_PACKAGE = Path(__file__).parents[1]

# The position of the feature among the arguments; by keyword it is called feature everywhere.
_CALLS: Mapping[str, int | None] = {
    "requires_feature": 0,
    "consumes_usage": 1,
    "releases_usage": 1,
    "protect": 1,
    "as_view": None,  # by position, Flask's takes the name of an endpoint
    "has_feature": 0,
    "usage_bar": 0,
    "upgrade_url": 0,
}
# These names are everybody's: a guard's are told by their customer, those of a request's plan by what they belong to.
_OF_GUARD = frozenset({"check", "require", "consume", "report"})
_OF_PLAN = frozenset({"has", "ahas", "entitlement", "aentitlement", "usage"})
_PLAN = "stigg"
_MIXINS = frozenset({"RequiresFeatureMixin", "ConsumesUsageMixin"})

_ARGUMENT = r"""(?P<argument>"[^"]*"|'[^']*'|[^\s,)%|]+)"""
_SILENT = re.compile(r"\{#.*?#\}|\{%-?\s*(comment|raw|verbatim)\b.*?%\}.*?\{%-?\s*end\1\b.*?%\}", re.DOTALL)
_BLOCK = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)
_IN_BLOCK = (
    re.compile(rf"\{{%-?\s*(?:feature|entitlement|usage|usage_bar|upgrade_url)\s+(?!as\s|[-+]?%){_ARGUMENT}"),
    re.compile(rf"(?<![\w.])(?:has_feature|entitlement|usage|usage_bar|upgrade_url)\(\s*(?!\)){_ARGUMENT}"),
    re.compile(rf"\|\s*has_feature:{_ARGUMENT}"),
    re.compile(rf"\b{_PLAN}\.(?:has|entitlement|usage)\(\s*{_ARGUMENT}"),
    re.compile(rf"{_ARGUMENT}\s+is\s+(?:not\s+)?entitled\b"),
)


@dataclass(frozen=True, slots=True)
class Mention:
    """A place that names a feature; ``feature`` is None where ``problem`` keeps it from being read."""

    path: Path
    line: int
    feature: str | None
    problem: str = ""

    def __str__(self) -> str:
        path = os.path.relpath(self.path)
        return printable(f"{self.path if path.startswith(os.pardir) else path}:{self.line}")


def mentions(paths: Iterable[str | os.PathLike[str]]) -> list[Mention]:
    """Where these files, and the Python files and templates in these folders, name features; in order of the places.

    Hidden folders, virtual environments and installed packages are left out.

    Raises:
        ConfigError: there is no such path.
    """
    files = sorted({file for path in paths for file in _files(Path(path).resolve())})
    return [mention for file in files for mention in sorted(_in_file(file), key=lambda one: one.line)]


def own_folders(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Those of the folders that are there and that no installed package has; none of them within another."""
    own = {path for path in map(_resolved, folders) if path.is_dir() and not _is_foreign(path)}
    return sorted(path for path in own if own.isdisjoint(path.parents))


def _resolved(path: str | os.PathLike[str]) -> Path:
    return Path(path).resolve()


def _is_foreign(path: Path) -> bool:
    return not _FOREIGN_FOLDERS.isdisjoint(path.parts) or path.is_relative_to(_OWN_PACKAGE)


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise ConfigError(f"there is no file or folder {path}")
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if not _is_left_out(Path(folder, name))]
        yield from (Path(folder, name) for name in files if Path(name).suffix in (".py", *TEMPLATE_SUFFIXES))


def _is_left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _FOREIGN_FOLDERS or (folder / "pyvenv.cfg").exists()


def _in_file(path: Path) -> Iterator[Mention]:
    try:
        source = path.read_bytes()
        yield from _in_python(path, source) if path.suffix == ".py" else _in_template(path, source)
    except OSError as error:
        yield Mention(path, 1, None, f"the file cannot be read: {error.strerror}")
    except (SyntaxError, ValueError) as error:
        yield Mention(path, getattr(error, "lineno", None) or 1, None, f"the file is not Python: {error}")
    except (RecursionError, MemoryError):  # from the parser, for what no hand has written
        yield Mention(path, 1, None, "the file is nested too deep to be read")


def _in_python(path: Path, source: bytes) -> Iterator[Mention]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the project's own literals
        tree = ast.parse(source)
    aliases, constants = _aliases(tree), _constants(tree)
    for node in _naming(tree, aliases):
        for literal in _literals(node, constants):
            problem = "" if literal is not None else f"{shorten(ast.unparse(node), TEXT_SHOWN)} is not a literal"
            yield Mention(path, node.lineno, literal, problem)


def _naming(tree: ast.Module, aliases: Mapping[str, str]) -> Iterator[ast.expr]:
    """The expressions that say which feature is meant."""
    guarded = set(_MIXINS)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _of_call(node, aliases)
        elif isinstance(node, ast.Dict):
            yield from _of_rule(node)
        elif isinstance(node, ast.ClassDef) and not guarded.isdisjoint(_last_name(base) for base in node.bases):
            guarded.add(node.name)
            yield from _of_class(node)


def _of_call(call: ast.Call, aliases: Mapping[str, str]) -> Iterator[ast.expr]:
    name = _last_name(call.func)
    name = aliases.get(name, name)
    if _is_of_guard(name, call) or _is_of_plan(name, call):
        position: int | None = 0
    elif name in _CALLS:
        position = _CALLS[name]
    else:
        return
    named = [keyword.value for keyword in call.keywords if keyword.arg == "feature"]
    if named or position is None:
        yield from named
        return
    unpacked = [argument for argument in call.args if isinstance(argument, ast.Starred)]
    yield from unpacked or call.args[position : position + 1]


def _is_of_guard(name: str, call: ast.Call) -> bool:
    return name in _OF_GUARD and any(keyword.arg == "customer" for keyword in call.keywords)


def _is_of_plan(name: str, call: ast.Call) -> bool:
    return name in _OF_PLAN and isinstance(call.func, ast.Attribute) and _last_name(call.func.value) == _PLAN


def _of_rule(rule: ast.Dict) -> Iterator[ast.expr]:
    """One entry of the setting ``RULES``: a dict with a path and a feature."""
    entries = {_text(key): value for key, value in zip(rule.keys, rule.values, strict=True)}
    if "feature" in entries and (_text(entries.get("path")) or "").startswith("/"):
        yield entries["feature"]


def _of_class(made: ast.ClassDef) -> Iterator[ast.expr]:
    for statement in made.body:
        value = getattr(statement, "value", None)
        if value is not None and "feature" in _targets(statement):
            yield value


def _literals(node: ast.expr, constants: Mapping[str, str]) -> Iterator[str | None]:
    """The features that are meant: those of all keys of a mapping, of either branch of a condition."""
    if isinstance(node, ast.Constant):
        if node.value is not None:
            yield _text(node)
    elif isinstance(node, ast.Name):
        yield constants.get(node.id)
    elif isinstance(node, ast.IfExp):
        yield from _literals(node.body, constants)
        yield from _literals(node.orelse, constants)
    elif isinstance(node, ast.Dict):
        for key in node.keys:
            yield from _literals(key, constants) if key is not None else [None]
    else:
        yield None


def _aliases(tree: ast.Module) -> Mapping[str, str]:
    """The names under which the file has imported ours."""
    return {
        name.asname: name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stigg_guard")
        for name in node.names
        if name.asname
    }


def _constants(tree: ast.Module) -> Mapping[str, str]:
    """The texts that the file's module gives to names, of which it never makes anything else."""
    nodes = list(ast.walk(tree))
    bound = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    bound.update(node.arg for node in nodes if isinstance(node, ast.arg))
    return {
        name: text
        for statement in tree.body
        if (text := _text(getattr(statement, "value", None))) is not None
        for name in _targets(statement)
        if bound[name] == 1
    }


def _targets(statement: ast.stmt) -> list[str]:
    """The names that the statement binds, if it is an assignment."""
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []


def _text(node: ast.expr | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _in_template(path: Path, source: bytes) -> Iterator[Mention]:
    text = _SILENT.sub(lambda silent: "\n" * silent[0].count("\n"), source.decode(errors="replace"))
    for block in _BLOCK.finditer(text):
        for pattern in _IN_BLOCK:
            for found in pattern.finditer(block[0]):
                argument = found["argument"]
                line = text.count("\n", 0, block.start() + found.start("argument")) + 1
                if argument[0] in "\"'":
                    yield Mention(path, line, argument[1:-1])
                else:
                    yield Mention(path, line, None, f"{argument} is not a literal")
