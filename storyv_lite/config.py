"""What a training run is made of: frozen dataclasses, one doc line per field. Presets are in presets.py.

Knows sizes and settings, not how anything is trained. Widths of the toon model are multiples of 32, so that
4-bit blocks fit. Field names are those of diffusers and transformers where these have one.
"""

from dataclasses import dataclass, field

from storyv_lite.components import Dimensions

STAGES = ("autoencoder", "image_text", "story_lm", "char_ldm", "align", "judge")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Pictures to latents and back (`pretrained` takes a diffusers AutoencoderKL instead of ours)."""

    pretrained: str = ""  # hub id or folder; empty: our own, trained from nothing
    latent_channels: int = 12
    block_out_channels: tuple[int, ...] = (160, 128, 64)  # widths at 16, 32 and 64 pixels
    layers_per_block: tuple[int, ...] = (3, 2, 2)
    patch_size: int = 8  # pixel-unshuffle of the encoder's input


@dataclass(frozen=True)
class TextConfig:
    """The caption encoder, a CLIPTextModel."""

    pretrained: str = ""
    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    max_position_embeddings: int = 64


@dataclass(frozen=True)
class VisionConfig:
    """The picture encoder, a CLIPVisionModelWithProjection; one copy reads characters, one reads frames."""

    pretrained: str = ""
    image_size: int = 128
    patch_size: int = 16
    hidden_size: int = 192
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 6


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser, a UNet2DConditionModel."""

    pretrained: str = ""
    sample_size: int = 16
    block_out_channels: tuple[int, ...] = (64, 128, 192)
    attention_levels: tuple[bool, ...] = ()  # which levels attend; empty: all (SD 1.5: all but the last)
    layers_per_block: int = 1
    attention_head_dim: int = 32  # width of one head
    num_attention_heads: int = 0  # heads at every level, whatever their width (SD 1.5: 8)
    norm_num_groups: int = 16
    prediction_type: str = "v_prediction"
    beta_schedule: str = "squaredcos_cap_v2"
    num_train_timesteps: int = 1000


@dataclass(frozen=True)
class LanguageConfig:
    """The story language model, a LlamaForCausalLM or OPTForCausalLM."""

    pretrained: str = ""
    vocab_size: int = 2048  # pieces of the tokenizer; [IMG] rows come on top
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    max_position_embeddings: int = 4096
    image_tokens: int = 8  # [IMG0]..[IMG7]
    visual_tokens: int = 4  # tokens one picture becomes
    trainable: bool = True  # the paper keeps a 7B model frozen; 5 M parameters have to learn


