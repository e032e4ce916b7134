"""The ComfyUI skin over `loopy_model`: the only place that imports the host."""

from comfy_api.latest import ComfyExtension, io

from .audio import LoopyAudioEncode, LoopyAudioToLatents
from .load import LoopyLoadModel
from .motion import LoopyMotionFrames
from .options import LoopySamplingOptions
from .sampler import LoopySampler
from .samples import LoopySamplePortrait, LoopySampleVoice
from .video import LoopyLatentsToVideo, LoopyVideoCombine

NODES = [
    LoopyLoadModel,
    LoopySamplePortrait,
    LoopySampleVoice,
    LoopyAudioEncode,
    LoopyAudioToLatents,
    LoopyMotionFrames,
    LoopySampler,
    LoopyVideoCombine,
    LoopyLatentsToVideo,
    LoopySamplingOptions,
]


class LoopyExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LoopyExtension:
    return LoopyExtension()
