"""The denoiser: diffusers' own UNet2DConditionModel at any size. Knows shapes, holds no layer of its own."""

from diffusers import UNet2DConditionModel

from storyv_lite.config import UNetConfig
from storyv_lite.modeling.published import from_pretrained


def build_unet(config: UNetConfig, latent_channels: int, cross_attention_dim: int) -> UNet2DConditionModel:
    """The pretrained denoiser that is named, else a new one.

    It maps latents (B, latent_channels, sample_size, sample_size), timesteps and conditioning
    (B, T, cross_attention_dim) to a prediction of the latents' shape.
    """
    if config.pretrained:
        return from_pretrained(
            UNet2DConditionModel, config.pretrained, "model.unet.pretrained", subfolder="unet"
        )
    widths = config.block_out_channels
    attends = config.attention_levels or (True,) * len(widths)
    heads = tuple(config.num_attention_heads or width // config.attention_head_dim for width in widths)
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        block_out_channels=widths,
        layers_per_block=config.layers_per_block,
        attention_head_dim=heads,  # diffusers' name for a number of heads
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=cross_attention_dim,
    )