@dataclass(frozen=True)
class MapperConfig:
    """[IMG] states to conditioning: an encoder-decoder transformer with learned queries (spec C.1)."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 6


@dataclass(frozen=True)
class ModelConfig:
    image_size: int = 256
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)

    def dimensions(self) -> Dimensions:
        """The shapes this configuration gives, for a model that is not built from pretrained parts."""
        llm = self.language
        return Dimensions(
            image_size=self.image_size,
            latent_channels=self.autoencoder.latent_channels,
            latent_size=self.unet.sample_size,
            text_tokens=self.text.max_position_embeddings,
            cross_attention_dim=self.text.hidden_size,
            vision_image_size=self.vision.image_size,
            vocab_size=llm.vocab_size + llm.image_tokens,
            hidden_size=llm.hidden_size,
            num_hidden_layers=llm.num_hidden_layers,
            num_key_value_heads=llm.num_attention_heads,
            head_dim=llm.hidden_size // llm.num_attention_heads,
            max_position_embeddings=llm.max_position_embeddings,
            image_tokens=llm.image_tokens,
            visual_tokens=llm.visual_tokens,
        )


@dataclass(frozen=True)
class StageConfig:
    """What every stage needs to know to run."""

    max_train_steps: int = 1000
    train_batch_size: int = 32
    learning_rate: float = 1e-3
    lr_warmup_steps: int = 100
    lr_min_ratio: float = 0.02  # cosine decay ends at this part of the learning rate
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0  # 0: no moving average
    mixed_precision: str = "auto"  # auto | no | bf16; auto takes bf16 where the processor has it
    log_steps: int = 50
    checkpointing_steps: int = 500
    sample_steps: int = 1000  # a sample sheet every so many steps


@dataclass(frozen=True)
class AutoencoderStage(StageConfig):
    max_train_steps: int = 10600
    train_batch_size: int = 8
    learning_rate: float = 2e-3
    encoder_ratio: float = 0.88  # part of the steps in which the encoder learns too; 0: the decoder alone
    latents_of: str = ""  # a checkpoint whose latents the encoder keeps to, so that later stages stay valid
    kl_weight: float = 1e-5
    gradient_weight: float = 0.5  # L1 of picture gradients: crisp edges
    character_weight: float = 2.0  # extra weight of pixels inside a character's mask: crisp faces


@dataclass(frozen=True)
class ImageTextStage(StageConfig):
    max_train_steps: int = 420
    train_batch_size: int = 64  # frames and single characters


@dataclass(frozen=True)
class StoryLMStage(StageConfig):
    max_train_steps: int = 6400
    train_batch_size: int = 24  # frames
    learning_rate: float = 1.5e-3
    sample_steps: int = 400
    min_frames: int = 2
    max_frames: int = 50
    context_frames: int = 24  # that are read at once; longer stories in the reduced context of bounded memory
    drop_prob: float = 0.3  # share of the other stories of some length that are read in it too
    validation_stories: int = 32  # what a sample step measures


@dataclass(frozen=True)
class CharLDMStage(StageConfig):
    max_train_steps: int = 32050
    train_batch_size: int = 24
    learning_rate: float = 1e-3
    ema_decay: float = 0.998
    uncondition_prob: float = 0.1  # empty caption, no characters
    text_only_prob: float = 0.1  # caption without character pictures
    reg_weight: float = 0.1  # cross-attention supervision by masks (paper: 1e-3)
    mask_loss_prob: float = 0.0  # share of steps whose loss sees characters only (official code: 0.3)
    snr_gamma: float = 5.0  # caps the loss weight (schedule.snr_weights); 0: no weights
    timestep_shift: float = 3.0  # noisy steps, which decide the layout, are likelier: spread_timesteps
    train_text_encoder: bool = True  # the paper freezes CLIP; ours has seen little and learns on
    portrait_prob: float = 0.5  # a character's picture is its portrait, else it is cut out of the frame
    trainable_vision_layers: int = 2  # last layers of the character encoder that learn
    conditioning_ratio: float = (
        0.55  # part of the steps in which encoders and fusion learn; 0: the UNet alone
    )
    processes: int = 1  # that share every batch, one thread each; 2 is faster than 2 threads on a small CPU


@dataclass(frozen=True)
class AlignStage(StageConfig):
    max_train_steps: int = 12100
    train_batch_size: int = 32  # frames
    learning_rate: float = 2e-3
    sample_steps: int = 300
    checkpointing_steps: int = 200
    min_frames: int = 2
    max_frames: int = 50
    context_frames: int = 50  # that are read at once; longer stories in the reduced context of bounded memory
    read_frames: int = 24  # that are read at once when a story is drawn; all that were learned would err more
    drop_prob: float = 0.3  # share of the other stories of some length that are read in it too
    context: str = "interleaved"  # what is known of earlier frames: interleaved | captions (no pictures)
    validation_stories: int = 24  # what a sample step measures
    ce_loss_scale: float = 0.5
    gen_loss_scale: float = 1.0
    contrast_loss_scale: float = 1.0  # find the own target among the batch's (not in the paper)
    answer_loss_scale: float = 5.0  # write the plain caption behind the [IMG] tokens (not in the paper)
    diffusion_loss_scale: float = 0.0  # the official second trainer's objective, through the frozen UNet
    processes: int = 1  # as in char_ldm; each reads stories of its own, one at least, however long


@dataclass(frozen=True)
class JudgeStage(StageConfig):
    """The judge belongs to no model: its shape stands here, so that it can be added to any checkpoint."""

    max_train_steps: int = 4500
    train_batch_size: int = 32
    learning_rate: float = 2e-3
    ema_decay: float = 0.99
    image_size: int = 128
    block_out_channels: tuple[int, ...] = (48, 96, 144)  # widths at 32, 16 and 8 cells
    layers_per_block: int = 2
    decoded_share: float = 0.125  # of a batch passes through the autoencoder
    test_frames: int = 1000  # real frames of test seeds that it is tested on


@dataclass(frozen=True)
class DataConfig:
    """What is trained on: the cartoon world, drawn here."""

    folder: str = ""  # in the project's dataset format; refused until it can be trained on
    frames: int = 24000  # frames drawn once into a memory-mapped file


@dataclass(frozen=True)
class TrainConfig:
    """Everything that makes a training run reproducible."""

    preset: str = "toon"
    seed: int = 42
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    autoencoder: AutoencoderStage = field(default_factory=AutoencoderStage)
    image_text: ImageTextStage = field(default_factory=ImageTextStage)
    story_lm: StoryLMStage = field(default_factory=StoryLMStage)
    char_ldm: CharLDMStage = field(default_factory=CharLDMStage)
    align: AlignStage = field(default_factory=AlignStage)
    judge: JudgeStage = field(default_factory=JudgeStage)
