"""Numbers: clip geometry, network sizes, noise schedule, and the presets LOOPY and PUPPET.

Every size that other modules need is a field or a property here and nowhere else. A checkpoint
stores its `LoopyConfig` in the file's header, so a model always knows its own geometry.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

SAMPLE_RATE = 16_000  # Hz, what wav2vec hears
LARGEST_SIZE = 1_000_000  # of anything that a file's header may ask for
WIDEST = 8192  # channels or layers of the networks beside Loopy in a file
LONGEST_SPAN = 10_000  # past frames that motion frames can come from, 400 s; all of them are kept

Sampling = Literal["uniform", "mean", "random"]
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
"""How a segment of past frames becomes motion frames (paper 3.2; 3.5.2 compares the three)."""

Temporal = Literal["dual", "joint", "intra", "hallo"]
TEMPORALS: tuple[Temporal, ...] = get_args(Temporal)
"""The temporal layers of an attention site (paper 3.2, ablations in 3.5.2).

dual: the paper's. Inter-clip layer, audio, intra-clip layer; only the first sees motion frames.
joint: audio, then one layer in which motion frames stand beside the noisy frames, as in the earlier
    methods of 3.2. Table 3's "1 temp. + 20 MF", and its "w/o inter-clip temp." too: the text says
    that removing the inter-clip layer makes the model "similar to previous methods", and these see
    motion frames. It leaves open how many; "extending the motion frame length to 20" of the single
    layer says that the row without this has fewer, and the other methods' number is 4.
intra: audio, then a layer that sees the noisy frames alone. The other reading of "w/o inter-clip
    temp.": nothing looks across clips, motion frames are not used at all.
hallo: for imported weights of Hallo. As joint, but motion frames ask as well, in every attention, and
    they are what the reference net's self-attention read instead of what left the site. They are carried
    through the layer at every step, so this costs more than joint.
"""

BetaSchedule = Literal["scaled_linear", "linear"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]
"""Of the noise schedule, by diffusers' names."""

AudioLayer = Literal["attention", "transformer"]
AUDIO_LAYERS: tuple[AudioLayer, ...] = get_args(AudioLayer)
"""What reads the voice at an attention site. attention: the paper's cross-attention (3.3).
transformer: for imported weights of Hallo, a transformer block of its own width around it.
"""


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError with one sentence."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def check_sizes(network: str, sizes: dict[str, Any]) -> None:
    """Raises ValueError for what no network is built with: all of it comes out of a file's header."""
    for name, value in sizes.items():
        several = value if isinstance(value, (list, tuple)) else [value]
        if not all(type(size) is int and 0 < size <= WIDEST for size in several):
            raise ValueError(f"{network} with {name} = {value!r} is not built.")


