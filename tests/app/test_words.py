"""The words of the page: every one that a screen asks for is in the file, every stage of a run among them."""

import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "app" / "medseg_app" / "page"


def test_every_word_is_there() -> None:
    words = json.loads((PAGE / "static" / "strings.en.json").read_text(encoding="utf-8"))
    known = {f"{part}.{name}" for part, names in words.items() for name in names}
    ours = [path for path in PAGE.glob("static/*.js") if path.name != "niivue.umd.js"]
    script = "\n".join(path.read_text(encoding="utf-8") for path in ours)
    asked = set(re.findall(r"\bt\(\s*\"(\w+\.\w+)\"", script))
    assert len(asked) > 50
    assert asked <= known
    assert set(re.findall(r"`(\w+)\.\$\{", script)) <= set(words), "parts whose words are chosen while the page runs"


def test_every_stage_has_a_word() -> None:
    words = json.loads((PAGE / "static" / "strings.en.json").read_text(encoding="utf-8"))["run"]
    folders = (ROOT / "pipelines" / "medseg_pipelines", ROOT / "app" / "medseg_app")
    code = "\n".join(path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py"))
    stages = set(re.findall(r"(?:report\.start\(|Event\(stage=)\"(\w+)\"", code))
    assert {"reading", "segmenting", "writing"} <= stages
    assert stages - {"training", "comparing"} <= set(words), "these two are not done in the page"


def test_the_viewer_is_the_known_file() -> None:
    digest = re.findall(r"^sha256=(\w{64})$", (PAGE / "vendor.sh").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert digest == [hashlib.sha256((PAGE / "static" / "niivue.umd.js").read_bytes()).hexdigest()]
