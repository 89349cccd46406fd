"""Recorded cross-attention and the loss that keeps characters inside their masks."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from storyv_lite.config import UNetConfig
from storyv_lite.modeling.attention import attend_plainly, attention_mask_loss
from storyv_lite.modeling.unet import build_unet

TINY = UNetConfig(sample_size=16, block_out_channels=(32, 32, 32), attention_head_dim=16)


def tiny() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(TINY, latent_channels=4, cross_attention_dim=32).eval()


def call(unet: UNet2DConditionModel) -> torch.Tensor:
    torch.manual_seed(1)
    latents, text = torch.randn(2, 4, 16, 16), torch.randn(2, 6, 32)
    out: torch.Tensor = unet(latents, torch.tensor([3, 700]), text).sample
    return out


def looking(weight: float, side: int = 8, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of which token 2 has `weight` on the left half, and the mask of the left half."""
    mask = torch.zeros(1, side, side)
    mask[:, :, : side // 2] = 1
    attention = torch.zeros(1, 2, side * side, tokens)
    attention[:, :, :, 2] = torch.where(mask.flatten() > 0, weight, 1 - weight)
    return attention, mask


def word(*positions: int) -> torch.Tensor:
    """Characters that are told by one token of five each."""
    return torch.nn.functional.one_hot(torch.tensor(positions, dtype=torch.long), 5)


def test_recording_does_not_change_the_prediction() -> None:
    unet = tiny()
    with torch.no_grad():
        before = call(unet)
        attend_plainly(unet, record=True)
        recorded = call(unet)
    torch.testing.assert_close(recorded, before, rtol=1e-4, atol=1e-5)


def test_cross_attention_of_the_two_finer_levels_is_recorded() -> None:
    unet = tiny()
    processors = attend_plainly(unet, record=True)
    call(unet)
    shapes = [tuple(p.probabilities.shape) for p in processors if p.probabilities is not None]
    assert shapes.count((2, 2, 256, 6)) == 3 and shapes.count((2, 2, 64, 6)) == 3
    assert len(shapes) == len(processors) == 6
    assert processors[0].probabilities is not None
    assert processors[0].probabilities.sum(-1).allclose(torch.ones(()))


def stable_diffusion() -> UNet2DConditionModel:
    """Its shapes, on a device that computes nothing."""
    config = UNetConfig(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_levels=(True, True, True, False),
        layers_per_block=2,
        num_attention_heads=8,
        norm_num_groups=32,
    )
    with torch.device("meta"):
        return build_unet(config, latent_channels=4, cross_attention_dim=768)


def test_stable_diffusion_has_eleven_supervised_modules() -> None:
    unet = stable_diffusion()
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert len(attend_plainly(unet, record=True)) == 11


def test_an_accelerator_fuses_only_the_attentions_of_many_cells() -> None:
    ours, large = tiny().to("meta"), stable_diffusion()
    attend_plainly(ours, record=True)
    attend_plainly(large, record=True)
    assert not any(isinstance(p, AttnProcessor2_0) for p in ours.attn_processors.values())
    fused = {name for name, p in large.attn_processors.items() if isinstance(p, AttnProcessor2_0)}
    ends = {name.split(".attentions")[0] for name in fused}
    assert ends == {"down_blocks.0", "down_blocks.1", "up_blocks.2", "up_blocks.3"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_gradients_are_numbers_however_low_all_scores_are(device: str) -> None:
    unet = tiny().to(device)
    attend_plainly(unet, record=True)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name.endswith("to_q.weight"):
                weight.mul_(100)
            if name.endswith("to_k.weight"):  # opposite to the query of the same state, if it has one
                weight.copy_(-unet.get_parameter(name.replace("to_k", "to_q")))
    latents, text = torch.randn(2, 4, 16, 16, device=device), torch.randn(2, 6, 32, device=device)
    with torch.autocast(device, torch.bfloat16):
        drawn = unet(latents, torch.tensor([3, 700], device=device), text).sample
    drawn.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in unet.parameters() if p.grad is not None)


def test_the_loss_is_lower_when_attention_is_inside_the_mask() -> None:
    zero = torch.tensor([0])
    values = []
    for weight in (0.9, 0.5, 0.1):
        attention, mask = looking(weight)
        values.append(float(attention_mask_loss([attention], mask, zero, word(2))))
    assert values == pytest.approx([-0.8, 0.0, 0.8], abs=1e-4)


def test_characters_are_averaged_within_a_sample_and_empty_samples_count_nothing() -> None:
    attention, mask = looking(0.9)
    two = torch.cat([attention, attention])
    once = attention_mask_loss([two], mask, torch.tensor([1]), word(2))
    twice = attention_mask_loss([two], mask.repeat(2, 1, 1), torch.tensor([1, 1]), word(2, 2))
    assert float(once) == pytest.approx(-0.4, abs=1e-4)
    assert float(twice) == pytest.approx(float(once), abs=1e-4)
    none = torch.zeros(0, dtype=torch.long)
    assert float(attention_mask_loss([two], torch.zeros(0, 8, 8), none, word())) == 0.0


def test_what_several_words_of_a_character_look_at_adds_up() -> None:
    zero = torch.tensor([0])
    attention, mask = looking(0.9)
    attention[:, :, :, 1] = attention[:, :, :, 2] / 9
    name = float(attention_mask_loss([attention], mask, zero, word(2)))
    other = float(attention_mask_loss([attention], mask, zero, word(1)))
    both = float(attention_mask_loss([attention], mask, zero, word(1) + word(2)))
    assert both == pytest.approx(name + other, abs=1e-5) and name != other


def test_masks_are_resized_softly() -> None:
    attention, _ = looking(0.9, side=8)
    fine = torch.zeros(1, 16, 16)
    fine[:, :, :8] = 1
    value = attention_mask_loss([attention], fine, torch.tensor([0]), word(2))
    assert float(value) < -0.6
