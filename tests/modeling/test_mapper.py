"""The mapper: shapes, what matters to it, and what is stored."""

from pathlib import Path

import torch

from storyv_lite.modeling.mapper import Mapper


def make_mapper() -> Mapper:
    torch.manual_seed(0)
    mapper: Mapper = Mapper(
        hidden_size_in=32,
        hidden_size=16,
        layers=2,
        heads=2,
        intermediate_size=32,
        image_tokens=8,
        text_tokens=12,
        cross_attention_dim=24,
    ).eval()
    return mapper


def test_image_states_become_one_vector_per_text_position() -> None:
    assert make_mapper()(torch.randn(3, 8, 32)).shape == (3, 12, 24)


def test_every_image_token_and_every_query_matters() -> None:
    mapper = make_mapper()
    states = torch.randn(1, 8, 32, requires_grad=True)
    mapper(states).square().sum().backward()
    assert states.grad is not None and (states.grad.abs().sum(-1) > 0).all()
    learned = mapper.query_embeds.grad
    assert learned is not None and (learned.abs().sum(-1) > 0).all()


def test_stories_of_a_batch_do_not_touch_each_other() -> None:
    mapper = make_mapper()
    states = torch.randn(2, 8, 32)
    torch.testing.assert_close(mapper(states)[1:], mapper(states[1:]))


def test_a_saved_mapper_loads_with_the_same_output(tmp_path: Path) -> None:
    mapper = make_mapper()
    mapper.save_pretrained(tmp_path)
    again = Mapper.from_pretrained(tmp_path).eval()
    states = torch.randn(1, 8, 32)
    torch.testing.assert_close(again(states), mapper(states))


def test_the_sizes_of_the_paper_give_its_parameter_count() -> None:
    with torch.device("meta"):
        mapper = Mapper(
            hidden_size_in=4096,
            hidden_size=512,
            layers=4,
            heads=4,
            intermediate_size=2048,
            image_tokens=8,
            text_tokens=77,
            cross_attention_dim=768,
        )
    assert sum(parameter.numel() for parameter in mapper.parameters()) == 31_958_784
