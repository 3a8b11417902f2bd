"""The file that says what a listener does."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.errors import UsageError
from medseg_pipelines.pacs.rules import Listening, Retention, Rule, load_rules
from tiny_model import tiny_recipe

RULE: dict[str, Any] = {"name": "brain", "modality": ["MR"], "model": "brain-structures"}
PACS = {"pacs": "PACS@host:104"}


def _load(folder: Path, **changes: object) -> Listening:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": [RULE], **changes}))
    return load_rules(path)


def test_defaults_listen_on_this_machine_only(tmp_path: Path) -> None:
    rules = _load(tmp_path, retention={"disk": "2 GB"})
    assert (rules.host, rules.rules[0].formats, rules.rules[0].send) == ("127.0.0.1", ("seg",), ())
    assert int(rules.retention.disk) == 2_000_000_000


def test_a_rule_of_a_trained_model_may_send(tmp_path: Path) -> None:
    rules = _load(tmp_path, destinations={"pacs": "PACS@host:104"}, rules=[{**RULE, "send": ["pacs"]}])
    assert rules.rules[0].send == ("pacs",)


@pytest.mark.parametrize(
    ("modality", "description", "fits"),
    [
        ("MR", "t1 mprage sag", True),
        ("mr", "AX T1", True),
        ("MR", "T2 tse", False),
        ("CT", "T1", False),
        ("MR", "", False),
    ],
)
def test_patterns(modality: str, description: str, fits: bool) -> None:
    rule = Rule(name="r", modality=("MR",), description=("*T1*", "mprage"), model="m")
    assert rule.fits(modality, description) is fits
    assert Rule(name="r", modality=("MR", "CT"), model="m").fits(modality, "")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ports": 1}, "ports"),
        ({"port": 99999}, "port"),
        ({"quiet_seconds": 0}, "quiet_seconds"),
        ({"rules": []}, "rules"),
        ({"rules": [RULE, RULE]}, "differ in name"),
        ({"rules": [{**RULE, "name": "a b"}]}, "name"),
        ({"rules": [{**RULE, "send": ["none"]}]}, "no destination"),
        ({"rules": [{**RULE, "model": "brain-structure"}]}, "brain-structure"),
        ({"rules": [{**RULE, "formats": ["png"]}]}, "png"),
        ({"rules": [{**RULE, "formats": ["dicom"]}]}, "of a segmentation"),
        ({"destinations": PACS, "rules": [{**RULE, "formats": ["nifti"], "send": ["pacs"]}]}, "add seg"),
        ({"destinations": {"pacs": "nowhere"}}, "TITLE@host:port"),
        ({"destinations": {"a pacs": "PACS@host:104"}}, "letters"),
        ({"retention": {"disk": "much"}}, "disk"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word) as fault:
        _load(tmp_path, **changes)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("text", ["a: [", "\xff", "- 1"])
def test_what_is_no_rules_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UsageError, match=r"rules\.yaml"):
        load_rules(path)
    with pytest.raises(UsageError, match="readable"):
        load_rules(tmp_path / "none.yaml")


def test_results_of_an_untrained_model_have_no_destination(tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    content = tiny_recipe()
    content["weights"]["trained"] = False
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump(content))
    destinations = {"pacs": "PACS@host:104"}
    with pytest.raises(UsageError, match="not trained"):
        _load(tmp_path, destinations=destinations, rules=[{**RULE, "model": model, "send": ["pacs"]}])
    assert _load(tmp_path, destinations=destinations, rules=[{**RULE, "model": model}]).rules[0].send == ()


def test_the_example_of_the_readme_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    rules = load_rules(tmp_path / "rules.yaml")
    assert rules.rules[0].fits("MR", "Sag T1 3D")
    assert rules.retention == Retention()


def test_waits_grow_and_end() -> None:
    rules = Listening.model_validate({"rules": [RULE], "retry_seconds": 10, "retry_longest": 60})
    assert [rules.back_off(n) for n in (1, 2, 3, 4, 5000)] == [10, 20, 40, 60, 60]
