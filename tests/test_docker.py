"""The recipes of the images: linted, valid, and as careful as they say. `make image` builds one and tries it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


def test_services_have_no_more_rights_than_they_need() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == {"cpu", "gpu"}
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), f"{name}: a proxy speaks to the network"
        assert [volume.partition(":")[2] for volume in service["volumes"]] == ["/data"], name
        assert (DOCKER.parent / "docker" / service["build"]["dockerfile"].rpartition("/")[2]).is_file()


def test_base_can_be_made_without_a_registry() -> None:
    """`make image` takes the release of Debian from the name of the base, so both recipes must name the same one."""
    named = [re.search(r"^ARG BASE_IMAGE=python:3\.\d+-slim-([a-z]+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
             for path in sorted(DOCKER.glob("Dockerfile*"))]  # fmt: skip
    assert len({found[1] for found in named if found}) == 1
    assert all(named)
