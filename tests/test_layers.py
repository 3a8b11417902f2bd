"""The house keeps its order: imports run downward, foreign packages have one owner, pieces stay readable."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up; a package may import those before it. `medseg_configs` is data and imports nothing.
FLOORS = ["medseg_kernels", "medseg", "medseg_pipelines", "medseg_app"]
PACKAGES = {
    "medseg_kernels": ROOT / "kernels" / "medseg_kernels",
    "medseg": ROOT / "medseg",
    "medseg_pipelines": ROOT / "pipelines" / "medseg_pipelines",
    "medseg_app": ROOT / "app" / "medseg_app",
    "medseg_configs": ROOT / "configs" / "medseg_configs",
}
OWNERS = {  # foreign package: the folder or file that alone may import it
    "triton": "kernels/medseg_kernels",
    "nibabel": "medseg/io",
    "SimpleITK": "medseg/io",
    "highdicom": "pipelines/medseg_pipelines/dicom_out",
    "segment_anything": "medseg/partition",
    "torchvision": "medseg/partition",
    "pytorch_wavelets": "medseg/wavelets.py",
    "monai": "pipelines/medseg_pipelines",
    "pynetdicom": "pipelines/medseg_pipelines/pacs",
    "dicomweb_client": "pipelines/medseg_pipelines/pacs",
    "requests": "pipelines/medseg_pipelines/pacs",
    "fastapi": "app/medseg_app/server",
    "gradio": "app/medseg_app/server/page.py",
    "starlette": "app/medseg_app/server",
    "uvicorn": "app/medseg_app/commands/serve.py",
    "typer": "app/medseg_app",
    "rich": "app/medseg_app",
}


def _files() -> list[Path]:
    return sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_imports_run_downward(path: Path) -> None:
    package = next(name for name, folder in PACKAGES.items() if path.is_relative_to(folder))
    above = set(FLOORS) if package == "medseg_configs" else set(FLOORS[FLOORS.index(package) + 1 :])
    upward = [f"line {line}: {name}" for line, name in _imports(path) if name in above]
    assert not upward, f"{_name(path)} imports upward: {upward}"


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_foreign_packages_have_one_owner(path: Path) -> None:
    strangers = [
        f"line {line}: {name} belongs to {OWNERS[name]}"
        for line, name in _imports(path)
        if name in OWNERS and not path.is_relative_to(ROOT / OWNERS[name])
    ]
    assert not strangers, f"{_name(path)}: {strangers}"


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_pieces_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{_name(path)} has {text.count(chr(10))} lines, 400 at most"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            kernel = any("jit" in ast.unparse(mark) for mark in node.decorator_list)
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            limit = 120 if kernel else 40
            assert lines <= limit, f"{_name(path)}: {node.name} has {lines} lines, {limit} at most"


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def late():\n    from medseg_app import cli\n    return cli\n")
    assert list(_imports(path)) == [(2, "medseg_app")]
