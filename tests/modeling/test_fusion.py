"""Fusion of names and pictures: where it writes, what it leaves alone, what it computes."""

import torch

from storyv_lite.modeling.fusion import Fusion


def make(hidden_size: int = 32) -> Fusion:
    torch.manual_seed(0)
    fusion: Fusion = Fusion(hidden_size).eval()
    return fusion


def test_no_characters_leave_the_text_untouched() -> None:
    text = torch.randn(2, 7, 32)
    none = torch.zeros(0, dtype=torch.long)
    assert torch.equal(make()(text, torch.zeros(0, 32), none, none), text)


def test_only_the_fused_positions_are_overwritten() -> None:
    text, pictures = torch.randn(2, 7, 32), torch.randn(3, 32)
    rows, columns = torch.tensor([0, 0, 1]), torch.tensor([2, 5, 3])
    fused = make()(text, pictures, rows, columns)
    changed = (fused != text).any(-1)
    assert changed.nonzero().tolist() == [[0, 2], [0, 5], [1, 3]]


def test_the_fused_vector_follows_the_recipe() -> None:
    fusion = make()
    text, picture = torch.randn(1, 4, 32), torch.randn(1, 32)
    token = text[:, 1]
    first = fusion.mlp1
    hidden = torch.nn.functional.layer_norm(torch.cat([token, picture], -1), (64,))
    merged = first.fc2(torch.nn.functional.gelu(first.fc1(hidden))) + token
    expected = fusion.layer_norm(fusion.mlp2(merged) + merged)
    fused = fusion(text, picture, torch.tensor([0]), torch.tensor([1]))
    torch.testing.assert_close(fused[:, 1], expected)


def test_it_has_as_many_weights_as_the_published_one() -> None:
    with torch.device("meta"):
        fusion = Fusion(768)
    assert sum(p.numel() for p in fusion.parameters()) == 2_958_336
