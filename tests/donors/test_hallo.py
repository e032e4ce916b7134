"""A model imported from Hallo talks as Hallo does: its audio layer and temporal layer, by the textbook."""

import pytest
import torch
import torch.nn.functional as nnf
from einops import rearrange
from make_donors import State, adapter, hallo, unet
from oracles import attention
from side_by_side import (
    CLOSE,
    conditions,
    difference,
    donor_predicts,
    loopy_predicts,
    made,
    motion_net,
    read_picture,
    values,
)
from torch import Tensor, nn

from loopy_model.donors.hallo import REGIONS, SHARE
from loopy_model.guidance import Guidance, Predictor
from loopy_model.model import Loopy

HEADS, GROUPS, PAST = 8, 32, 2


class Weights:
    """The donor's, below one name; the layers of the textbook on them."""

    def __init__(self, weights: State, name: str) -> None:
        self.weights, self.name = weights, name

    def below(self, name: str) -> "Weights":
        return Weights(self.weights, f"{self.name}.{name}")

    def get(self, name: str) -> Tensor | None:
        return self.weights.get(f"{self.name}.{name}")

    def linear(self, x: Tensor) -> Tensor:
        """(.., in) -> (.., out), also for a convolution of one pixel."""
        return nnf.linear(x, self.get("weight").flatten(1), self.get("bias"))

    def norm(self, x: Tensor) -> Tensor:
        return nnf.layer_norm(x, x.shape[-1:], self.get("weight"), self.get("bias"))

    def group_norm(self, x: Tensor) -> Tensor:
        return nnf.group_norm(x, GROUPS, self.get("weight"), self.get("bias"), 1e-6)

    def attend(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, C) and (B, K, c): one sample after the other."""
        q, k, v = (self.below(f"to_{p}").linear(y) for p, y in (("q", x), ("k", context), ("v", context)))
        return self.below("to_out.0").linear(torch.stack([attention(*row, HEADS) for row in zip(q, k, v)]))

    def feed_forward(self, x: Tensor) -> Tensor:
        value, gate = self.below("net.0.proj").linear(x).chunk(2, -1)
        return self.below("net.2").linear(value * nnf.gelu(gate))


def audio_layer(w: Weights, x: Tensor, tokens: Tensor) -> Tensor:
    """(F, C, h, w) and (F, n, c) -> the same as the first: Hallo's three attentions, one by one, masked."""
    h = w.below("proj_in").linear(rearrange(w.below("norm").group_norm(x), "f c h w -> f (h w) c"))
    block = w.below("transformer_blocks.0")
    normed = block.below("norm1").norm(h)
    h = h + block.below("attn1").attend(normed, normed)
    normed, mask = block.below("norm2").norm(h), torch.full((*h.shape[:2], 1), SHARE)
    for i, region in enumerate(REGIONS):
        heard = block.below(f"attn2_{i}").attend(normed, tokens) * mask
        h = h + block.below(f"zero_conv_{region}").linear(heard)
    h = h + block.below("ff").feed_forward(block.below("norm3").norm(h))
    return x + rearrange(w.below("proj_out").linear(h), "f (h w) c -> f c h w", h=x.shape[2])


def temporal_layer(w: Weights, x: Tensor, past: Tensor) -> Tensor:
    """(F, C, h, w) and (M, C, h, w), oldest first -> the clip: all frames attend to all, twice."""
    w = w.below("temporal_transformer")
    both = torch.cat([past, x])
    h = w.below("proj_in").linear(rearrange(w.below("norm").group_norm(both), "f c h w -> (h w) f c"))
    block = w.below("transformer_blocks.0")
    for i in range(2):
        at = block.below(f"attention_blocks.{i}")
        normed = block.below(f"norms.{i}").norm(h) + at.get("pos_encoder.pe")[:, : len(both)]
        h = h + at.attend(normed, normed)
    h = w.below("proj_out").linear(h + block.below("ff").feed_forward(block.below("ff_norm").norm(h)))
    return (both + rearrange(h, "(h w) f c -> f c h w", h=x.shape[2]))[len(past) :]


class HalloSite(nn.Module):
    """What follows Hallo's spatial attention, in the place of diffusers' motion module."""

    def __init__(self, weights: State, block: str, i: str, tokens: Tensor, past: Tensor) -> None:
        super().__init__()
        self.audio = Weights(weights, f"denoising_unet.{block}.audio_modules.{i}")
        self.temporal = Weights(weights, f"denoising_unet.{block}.motion_modules.{i}")
        self.tokens, self.past = tokens, past

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return temporal_layer(self.temporal, audio_layer(self.audio, hidden_states, self.tokens), self.past)


class Nothing(nn.Module):
    """Where Hallo does not run its motion module."""

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return hidden_states


