"""Our own code for a bundle: the modules that a class needs, copied into `scripts` with imports that point there."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from medseg import __version__

PACKAGE = "scripts"  # MONAI Label unloads this name between bundles, and no other
OURS = ("medseg", "medseg_kernels", "medseg_pipelines")
_HEADER = f"# Copied by `medseg bundle export` {__version__}, Apache-2.0; imports point into this bundle.\n"
_EMPTY = '"""Part of medseg, as far as this bundle needs it."""\n'


def target_of(kind: type) -> str:
    """Where a class is found from within the bundle: a `_target_` of its configs."""
    return f"{PACKAGE}.{kind.__module__}.{kind.__qualname__}"


def copy_code(kinds: Iterable[type], bundle: Path, *, leave_out: Collection[str] = ()) -> list[str]:
    """Write the modules of classes, and all of ours that they import, below `bundle/scripts`.

    Args:
        kinds: The classes.
        bundle: Its root folder.
        leave_out: Modules that are imported within functions which are never called.

    Returns:
        The names of the modules that were copied.
    """
    modules = closure((kind.__module__ for kind in kinds), leave_out=leave_out)
    root = bundle / PACKAGE
    for name, source in modules.items():
        folder = root.joinpath(*name.split("."))
        path = folder / "__init__.py" if source.name == "__init__.py" else folder.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_HEADER + redirected(source.read_text(encoding="utf-8")), encoding="utf-8")
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        start = folder / "__init__.py"
        if not start.exists():
            start.write_text(_EMPTY, encoding="utf-8")
    return sorted(modules)


def closure(modules: Iterable[str], *, leave_out: Collection[str] = ()) -> dict[str, Path]:
    """The modules of ours that these need, themselves included, by name with their source.

    Imports within functions count as well, those for a type checker alone do not; a package counts only where
    something is taken from its own file.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in leave_out:
            found[name] = _source(name)
            waiting += _imported(ast.parse(found[name].read_text(encoding="utf-8")))
    return found


def redirected(source: str) -> str:
    """The source with every `from medseg... import` pointing into the bundle.

    Raises:
        ValueError: It uses `import medseg...`, which binds a name that would not exist in the bundle.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import) and any(_is_ours(alias.name) for alias in node.names):
            raise ValueError(f"code for a bundle must use `from ... import`, got `{ast.unparse(node)}`")
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and _is_ours(node.module):
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module}", f"from {PACKAGE}.{node.module}", 1)
    return "".join(lines)


def foreign_imports(source: str) -> set[str]:
    """The top-level packages that a source imports from outside its bundle."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - {PACKAGE}


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in _at_runtime(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and _is_ours(node.module):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _is_module(inner) and not _binds(node.module, alias.name) else node.module


def _at_runtime(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _at_runtime(node)


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in OURS


def _binds(package: str, name: str) -> bool:
    """Whether a package's own file gives a name, which then hides a module of that name."""
    body = ast.parse(_source(package).read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names} for node in body)


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def _source(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"module {name} must have a source file to travel in a bundle, found none")
    return Path(spec.origin)
