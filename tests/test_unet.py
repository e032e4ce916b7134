"""The trunk against diffusers' SD1.5, number by number and key by key."""

import pytest
import torch
from oracles import borrowed

from loopy_model.conditions import Conditions, SiteConditions
from loopy_model.config import LOOPY
from loopy_model.unet import DenoisingUNet, ReferenceUNet

diffusers = pytest.importorskip("diffusers")

SD15 = dict(cross_attention_dim=768, sample_size=64)  # everything else is diffusers' default
TEXT = (".attn2.", ".norm2.")  # in transformer blocks; residual blocks have their own norm2
NEW = ("inter_modules", "audio_modules", "intra_modules")


def is_text(key: str) -> bool:
    return "transformer_blocks" in key and any(part in key for part in TEXT)


def spatial(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in net.state_dict().items() if not any(new in k for new in NEW)}


@pytest.fixture(scope="module")
def sd15() -> torch.nn.Module:
    with torch.device("meta"):
        net = diffusers.UNet2DConditionModel(**SD15)
    state = borrowed(net)
    for key in state:
        if ".attn2.to_out." in key:
            state[key] = torch.zeros_like(state[key])  # the text cross-attention is silent
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def denoiser(sd15: torch.nn.Module) -> DenoisingUNet:
    """Fresh: the trunk is SD1.5's, the new layers are as they are built."""
    with torch.device("meta"):
        net = DenoisingUNet(LOOPY)
    trunk = {k: v for k, v in sd15.state_dict().items() if not is_text(k)}
    missing, unexpected = net.load_state_dict(trunk, assign=True, strict=False)
    assert not unexpected and all(any(new in key for new in NEW) for key in missing)
    for block in net.blocks_with_sites():
        block.add_conditions(LOOPY)
    return net.eval().requires_grad_(False)


def silent_text(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 1, 768)


def nothing(net: DenoisingUNet) -> Conditions:
    sites = sum(len(block.attentions) for block in net.blocks_with_sites())
    return Conditions(tuple(SiteConditions() for _ in range(sites)))


def test_denoising_keys_are_sd15s_without_text(sd15: torch.nn.Module, denoiser: DenoisingUNet) -> None:
    theirs = {k: v.shape for k, v in sd15.state_dict().items()}
    ours = {k: v.shape for k, v in spatial(denoiser).items()}
    text = {k: v for k, v in theirs.items() if is_text(k)}
    assert len(theirs) == 686
    assert ours | text == theirs and not ours.keys() & text.keys()


def test_reference_keys_are_the_denoising_keys_without_the_output(denoiser: DenoisingUNet) -> None:
    with torch.device("meta"):
        reference = ReferenceUNet(LOOPY.unet)
    head = {k for k in spatial(denoiser) if k.startswith(("conv_norm_out.", "conv_out."))}
    assert len(head) == 4
    assert reference.state_dict().keys() == spatial(denoiser).keys() - head


def test_weights_load_strictly_both_ways(sd15: torch.nn.Module, denoiser: DenoisingUNet) -> None:
    text = {k: v for k, v in sd15.state_dict().items() if is_text(k)}
    head = ("conv_norm_out", "conv_out")
    with torch.device("meta"):
        theirs, ours = diffusers.UNet2DConditionModel(**SD15), ReferenceUNet(LOOPY.unet)
    theirs.load_state_dict(spatial(denoiser) | text, strict=True, assign=True)
    kept = {k: v for k, v in spatial(denoiser).items() if not k.startswith(head)}
    ours.load_state_dict(kept, strict=True, assign=True)


def test_every_layer_has_the_settings_of_sd15(sd15: torch.nn.Module, denoiser: DenoisingUNet) -> None:
    """An epsilon is too small to be seen in the output."""
    settings = ("eps", "num_groups", "normalized_shape", "stride", "padding", "kernel_size")
    theirs, compared = dict(sd15.named_modules()), 0
    for name, layer in denoiser.named_modules():
        if not any(new in name for new in NEW) and not list(layer.children()):
            for setting in settings:
                if hasattr(layer, setting):
                    own, other = getattr(layer, setting), getattr(theirs[name], setting)
                    assert own == other, (name, setting)
                    compared += 1
    assert compared > 300


def test_a_fresh_denoising_net_computes_what_sd15_computes(
    sd15: torch.nn.Module, denoiser: DenoisingUNet
) -> None:
    noisy = torch.randn(3, 1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor([0, 431, 999])
    ours = denoiser(noisy, timestep, nothing(denoiser))[0][:, 0]
    theirs = sd15(noisy[:, 0], timestep, silent_text(3)).sample
    assert theirs.std() > 0.1  # the comparison means something
    assert (ours - theirs).abs().max() <= 1e-4


def test_odd_sizes_pass_as_in_sd15(sd15: torch.nn.Module, denoiser: DenoisingUNet) -> None:
    noisy = torch.randn(1, 2, 4, 5, 10, generator=torch.Generator().manual_seed(2))
    timestep = torch.tensor([77])
    ours = denoiser(noisy, timestep, nothing(denoiser))[0][0]
    theirs = sd15(noisy[0], timestep.expand(2), silent_text(2)).sample
    assert ours.shape == (2, 4, 5, 10)
    assert (ours - theirs).abs().max() <= 1e-4


def test_the_reference_net_shows_what_sd15s_attention_reads_at_timestep_zero(
    sd15: torch.nn.Module,
) -> None:
    with torch.device("meta"):
        ours = ReferenceUNet(LOOPY.unet)
    ours.load_state_dict({k: sd15.state_dict()[k] for k in ours.state_dict()}, assign=True)
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    read, left, handles = [], [], []
    for block in (*sd15.down_blocks, sd15.mid_block, *sd15.up_blocks):
        for site in getattr(block, "attentions", []):
            attn = site.transformer_blocks[0].attn1
            handles += [
                attn.register_forward_pre_hook(
                    lambda _, args, kwargs: read.append(args[0]), with_kwargs=True
                ),
                site.register_forward_hook(lambda _, args, out: left.append(out[0])),
            ]
    sd15(picture, 0, silent_text(1))
    for handle in handles:
        handle.remove()

    seen = ours.eval()(picture)
    assert len(seen) == len(read) == len(left) == 16
    for site, normed, output in zip(seen, read, left):
        assert (site.normed - normed).abs().max() <= 1e-4
        assert (site.output - output).abs().max() <= 1e-4 * output.abs().max().clamp(min=1)
