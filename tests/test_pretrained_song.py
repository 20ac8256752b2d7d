"""DDPM++ and NCSN++ against other people's code of them."""

import math

import pytest
import torch
from oracles import normal, randomise, vector
from song_files import NCSNPP, SONG
from torch import Tensor, nn

from scorevae.networks.pretrained.song_unet import SongUNetConfig

RESNET = {"norm1": "norm0", "conv1": "conv0", "time_emb_proj": "affine", "norm2": "norm1"}
RESNET |= {"conv2": "conv1", "conv_shortcut": "skip"}


def from_diffusers(state: dict[str, Tensor], sides: list[int]) -> dict[str, Tensor]:
    """Weights of diffusers' NCSN++ with two levels under our names; attention in all blocks."""
    top, bottom = sides
    blocks = {
        "down_blocks.0.resnets.0": f"enc.{top}x{top}_block0",
        "down_blocks.1.resnets.0": f"enc.{bottom}x{bottom}_block0",
        "down_blocks.0.resnet_down": f"enc.{bottom}x{bottom}_down",
        "mid_block.resnets.0": f"dec.{bottom}x{bottom}_in0",
        "mid_block.resnets.1": f"dec.{bottom}x{bottom}_in1",
        "up_blocks.0.resnets.0": f"dec.{bottom}x{bottom}_block0",
        "up_blocks.0.resnets.1": f"dec.{bottom}x{bottom}_block1",
        "up_blocks.0.resnet_up": f"dec.{top}x{top}_up",
        "up_blocks.1.resnets.0": f"dec.{top}x{top}_block0",
        "up_blocks.1.resnets.1": f"dec.{top}x{top}_block1",
    }
    attentions = {
        "down_blocks.1.attentions.0": f"enc.{bottom}x{bottom}_block0",
        "mid_block.attentions.0": f"dec.{bottom}x{bottom}_in0",
        "up_blocks.0.attentions.0": f"dec.{bottom}x{bottom}_block1",
    }
    layers = {
        "time_embedding.linear_1": "map_layer0",
        "time_embedding.linear_2": "map_layer1",
        "conv_in": f"enc.{top}x{top}_conv",
        "down_blocks.0.skip_conv": f"enc.{bottom}x{bottom}_aux_skip",
        "up_blocks.0.skip_norm": f"dec.{bottom}x{bottom}_aux_norm",
        "up_blocks.0.skip_conv": f"dec.{bottom}x{bottom}_aux_conv",
        "conv_norm_out": f"dec.{top}x{top}_aux_norm",
        "conv_out": f"dec.{top}x{top}_aux_conv",
    }
    for theirs, ours in blocks.items():
        layers |= {f"{theirs}.{inside}": f"{ours}.{name}" for inside, name in RESNET.items()}
    for theirs, ours in attentions.items():
        layers[f"{theirs}.group_norm"] = f"{ours}.norm2"
        layers[f"{theirs}.to_out.0"] = f"{ours}.proj"
    mapped = {"map_noise.freqs": state.pop("time_proj.weight")}
    state.pop("time_proj.W", None)
    for theirs, ours in attentions.items():
        for part in ("weight", "bias"):
            joint = [state.pop(f"{theirs}.to_{letter}.{part}") for letter in "qkv"]
            mapped[f"{ours}.qkv.{part}"] = torch.stack(joint, dim=1).flatten(0, 1)
    for name, value in state.items():
        layer, _, part = name.rpartition(".")
        mapped[f"{layers[layer]}.{part}"] = value
    return {
        name: value[..., None, None] if name.endswith(("qkv.weight", "proj.weight")) else value
        for name, value in mapped.items()
    }


def test_the_network_is_that_of_diffusers() -> None:
    """Catches any part of NCSN++ that differs: filters, skips, scales, attention, features, σ.

    diffusers has 32 groups in places where score_sde has min(32, channels/4): as is here.
    """
    from diffusers import UNet2DModel

    other = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        time_embedding_type="fourier",
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        mid_block_scale_factor=math.sqrt(2),
        attention_head_dim=None,
        norm_num_groups=None,
        norm_eps=1e-6,
    )
    for module in other.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = min(32, module.num_channels // 4)
    generator = torch.Generator().manual_seed(1)
    for weight in other.parameters():
        size = 0.5 / math.sqrt(weight[0].numel()) if weight.ndim > 1 else 0.3
        weight.data = size * torch.randn(weight.shape, generator=generator)
    tree = dict(size=16, in_channels=3, out_channels=3, channels=32, attention=[8])
    skips = dict(encoder="skip", decoder="skip", log_label=True, scale_by_sigma=True)
    network = SongUNetConfig(**SONG | NCSNPP | tree | skips).build()
    network.load_state_dict(from_diffusers(other.state_dict(), [16, 8]))
    x, sigma = normal((2, 3, 16, 16), 2).float(), torch.tensor([0.3, 7.0])
    with torch.no_grad():
        found, expected = network(x, sigma), other.eval()(x, sigma, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


PHYSICSNEMO = {"norm2": "attn.norm", "qkv": "attn.qkv", "proj": "attn.proj"}


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "skip"])
def test_the_network_is_that_of_physicsnemo(kind: str) -> None:
    """The same with EDM's own names, where its maintained copy is installed.

    In training, since its group normalisation divides by n − 1 in evaluation.
    """
    other = pytest.importorskip("physicsnemo.models.diffusion_unets")
    further = {"ddpmpp": {}, "ncsnpp": NCSNPP}
    further["skip"] = NCSNPP | dict(encoder="skip", decoder="skip")
    config = SongUNetConfig(**SONG | further[kind])
    reference = other.SongUNet(
        img_resolution=8,
        in_channels=2,
        out_channels=2,
        augment_dim=9,
        model_channels=8,
        channel_mult=config.multipliers,
        num_blocks=1,
        attn_resolutions=[4],
        dropout=0.0,
        embedding_type=config.embedding,
        channel_mult_noise=config.noise_multiplier,
        encoder_type=config.encoder,
        decoder_type=config.decoder,
        resample_filter=config.taps,
    ).train()
    randomise(reference, 3)
    network, state = config.build(), reference.state_dict()
    for name in network.state_dict():
        layer, _, part = name.rpartition(".")
        place, _, last = layer.rpartition(".")
        theirs = f"{place}.{PHYSICSNEMO[last]}.{part}" if last in PHYSICSNEMO else name
        network.state_dict()[name].copy_(state[theirs])
    x, label = normal((2, 2, 8, 8), 4), vector(0.3, -1.2)
    found, expected = network.double()(x, label), reference.double()(x, label, None)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_all_weights_take_part() -> None:
    """Catches a layer that is built and not used; NCSN++ with everything switched on."""
    every = NCSNPP | dict(decoder="skip", encoder="skip")
    network = randomise(SongUNetConfig(**SONG | every).build(), 5).double()
    network(normal((2, 2, 8, 8), 6), vector(0.3, 2.0)).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())
