"""What the documents say is true: links lead somewhere, the quick start runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from demo import template

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not {part for part in path.relative_to(ROOT).parts if part.startswith(".")}
)


def _blocks(language: str) -> list[str]:
    quick_start = (ROOT / "README.md").read_text(encoding="utf-8").split("## Quick start")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", quick_start, flags=re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not dead, f"{path.relative_to(ROOT)} links to {dead}"


def test_quick_start_is_short() -> None:
    lines = [line for block in _blocks("bash") + _blocks("python") for line in block.splitlines()]
    assert len(lines) <= 15


@pytest.mark.slow
def test_quick_start_runs(tmp_path: Path) -> None:
    shutil.copy(template(), tmp_path / "volume.nii.gz")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for command in [line for block in _blocks("bash") for line in block.splitlines()]:
        if command.startswith("make demo"):
            assert "\nmake demo\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8"), "CI must run the demo"
        else:
            subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=240)
    assert (tmp_path / "result" / "preview.png").stat().st_size > 10_000
    for program in _blocks("python"):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=240)
    one, other = ((tmp_path / name / "labels.nii.gz").read_bytes() for name in ("result", "result-python"))
    assert one == other, "the command and the Python API must give the same label map"