def audio_tokens(weights: State, windows: Tensor) -> Tensor:
    """(F, W, L, D) -> (F, n, c)."""
    w = Weights(weights, "audioproj")
    h = w.below("proj2").linear(w.below("proj1").linear(windows.flatten(1)).relu()).relu()
    tokens = w.below("proj3").linear(h)
    return w.below("norm").norm(rearrange(tokens, "f (n c) -> f n c", c=len(w.get("norm.weight"))))


@torch.no_grad()
def hallo_predicts(weights: State, given: dict[str, Tensor], voice: bool = True) -> Tensor:
    """Hallo in diffusers' trunk. Without a voice it gets zero tokens after the projection."""
    net, reader = motion_net(unet(seed=3), adapter()), unet(seed=4)
    tokens = audio_tokens(weights, given["windows"][0]) * voice
    past = [read_picture(reader, frame[None]) for frame in reversed(given["motion"][0])]
    for name, module in list(net.named_modules()):
        if name.endswith("motion_modules"):
            block = name.removesuffix(".motion_modules")
            for i in range(len(module)):
                site = f"{block}.attentions.{i}.transformer_blocks.0.attn1"
                if site in past[0]:
                    seen = torch.stack([frame[site] for frame in past])
                    height = int(seen.shape[1] ** 0.5)
                    seen = rearrange(seen, "m (h w) c -> m c h w", h=height)
                    module[i] = HalloSite(weights, block, str(i), tokens, seen)
                else:
                    module[i] = Nothing()
    return donor_predicts(net, given["noisy"], read_picture(reader, given["portrait"]))


@pytest.fixture(scope="module")
def weights() -> State:
    return hallo()[0].tensors


@pytest.fixture(scope="module")
def joint() -> Loopy:
    return made(hallo(), "joint")


@pytest.mark.parametrize("voice", [True, False], ids=["voice", "no voice"])
def test_the_model_computes_what_hallo_computes(weights: State, joint: Loopy, voice: bool) -> None:
    given = values(joint)
    assert given["noisy"].shape[1] == 16 and given["motion"].shape[1] == PAST
    kinds = ("portrait", "motion", "voice") if voice else ("portrait", "motion")
    ours = loopy_predicts(joint, given, *kinds)
    assert difference(ours, hallo_predicts(weights, given, voice)) <= CLOSE


def test_voice_portrait_and_motion_frames_matter(joint: Loopy) -> None:
    given, other = values(joint), {k: v.flip(-1) for k, v in values(joint).items()}
    everything = ("portrait", "motion", "voice")
    before = loopy_predicts(joint, given, *everything)
    for changed in ("windows", "portrait", "motion"):
        after = loopy_predicts(joint, given | {changed: other[changed]}, *everything)
        assert difference(after, before) > 10 * CLOSE, changed


def test_with_the_papers_temporal_layers_everything_else_is_the_same(joint: Loopy) -> None:
    loopy, other = made(hallo(), "loopy").state_dict(), joint.state_dict()
    new = ("inter_modules", "audio_to_latents", "positions")
    alike = {name for name in loopy if not any(part in name for part in new)}
    assert alike == {name for name in other if not any(part in name for part in new)}
    assert all(torch.equal(loopy[name], other[name]) for name in alike)


def test_the_papers_clip_keeps_hallos_numbers(weights: State) -> None:
    """Without motion frames its frames are Hallo's 2 to 13, in whose places the donor learnt to attend."""
    positions = made(hallo(), "loopy").denoising_unet.mid_block.intra_modules[0].attentions[1].positions
    encoding = weights[
        "denoising_unet.mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0"
        ".attention_blocks.1.pos_encoder.pe"
    ]
    assert torch.equal(positions, encoding[0, 2:14])


# --- motion frames that attend too --------------------------------------------------------------


@torch.no_grad()
def test_dropped_motion_frames_are_not_seen(joint: Loopy) -> None:
    given = values(joint)
    two = {name: torch.cat([tensor, tensor]) for name, tensor in given.items()}
    motion = [site.output.unflatten(0, (2, PAST)) for site in joint.read(two["motion"].flatten(0, 1))]

    def predict(keep: Tensor | None, motion: list[Tensor] | None) -> Tensor:
        made = joint.encode_conditions(None, motion, two["windows"], None, keep_reference=keep)
        return joint.denoise(two["noisy"], torch.tensor([10, 10]), made)

    kept = predict(torch.tensor([True, False]), motion)
    assert torch.allclose(kept[0], predict(None, motion)[0], atol=1e-5)
    assert torch.allclose(kept[1], predict(None, None)[1], atol=1e-5)
    assert (kept[0] - kept[1]).abs().max() > 1e-3


@torch.no_grad()
def test_branches_in_one_batch_are_the_branches_one_by_one(joint: Loopy) -> None:

    given = values(joint)
    made = conditions(joint, given, "portrait", "motion", "voice")
    one, other = (
        Predictor(joint, made, Guidance(), together)(given["noisy"], 431, 0) for together in (True, False)
    )
    assert torch.allclose(one, other, atol=1e-4)
