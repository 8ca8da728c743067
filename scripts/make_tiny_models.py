#!/usr/bin/env python
"""Tiny networks with random weights in the layouts of the published ones, for trials by hand without a download.

    .venv/bin/python scripts/make_tiny_models.py DIR

Writes DIR/improved_diffusion.pt (the layout of OpenAI's ImageNet-64 checkpoint), DIR/consistency (a consistency model)
and DIR/stable_diffusion (with its text encoder and tokenizer). What they draw means nothing.

    dpsyn run +experiment=... api=diffusion api.path=DIR/improved_diffusion.pt api.resolution=16
    dpsyn run +experiment=... api=consistency api.path=DIR/consistency
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch


def improved_diffusion(channels=32, multipliers=(1, 1, 2, 2), blocks=1, attention=(2, 3), classes=1000, learned=True):
    """A state dict in the layout of OpenAI's improved-diffusion, in which no weight is zero. attention: levels."""
    made, wide = {}, 4 * channels
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    def layer(name, out, *rest):
        fan_in = torch.Size(rest).numel()
        made[f"{name}.weight"], made[f"{name}.bias"] = normal(out, *rest) / fan_in**0.5, 0.1 * normal(out)

    def norm(name, width):
        made[f"{name}.weight"], made[f"{name}.bias"] = 1 + 0.1 * normal(width), 0.1 * normal(width)

    def residual(name, before, after):
        norm(f"{name}.in_layers.0", before)
        layer(f"{name}.in_layers.2", after, before, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * after, wide)
        norm(f"{name}.out_layers.0", after)
        layer(f"{name}.out_layers.3", after, after, 3, 3)
        if before != after:
            layer(f"{name}.skip_connection", after, before, 1, 1)

    def attend(name, width):
        norm(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", wide, channels)
    layer("time_embed.2", wide, wide)
    if classes:
        made["label_emb.weight"] = normal(classes, wide)
    layer("input_blocks.0.0", channels, 3, 3, 3)
    skips, width, place = [channels], channels, 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            residual(f"input_blocks.{place}.0", width, width := multiplier * channels)
            if level in attention:
                attend(f"input_blocks.{place}.1", width)
            skips.append(width)
            place += 1
        if level < len(multipliers) - 1:
            layer(f"input_blocks.{place}.0.op", width, width, 3, 3)
            skips.append(width)
            place += 1
    residual("middle_block.0", width, width)
    attend("middle_block.1", width)
    residual("middle_block.2", width, width)
    place = 0
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for block in range(blocks + 1):
            residual(f"output_blocks.{place}.0", width + skips.pop(), width := multiplier * channels)
            if level in attention:
                attend(f"output_blocks.{place}.1", width)
            if level and block == blocks:
                layer(f"output_blocks.{place}.{1 + (level in attention)}.conv", width, width, 3, 3)
            place += 1
    norm("out.0", width)
    layer("out.2", 6 if learned else 3, width, 3, 3)
    return made


def consistency(folder, size=16, classes=10):
    """A consistency model in the layout of `openai/diffusers-cd_imagenet64_l2`."""
    from diffusers import CMStochasticIterativeScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=size,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=32,
        attention_head_dim=16,
        num_class_embeds=classes,
    )
    network.save_pretrained(Path(folder) / "unet")  # type: ignore[attr-defined]
    CMStochasticIterativeScheduler(  # type: ignore[attr-defined]
        num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5
    ).save_pretrained(Path(folder) / "scheduler")


def stable_diffusion(folder, size=32):
    """A text-to-image model in the layout of Stable Diffusion 1, saved by diffusers."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words, width = tokenizer(), 32
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    network = UNet2DConditionModel(
        sample_size=size // 2,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=8,
    )
    pictures = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        sample_size=size,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(  # type: ignore[attr-defined]
        vae=pictures,
        text_encoder=CLIPTextModel(text),
        tokenizer=words,
        unet=network,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def tokenizer():
    """CLIP's, but that it knows letters alone."""
    import tempfile

    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        names[0].write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
        names[1].write_text("#version: 0.2\n")
        return CLIPTokenizer(str(names[0]), str(names[1]), model_max_length=77)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tiny networks with random weights, for trials by hand.")
    parser.add_argument("folder", type=Path)
    place = parser.parse_args(arguments).folder
    place.mkdir(parents=True, exist_ok=True)
    torch.save(improved_diffusion(), place / "improved_diffusion.pt")
    consistency(place / "consistency")
    stable_diffusion(place / "stable_diffusion")
    for made in sorted(place.iterdir()):
        files = [made] if made.is_file() else [file for file in made.rglob("*") if file.is_file()]
        print(f"{made}: {sum(file.stat().st_size for file in files) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
