"""Portrait image -> the square picture that the model's VAE encodes."""

import torch.nn.functional as nnf
from einops import rearrange
from torch import Tensor


def smallest_side(image_size: int) -> int:
    """Fewer pixels than this show no face, whatever is done to them."""
    return max(32, image_size // 8)


def square_portrait(image: Tensor, image_size: int) -> Tensor:
    """(H, W, C) 0..1, any size, with or without alpha -> (image_size, image_size, 3) 0..1.

    The largest centred square is cut out, so nothing is stretched. Raises ValueError when the
    picture is too small.
    """
    height, width = image.shape[:2]
    side, least = min(height, width), smallest_side(image_size)
    if side < least:
        raise ValueError(
            f"the portrait is {width}x{height} pixels; use a picture of at least {least}x{least}."
        )
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side, :3]
    if square.shape[2] < 3:  # grey, perhaps with alpha
        square = square[..., :1].expand(-1, -1, 3)
    picture = rearrange(square.float(), "h w c -> 1 c h w")
    picture = nnf.interpolate(picture, size=(image_size,) * 2, mode="bicubic", antialias=True)
    return rearrange(picture, "1 c h w -> h w c").clamp(0, 1)
