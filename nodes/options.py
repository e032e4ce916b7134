from comfy_api.latest import io

from ..loopy_model.guidance import Sparing
from ..loopy_model.sampling import SamplingOptions
from ..loopy_model.solvers import SOLVERS
from .types import CATEGORY, SamplingOptionsType


class LoopySamplingOptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoopySamplingOptions",
            display_name="Loopy Sampling Options",
            category=CATEGORY,
            description="Trades exactness for speed, or adds variety. Optional: without this node the sampler does what "
            "the paper does, which is also what this node does as it comes.",
            inputs=[
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="ddim",
                    tooltip="ddim is the paper's, with 25 steps. dpm++ 2m and unipc need 8 to 12 steps.",
                ),
                io.Float.Input(
                    "eta",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Fresh noise in every ddim step: 0 none, 1 as much as DDPM.",
                ),
                io.Float.Input(
                    "guidance_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps before guidance begins.",
                ),
                io.Float.Input(
                    "guidance_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the steps after which guidance ends. "
                    "A step without runs one branch instead of two or three.",
                ),
                io.Int.Input(
                    "guidance_every",
                    default=1,
                    min=1,
                    max=10,
                    tooltip="Works guidance out in every so many steps only; "
                    "2 saves a third of the time with three branches, less with two.",
                ),
                io.Int.Input(
                    "deep_every",
                    default=1,
                    min=1,
                    max=10,
                    tooltip="Computes the coarser levels of the net in every so many steps only; in between they stay as "
                    "they were.",
                ),
            ],
            outputs=[SamplingOptionsType.Output(display_name="options", tooltip="For Loopy Sampler.")],
        )

    @classmethod
    def execute(
        cls,
        solver: str,
        eta: float,
        guidance_start: float,
        guidance_end: float,
        guidance_every: int,
        deep_every: int = 1,
    ) -> io.NodeOutput:
        sparing = Sparing(guidance_start, guidance_end, guidance_every, deep_every)
        return io.NodeOutput(SamplingOptions(solver, eta, sparing))
