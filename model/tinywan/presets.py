"""The sizes of one architecture, from a test's to Wan2.2's."""

from dataclasses import asdict, dataclass, replace
from dataclasses import fields as dataclass_fields
from typing import Any, Literal

from tinywan.dit import DiTConfig
from tinywan.errors import CheckpointError, ConfigError
from tinywan.text import TextEncoderConfig
from tinywan.vae import VAEConfig, check_video_size


@dataclass(frozen=True)
class ModelConfig:
    """Everything that a pipeline is built from, except the weights."""

    name: str
    text: TextEncoderConfig
    vae: VAEConfig
    dit: DiTConfig
    height: int = 96  # pixels, of a clip unless the caller says otherwise
    width: int = 96
    num_frames: int = 17  # 1 + 4k
    fps: int = 8
    num_inference_steps: int = 20
    shift: float = 3.0  # of the noise levels in sampling; train.py has its own
    boundary_ratio: float = 0.875  # from here up the high-noise expert works; -1 is always, 2 never
    sampler: str = "unipc"
    world: Literal["first", "whole"] = "first"  # of the theatre, that it was trained on

    def __post_init__(self) -> None:
        check_video_size(self.num_frames, self.height, self.width)
        if not (0 <= self.boundary_ratio <= 1 or self.boundary_ratio in (-1, 2)):
            raise ConfigError(
                f"boundary_ratio={self.boundary_ratio} is no noise level: use 0 to 1, e.g. 0.875; -1 leaves all of "
                "them to the high-noise expert, 2 to the low-noise one"
            )
        for name, mine, other, theirs in (
            ("text.dim", self.text.dim, "dit.text_dim", self.dit.text_dim),
            ("vae.latent_channels", self.vae.latent_channels, "dit.in_channels", self.dit.in_channels),
        ):  # fmt: skip
            if mine != theirs:
                raise ConfigError(f"{name}={mine} and {other}={theirs}: use one number for both")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelConfig":
        """Read what `to_dict` wrote.

        Args:
            fields: as parsed from JSON.

        Returns:
            The configuration.

        Raises:
            CheckpointError: where a field is missing or unknown.
            ConfigError: where what it says cannot work.
        """

        def tuples(part: dict[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}

        for part, kind in (("text", TextEncoderConfig), ("vae", VAEConfig), ("dit", DiTConfig)):
            lacking = {field.name for field in dataclass_fields(kind)} - set(fields.get(part) or ())
            if lacking:  # a default might not be what the weights were made with
                raise CheckpointError(
                    f"this is not the configuration of a tinywan of this version: {part} lacks "
                    f"{', '.join(sorted(lacking))}"
                )
        try:
            vae = tuples(fields["vae"])
            patch = vae.pop("patch", VAEConfig.patch)  # stored as long as it could be chosen
            if patch != VAEConfig.patch:
                raise CheckpointError(
                    f"the VAE folds {patch} x {patch} pixels, and this tinywan's {VAEConfig.patch} x "
                    f"{VAEConfig.patch}: read it with the version that wrote it"
                )
            return cls(
                **{
                    **fields,
                    "text": TextEncoderConfig(**tuples(fields["text"])),
                    "vae": VAEConfig(**vae),
                    "dit": DiTConfig(**tuples(fields["dit"])),
                }
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"this is not the configuration of a tinywan of this version: {error}"
            ) from error


KEYFRAMES = 4 + VAEConfig.latent_channels  # channels of what is given: a mask, and latents
TINY = ModelConfig(
    "tiny",
    TextEncoderConfig(),
    VAEConfig(),
    DiTConfig(condition_channels=KEYFRAMES),
    shift=1.1,  # latents are about 0.37 large: noise hides them as 3 would if they were 1 large
    boundary_ratio=0.72,  # for the same reason, where Wan has 0.875
    world="whole",
)

PRESETS = {
    "tiny": TINY,
    "small": replace(
        TINY,
        name="small",
        height=128,
        width=128,
        num_frames=33,
        vae=VAEConfig(encoder_widths=(96, 192), decoder_widths=(128, 256)),
        dit=DiTConfig(
            condition_channels=KEYFRAMES,
            dim=384,
            num_heads=8,
            spatial_head_dim=32,
            temporal_head_dim=24,
            num_layers=10,
            ffn_dim=1536,
            expert_dim=512,
            spatial_windows=(2, 2, 3, 3, 5, 5, 7, 7, None, None),
            temporal_windows=(1, 1, 1, 2, 2, 2, 4, 4, None, None),
        ),
    ),
    "debug": ModelConfig(
        "debug",
        TextEncoderConfig(dim=32, num_heads=2, num_layers=1, ffn_dim=64),
        VAEConfig(
            latent_channels=16,
            encoder_widths=(8, 16),
            decoder_widths=(8, 16),
            encoder_depth=1,
            decoder_depth=1,
            latents_mean=(0.0,) * 16,
            latents_std=(1.0,) * 16,
        ),
        DiTConfig(
            dim=32,
            in_channels=16,
            num_heads=2,
            spatial_head_dim=12,
            temporal_head_dim=8,
            num_layers=2,
            ffn_dim=128,
            text_dim=32,
            freq_dim=32,
            spatial_windows=(2, None),
            temporal_windows=(1, None),
            mask_padding=False,  # so that tests see Wan's way too
            expert_dim=44,
        ),
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=4,
    ),
}

# Wan's own denoisers: dit.py with full attention, dense, positions rotary alone, padding attended.
# Text encoder and VAE of the real thing are not built here; `wan.load_wan` reads the weights.
_WAN = DiTConfig(
    in_channels=16,
    patch_size=(1, 2, 2),
    text_dim=4096,
    text_len=512,
    attention="full",
    absolute_positions=False,
    mask_padding=False,
    num_experts=0,
)
WAN = {
    "wan2.1-t2v-1.3b": replace(_WAN, dim=1536, num_heads=12, num_layers=30, ffn_dim=8960),
    "wan2.2-t2v-a14b": replace(_WAN, dim=5120, num_heads=40, num_layers=40, ffn_dim=13824),
}


def preset(name: str) -> ModelConfig:
    """Look up a preset.

    Args:
        name: one of `PRESETS`.

    Returns:
        Its configuration.

    Raises:
        ConfigError: for another name.
    """
    if name in WAN:
        raise ConfigError(
            f"{name!r} is a denoiser alone, whose text encoder and VAE are not built here: use "
            f"DiT(presets.WAN[{name!r}]), or wan.load_wan for its weights"
        )
    if name not in PRESETS:
        raise ConfigError(f"no preset is called {name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]