@dataclass(frozen=True)
class ClipGeometry:
    """How video time is cut (paper 3.2, 3.3, 3.5). All lengths are frames."""

    fps: int = 25
    frames: int = 12  # frames generated at once: one clip
    stride: int = 4  # s of eq. 2: motion frames kept per segment
    ratio: int = 2  # r of eq. 2: growth of the segments
    segments: int = 5
    audio_context: int = 2  # frames heard before and after the current one
    sampling: Sampling = "uniform"  # what training uses, and inference unless told otherwise

    def __post_init__(self) -> None:
        check_choice("sampling", self.sampling, SAMPLINGS)
        least = {"fps": 1, "frames": 2, "stride": 1, "ratio": 1, "segments": 1, "audio_context": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}.")
        if self.motion_frames > LONGEST_SPAN or self.motion_span > LONGEST_SPAN:
            raise ValueError(
                f"{self.segments} segments that start with {self.stride} frames and grow by {self.ratio} reach "
                f"more than {LONGEST_SPAN} frames back; choose a smaller ratio, or a larger stride and fewer segments."
            )

    @property
    def motion_frames(self) -> int:
        """Abstracted motion frames that enter the reference net (the paper's 20)."""
        return self.stride * self.segments

    @property
    def motion_span(self) -> int:
        """Past frames that the segments cover (the paper's 124)."""
        return sum(self.stride * self.ratio**k for k in range(self.segments))

    @property
    def audio_window(self) -> int:
        return 2 * self.audio_context + 1

    @property
    def motion_ages(self) -> tuple[int, ...]:
        """Eq. 2: age of each abstracted motion frame; 0 is the frame just before the clip."""
        s, r = self.stride, self.ratio
        starts = [s * sum(r**j for j in range(k)) for k in range(self.segments)]
        return tuple(starts[i // s] + r ** (i // s) * (i % s) for i in range(self.motion_frames))


@dataclass(frozen=True)
class UNetConfig:
    """One SD1.5-shaped U-Net; the reference net and the denoising net share these sizes."""

    latent_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)  # which levels have attention sites
    layers: int = 2  # residual blocks per level on the way down; one more on the way up
    heads: int = 8
    groups: int = 32
    spatial_ff: int = 4  # width of the feed-forward layer, in multiples of the channels
    temporal_ff: int = 4
    intra_attentions: int = 2  # AnimateDiff's motion module has two; the inter-clip layer has one
    temporal: Temporal = "dual"
    # Intra-clip layers also beside the residual blocks of levels without attention: SD1.5 has 16
    # attention sites, AnimateDiff's motion modules stand in 21 places. For imported models.
    temporal_everywhere: bool = False

    @property
    def time_channels(self) -> int:
        return 4 * self.channels[0]

    @property
    def sees_motion_frames(self) -> bool:
        return self.temporal != "intra"

    def __post_init__(self) -> None:
        check_choice("temporal", self.temporal, TEMPORALS)
        if len(self.attention) != len(self.channels):
            raise ValueError(f"attention {self.attention} and channels {self.channels} differ in length.")
        for width in self.channels:
            if width % self.groups or width % self.heads:
                raise ValueError(
                    f"{width} channels cannot be cut into {self.groups} groups "
                    f"and {self.heads} heads; choose a common multiple."
                )


@dataclass(frozen=True)
class AudioConfig:
    """Speech features and the two modules that read them (paper 3.3)."""

    layers: int = 12  # the last hidden states of wav2vec that are stacked
    width: int = 768  # channels of one hidden state
    hidden: int = 512
    tokens: int = 32  # what the cross-attention reads per frame
    token_width: int = 768
    layer: AudioLayer = "attention"
    norm: bool = True  # of wav2vec's hidden states before their projection; imported projections have none
    latent_embeddings: int = 128  # audio-to-latents: learnable keys and values
    latent_width: int = 256  # audio-to-latents: attention width
    to_latents: bool = True  # False: the cross-attention alone hears (table 3, "w/o A2L")
    # `movement.log_variance` of Glo and Exp (appendix B) at "calm" and "lively": from what shows in the pictures to the
    # most of the training clips; the Audio-to-Latents node maps its level 0..1 onto them.
    movement_range: tuple[float, float] = (-2.0, 0.0)
    expression_range: tuple[float, float] = (-3.5, -1.0)

    def __post_init__(self) -> None:
        check_choice("layer", self.layer, AUDIO_LAYERS)


@dataclass(frozen=True)
class DiffusionConfig:
    """Noise schedule; defaults are SD1.5's."""

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: BetaSchedule = "scaled_linear"
    prediction: Prediction = "epsilon"
    zero_terminal_snr: bool = False
    spacing: Spacing = "leading"
    steps_offset: int = 1  # only "leading" uses it
    final_alpha_one: bool = False  # alpha-bar after the last step: 1, or that of t=0
    student_steps: int = 0  # distilled for so many steps of DDIM without guidance; 0: for any

    def __post_init__(self) -> None:
        check_choice("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        check_choice("prediction", self.prediction, get_args(Prediction))
        check_choice("spacing", self.spacing, get_args(Spacing))
        if self.train_steps < 1:
            raise ValueError(f"train_steps is {self.train_steps}; it must be at least 1.")
        if self.prediction == "epsilon" and self.zero_terminal_snr and self.spacing != "leading":
            raise ValueError(
                "zero terminal SNR leaves no signal at the first step, so epsilon cannot be "
                "turned into a picture there; use v_prediction or sample, or leading spacing."
            )


@dataclass(frozen=True)
class LoopyConfig:
    """Everything that shapes a Loopy model."""

    image_size: int = 512  # pixels, square
    vae_scale_factor: int = 8  # pixels per latent cell and side
    latent_scale: float = 0.18215  # model latents = VAE latents * latent_scale
    clip: ClipGeometry = field(default_factory=ClipGeometry)
    unet: UNetConfig = field(default_factory=UNetConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    @property
    def latent_size(self) -> int:
        """Latent cells per side."""
        return self.image_size // self.vae_scale_factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one frame."""
        return self.unet.latent_channels, self.latent_size, self.latent_size

    def of_student(self, steps: int) -> "LoopyConfig":
        """That of a model which was distilled for so many steps, the first of them on pure noise."""
        return replace(self, diffusion=replace(self.diffusion, spacing="trailing", student_steps=steps))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LoopyConfig":
        """Inverse of `to_dict`, also after JSON turned tuples into lists; unknown names raise TypeError, sizes
        that cannot be meant ValueError."""
        parts = {"clip": ClipGeometry, "unet": UNetConfig, "audio": AudioConfig, "diffusion": DiffusionConfig}
        made = {k: parts[k](**_checked(parts[k], v)) for k, v in values.items() if k in parts}
        return cls(**_checked(cls, {k: v for k, v in values.items() if k not in parts}), **made)


def _checked(part: type, values: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples, and whole numbers where such are wanted."""
    whole = {field.name for field in fields(part) if field.type is int}
    for name, value in values.items():
        if name in whole and not (type(value) is int and 0 <= value <= LARGEST_SIZE):
            raise ValueError(f"{name} is {value!r}; it must be a whole number up to {LARGEST_SIZE}.")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


LOOPY = LoopyConfig()
"""The paper's numbers on the full width of SD1.5."""

PUPPET = LoopyConfig(
    image_size=128,
    vae_scale_factor=16,
    latent_scale=1.0,
    unet=UNetConfig(
        latent_channels=32,
        channels=(48, 80),
        attention=(True, True),
        layers=1,
        heads=2,
        groups=8,
        spatial_ff=1,
        temporal_ff=1,
        intra_attentions=1,
    ),
    audio=AudioConfig(
        layers=5,
        width=64,
        hidden=96,
        tokens=5,
        token_width=128,
        latent_width=64,
        movement_range=(-2.6, 0.3),
        expression_range=(-3.4, -1.8),
    ),
    # The clean picture instead of the paper's epsilon: a net of this width cannot carry the noise of
    # 32 channels. Zero terminal SNR keeps the colours of the first clip from drifting.
    diffusion=DiffusionConfig(
        prediction="sample",
        zero_terminal_snr=True,
        spacing="trailing",
        final_alpha_one=True,
    ),
)
"""The bundled model: the same classes, small enough to be trained and run on two CPU cores."""

PUPPET_RATIOS = (1.5, 1.5)
"""Audio and reference ratio that it is shown and measured with. Where both are equal e_ref has no weight, and a
step runs two branches."""

TINY = replace(
    PUPPET,
    image_size=32,
    vae_scale_factor=8,
    clip=ClipGeometry(frames=4, stride=2, segments=2),
    unet=UNetConfig(
        latent_channels=4,
        channels=(8, 16),
        attention=(True, False),
        layers=1,
        heads=2,
        groups=4,
        spatial_ff=1,
        temporal_ff=1,
        intra_attentions=1,
    ),
    audio=AudioConfig(
        layers=2, width=8, hidden=16, tokens=2, token_width=8, latent_embeddings=8, latent_width=8
    ),
)
"""For tests: every part is there, one step takes milliseconds."""
