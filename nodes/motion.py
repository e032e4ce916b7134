from comfy_api.latest import io

from ..loopy_model.config import SAMPLINGS, ClipGeometry
from ..loopy_model.motion import TemporalSegments
from .types import CATEGORY, MotionFrameSettings, MotionFramesType


class LoopyMotionFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopyMotionFrames",
            display_name="Loopy Temporal Segment Motion Frames",
            category=CATEGORY,
            description="The temporal segment module: how far a clip looks back, and how. Five segments of 4, 8, 16, 32 and "
            "64 past frames give four motion frames each. Connect earlier latents to continue a video. "
            "Optional: without this node the sampler uses the model's own setting.",
            inputs=[
                io.Combo.Input(
                    "sampling",
                    options=list(SAMPLINGS),
                    default="uniform",
                    tooltip="Which frames stand for a segment: evenly spaced (paper), means, or random ones.",
                ),
                io.Int.Input(
                    "stride",
                    default=ClipGeometry.stride,
                    min=1,
                    max=32,
                    tooltip="Motion frames per segment (s). stride x segments must be what the model was trained "
                    "with (20 in the paper and in the bundled model); what else differs from its training runs, with a "
                    "warning in the console.",
                ),
                io.Int.Input(
                    "ratio",
                    default=ClipGeometry.ratio,
                    min=1,
                    max=4,
                    tooltip="How many times longer each segment is than the next nearer one (r).",
                ),
                io.Int.Input(
                    "segments", default=ClipGeometry.segments, min=1, max=32, tooltip="Number of segments."
                ),
                io.Latent.Input(
                    "past_latents",
                    optional=True,
                    tooltip="Latents of the frames before this video, from an earlier Loopy Sampler; the new "
                    "frames continue their movement. With start_frame in Loopy Sampler, the voice of the new video "
                    "begins at start_frame / 25 seconds.",
                ),
            ],
            outputs=[MotionFramesType.Output(display_name="motion_frames", tooltip="For Loopy Sampler.")],
        )

    @classmethod
    def execute(
        cls, sampling: str, stride: int, ratio: int, segments: int, past_latents: dict | None = None
    ) -> io.NodeOutput:
        module = TemporalSegments(ClipGeometry(stride=stride, ratio=ratio, segments=segments), sampling)
        return io.NodeOutput(
            MotionFrameSettings(module, None if past_latents is None else past_latents["samples"])
        )
