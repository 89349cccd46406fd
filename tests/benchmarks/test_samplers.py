"""The page of sampler agreement; that samplers agree is tested beside them."""

from storyv_lite.benchmarks.samplers import PREDICTIONS, STEPS, TOLERANCE, Agreement, compare, markdown


def test_the_page_shows_the_worst_of_each_sampler_prediction_and_number_of_steps() -> None:
    found = [
        Agreement("ddim", prediction, schedule, "leading", steps, difference)
        for prediction in PREDICTIONS
        for steps in STEPS
        for schedule, difference in (("scaled_linear", 1e-6), ("squaredcos_cap_v2", steps * 1e-6))
    ]
    page = markdown(found)
    assert "| `ddim` | `v_prediction` | 1.0e-06 | 2.0e-06 | 4.0e-06 | 1.2e-05 | 3.0e-05 |" in page
    assert f"bound is {TOLERANCE:g}" in page
    assert "python -m storyv_lite.benchmarks.samplers --write" in page


def test_a_comparison_is_relative_to_the_largest_element() -> None:
    """Euler's samples are thousands of times larger than the others': an absolute bound would mean less."""
    found = compare("euler", "epsilon", "squaredcos_cap_v2", "leading", 2)
    assert 0 < found.difference < TOLERANCE
