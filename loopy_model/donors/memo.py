"""MEMO (folders diffusion_net, reference_net, audio_proj, image_proj): names.

Its reference net ends at the last site's norm, because nothing reads what comes after. Ours goes on, and
takes the rest of that site from the diffusion net.
"""

from .plan import Row

LAST = r"up_blocks\.3\.attentions\.2"
NETS = ("denoising_unet", "reference_unet")

LAST_ROWS = (
    Row(
        rf"memo\.({LAST}\.transformer_blocks\.0)\.attn2\.to_out\.0\.bias",
        tuple(rf"{net}.\1.attn1.to_out.0.bias" for net in NETS),
    ),
    Row(
        rf"memo\.({LAST}\.(?:proj_out|transformer_blocks\.0\.(?:attn1|norm3|ff))\..+)",
        tuple(rf"{net}.\1" for net in NETS),
    ),
)
OTHER_ROWS = (
    Row(
        r"memo\..+\.audio_modules\..+",
        why="audio layers in which picture and voice attend to each other, modulated by an emotion",
    ),
    Row(r"audio_proj\.(.+)", (r"audio_projection.\1",)),
    Row(
        r"image_proj\..+",
        why="the face's identity tokens: Loopy knows the person from the reference net alone",
    ),
)
