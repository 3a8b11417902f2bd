"""The recipes of the images: linted, valid, and as careful as they say. Building one takes a machine with an engine."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parent.parent / "docker"
BIN = Path(sys.executable).parent


def _checked(program: str, *arguments: str) -> None:
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed; pip install -e '.[dev]' brings it")
    done = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dockerfiles_are_clean() -> None:
    _checked("hadolint", "--no-color", *map(str, DOCKER.glob("Dockerfile*")))


def test_compose_file_is_valid() -> None:
    _checked("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(DOCKER / "compose.yaml"))


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_images_run_the_wheel_without_rights(name: str) -> None:
    build, final = (DOCKER / name).read_text(encoding="utf-8").split("\nFROM ")[1:]
    assert "COPY . ." in build
    assert [line for line in final.splitlines() if line.startswith("COPY")] == [
        "COPY --from=build /opt/medseg /opt/medseg"
    ]
    assert "USER 10001:10001" in final
    assert "/readyz" in final
    assert '"--auth"' in final, "a container listens on every address, so it asks for a login"
