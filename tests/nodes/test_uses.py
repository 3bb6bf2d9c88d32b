"""What users do around KSampler is right, or refused in a sentence before anything is sampled; all of it: -m slow."""

import json

import pytest
import sampler_uses
from sampler_uses import inside_comfyui
from uses.verdicts import LATE, MISSING, REFUSED, RIGHT, STOCK, verdict, verdicts

REPRESENTATIVE = [
    "InpaintModelConditioning, inpainting model", "ConditioningSetMask, mask bounds", "SelfAttentionGuidance",
    "DualCFGGuider, nested", "FlipSigmas",
]  # fmt: skip
"""Uses of which no other test here tries one like it."""
TOKENS_THAT_JUMP = {"HyperTile, random tiles", "TomePatchModel"}
"""What docs/uses.md names as wrong: they draw random numbers, which 0 iterations leave as KSampler draws them."""


def judged(row):
    """Return the words of the verdicts on a use, after a check that it does something."""
    if "missing" not in row and not row["idle"]:
        assert row["stock"]["values"].get("effect", 1.0) > 1e-4, f"{row['use']} does nothing here"
    return {part: f"{each.word}: {each.why}" for part, each in verdicts(row).items() if not each.is_good}


@pytest.fixture(scope="module")
def rows():
    return {row["use"]: row for row in inside_comfyui(*REPRESENTATIVE)}


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_use_is_right_or_refused_before_anything_is_sampled(rows, name):
    assert judged(rows[name]) == {}


@pytest.mark.slow
def test_all_uses_are_right_or_refused_before_anything_is_sampled():
    (version,) = inside_comfyui()
    bad = {row["use"]: judged(row) for row in inside_comfyui(*version["uses"])}
    assert set(bad) == set(version["uses"])
    assert {name: words for name, words in bad.items() if words and name not in TOKENS_THAT_JUMP} == {}


def tried(error="", own=True, stages=0, **values):
    return {"error": error, "own": own, "stages": stages, "values": values}


@pytest.mark.parametrize("attempt, word", [
    (tried(replay=1e-6, gain=0.1), RIGHT), (tried("ValueError: expected two"), REFUSED),
    (tried("ValueError: expected two", stages=1), LATE), (tried("TypeError: 'NoneType'", own=False), "crash"),
    (tried(replay=1e-4, gain=0.1), "wrong"), (tried(replay=float("nan"), gain=0.1), "wrong"),
    (tried(replay=1e-6, gain=0.0), "wrong"),
])  # fmt: skip
def test_a_verdict_is_good_only_where_all_is_right_or_nothing_was_sampled(attempt, word):
    found = verdict(attempt, {"gain": 0.0, "replay": 1e-5})
    assert found.word == word and found.is_good == (word in (RIGHT, REFUSED))


def test_a_use_that_comfyui_lacks_or_fails_at_is_not_held_against_the_pack():
    broken = {"rounding": 1e-5, "slope": 5e-3, "stock": tried("RuntimeError: shapes", own=False)}
    assert {each.word for each in verdicts({"missing": "NAGuidance"}).values()} == {MISSING}
    assert {each.word for each in verdicts(broken).values()} == {STOCK}


def test_the_page_counts_what_is_good_and_marks_what_is_not(tmp_path, monkeypatch):
    right = {
        "group": "Things", "rounding": 1e-5, "slope": 5e-4, "stock": tried(), "start": tried(euler=1e-7, replay=0.0),
        "gradient": tried(along=1e-4, across=1e-3), "climb": tried(replay=1e-7, gain=0.1),
        "search": tried(replay=1e-7, singles=1e-7, gain=0.1),
    }  # fmt: skip
    late = {**right, "climb": tried("ValueError: no | more", stages=9)}
    runs = {"a mask": right, "a cache": late, "a node": {"missing": "Node"}}
    file = tmp_path / "sampler_uses_1.2.3.json"
    settings = {"comfyui": "1.2.3", "torch": "2.14"}
    file.write_text(json.dumps({"settings": settings, "runs": runs}))
    monkeypatch.setattr(sampler_uses, "ROOT", tmp_path)
    text = sampler_uses.page([file])
    assert "2 uses, 1 of them right or refused" in text and "Not in this version: a node." in text
    assert "| a mask | right | right | right |  |" in text
    assert "| a cache | right | **refused late** | right | no / more |" in text
