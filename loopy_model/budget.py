"""What a run of the sampler needs, known before it begins."""

from dataclasses import dataclass

from .config import LoopyConfig
from .guidance import is_small
from .sampling import Request

# Tensors of the first level's size that are alive at once at the widest point of a pass (GEGLU's
# doubled feed-forward, concatenated keys, skip connections).
LIVE_COPIES = 36


@dataclass(frozen=True)
class Budget:
    """Of one request; all memory in bytes."""

    frames: int
    fps: int
    clips: int
    clip_frames: int  # of each; of the last, some may not be wanted
    steps: int  # of one clip
    working: int  # beside the weights, where the denoising net computes
    reading: int  # the same of the reference net, which reads one picture at a time
    latents: int  # of the whole video, in host memory

    def __str__(self) -> str:
        return (
            f"{self.frames} frames, {self.frames / self.fps:.1f} s: {self.clips} clips of {self.clip_frames} frames, "
            f"{self.steps} steps each; memory: {_size(self.working)} beside the weights, "
            f"{_size(self.latents)} for the latents."
        )

    def lacking(self, working: float, host: float) -> str | None:
        """One sentence if that much memory is not enough, with what to change."""
        if self.working > working:
            return (
                f"a clip needs {_size(self.working)} beside the weights, and there are {_size(working)}; choose "
                "weight_dtype fp16 or bf16 in Load Loopy Model, or a model for smaller pictures."
            )
        if self.latents > host:
            fit = self.clip_frames * max(1, int(self.frames * host // self.latents) // self.clip_frames)
            return (
                f"the latents of {self.frames} frames need {_size(self.latents)}, and {_size(host)} are free; set "
                f"frames to {fit}, and go on from those with start_frame and past_latents."
            )
        return None


def budget(config: LoopyConfig, request: Request) -> Budget:
    channels, height, width = request.portrait.shape[1:]
    frames = request.stop - request.start
    return Budget(
        frames=frames,
        fps=config.clip.fps,
        clips=-(-frames // config.clip.frames),
        clip_frames=config.clip.frames,
        steps=request.steps,
        working=working_bytes(
            config, height, width, request.dtype.itemsize, request.segments.most_kept(config.clip.frames)
        ),
        reading=request.dtype.itemsize * _live(config, height, width),
        latents=4 * frames * channels * height * width,
    )


def working_bytes(config: LoopyConfig, height: int, width: int, bytes_per_value: int, kept: int) -> int:
    """For one clip at latents of `height` x `width`: the cached keys and values of every site, the features of the
    `kept` motion frames that later clips will ask for, and the activations of the widest point of a pass."""
    clip, unet = config.clip, config.unet
    cached = 0
    for level, (channels, attention) in enumerate(zip(unet.channels, unet.attention)):
        sites = attention * (2 * unet.layers + 1) + (level == len(unet.channels) - 1)
        tokens = -(-height // 2**level) * -(-width // 2**level)
        reference, motion = 3, kept + 3 * clip.motion_frames  # normed+k+v; features kept, the clip's, k, v
        cached += sites * tokens * channels * (reference + motion)
    rows = 3 if is_small(config, height, width) else 1
    return bytes_per_value * (cached + rows * clip.frames * _live(config, height, width))


def _live(config: LoopyConfig, height: int, width: int) -> int:
    """Values of one picture that are alive at once."""
    return LIVE_COPIES * height * width * config.unet.channels[0]


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
