"""The variants of the model: what they share, how they are made in pieces, what the page says."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storyv_lite.benchmarks import ablations
from storyv_lite.benchmarks.ablations import BUDGET, ORDERS, VARIANTS
from storyv_lite.benchmarks.orders import Measured, compare, gain, markdown, verdict
from storyv_lite.benchmarks.scores import Estimate, Row, Shown, estimates
from storyv_lite.benchmarks.variants import Variant, Workplace
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.presets import load_config
from storyv_lite.train.toonworld.scene import Actor

STORIES = 40
STEPS = tuple(f"{stage}.max_train_steps=2" for stage in ("image_text", "char_ldm", "story_lm", "align"))
BY_NAME = {variant.name: variant for variant in VARIANTS}


def workplace(out: Path, checkpoint: Path, variants: tuple[Variant, ...] = VARIANTS) -> Workplace:
    return Workplace(out, checkpoint, variants, "micro", STEPS, "cpu", frames=2, seed=0)


def rows(right: int) -> list[Row]:
    """One frame of each story, the first `right` of them drawn as told."""
    truth, wrong = Shown("snow", (Actor("milo", "waving"),)), Shown("snow", (Actor("luna", "waving"),))
    return [
        Row(story, 1, "", False, "name", 0, 0, False, truth, truth if story < right else wrong)
        for story in range(STORIES)
    ]


def measured(**right: int) -> dict[str, Measured]:
    return {
        name.replace("_", "-"): Measured(estimates(rows(count), STORIES), rows(count))
        for name, count in right.items()
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_the_settings_of_every_variant_are_known(variant: Variant) -> None:
    config = load_config("toon", None, (*BUDGET, *variant.settings))
    assert config.char_ldm.max_train_steps == 3000
    assert bool(variant.settings) == (config != load_config("toon", None, BUDGET))


def test_names_are_unique_and_every_order_has_two_variants_with_figures_in_the_paper_in_that_order() -> None:
    assert len(BY_NAME) == len(VARIANTS)
    for order in ORDERS:
        lower, higher = BY_NAME[order.lower].paper, BY_NAME[order.higher].paper
        assert lower is not None and higher is not None and lower < higher


def test_variants_share_the_stages_that_their_settings_do_not_change(tmp_path: Path) -> None:
    place = workplace(tmp_path, tmp_path)
    homes = {
        name: [place.home(BY_NAME[name], stage).parent.name for stage in BY_NAME[name].stages()]
        for name in ("char-ldm", "no-attention-loss", "ldm-references", "interleaved", "image-tokens-4")
    }
    assert BY_NAME["interleaved"].stages() == ("image_text", "char_ldm", "story_lm", "align")
    assert homes == {
        "char-ldm": ["ldm", "char-ldm"],
        "no-attention-loss": ["ldm", "no-attention-loss"],
        "ldm-references": ["ldm", "ldm"],
        "interleaved": ["ldm", "char-ldm", "captions-only", "interleaved"],
        "image-tokens-4": ["ldm", "char-ldm", "image-tokens-4", "image-tokens-4"],
    }


def test_an_order_is_repeated_only_where_its_whole_interval_is_above_zero() -> None:
    assert verdict(Estimate(3.0, 1.0, 5.0)) == "repeated"
    assert verdict(Estimate(3.0, -1.0, 5.0)) == "not repeated: within chance"
    assert verdict(Estimate(-3.0, -5.0, -1.0)) == "not repeated: the other way round"
    assert verdict(Estimate(None)) == "not measured"


def test_the_page_says_which_order_is_not_repeated(tmp_path: Path) -> None:
    found = measured(ldm=10, char_ldm=35, no_attention_loss=36, captions_only=30, interleaved=10)
    place = workplace(tmp_path, tmp_path)
    record = ablations.make_record(place, found, STORIES, "", "python -m ablations")
    verdicts = {(one["lower"], one["higher"]): one["verdict"] for one in record["orders"]}
    assert verdicts["ldm", "char-ldm"] == "repeated"
    assert verdicts["no-attention-loss", "char-ldm"] == "not repeated: within chance"
    assert verdicts["captions-only", "interleaved"] == "not repeated: the other way round"
    assert verdicts["image-tokens-4", "interleaved"] == "not measured"
    page = markdown(json.loads(json.dumps(record)))
    row = next(line for line in page.splitlines() if "not repeated: the other way round" in line)
    assert "StoryV, captions only" in row and "+16.19" in row and "-50.0 (" in row
    assert "| Char-LDM | original | 87.5 (" in page and ") | none | 87.5 (" in page
    assert "| StoryV, 4 [IMG] tokens | references | not measured |" in page
    assert "2 of 9 orders are repeated" in page


def test_the_gain_is_counted_over_the_same_stories() -> None:
    order = next(order for order in ORDERS if order.lower == "ldm" and order.higher == "char-ldm")
    same = gain(order, measured(ldm=20, char_ldm=20), STORIES)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert compare([order], VARIANTS, measured(ldm=20), STORIES)[0]["gain"] is None


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations.main(["--only", "story-dalle"]) == 2
    assert "`story-dalle`" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_lend_its_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="autoencoder"):
        workplace(tmp_path / "out", tmp_path).begin(tmp_path)


@pytest.mark.slow
def test_two_variants_are_trained_and_judged_in_pieces_and_share_a_stage(tmp_path: Path) -> None:
    from storyv_lite.train import recipes

    checkpoint = tmp_path / "micro"
    assert recipes.run("micro", device="cpu", out=checkpoint, settings=STEPS)
    judge, two = checkpoint / "judge", (BY_NAME["ldm"], BY_NAME["captions-only"])
    place, told = workplace(tmp_path / "out", checkpoint, two), list[str]()
    pieces = 0
    while not ablations.run(replace(place, deadline=_soon(pieces)), (), 2, judge, told.append):
        pieces += 1
    assert pieces > 1
    found = ablations.measured(place, 2)
    assert set(found) == {"ldm", "captions-only"} and len(found["ldm"].rows) == 4
    assert {row.story for row in found["ldm"].rows} == {0, 1}
    assert sorted(path.name for path in (place.out / "captions-only").iterdir() if path.is_dir()) == [
        "align", "align-bundle", "char_ldm", "judged", "story_lm",
    ]  # fmt: skip
    before = {file: file.stat().st_mtime_ns for file in place.out.rglob("*.safetensors")}
    assert ablations.run(place, (), 2, judge, told.append)
    assert before == {file: file.stat().st_mtime_ns for file in place.out.rglob("*.safetensors")}
    record = ablations.make_record(place, found, 2, "", "python -m ablations")
    assert [list(row["stages"]) for row in record["rows"]] == [list(variant.stages()) for variant in two]
    with pytest.raises(ConfigError, match="another `seed`"):
        replace(place, seed=1).begin(judge)


def _soon(tries: int) -> float:
    """A deadline after a step or a story or two; later each time, so that a slow machine gets there too."""
    return time.monotonic() + 0.5 + 0.1 * tries
