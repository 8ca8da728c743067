"""The api stable_diffusion, on a Stable Diffusion of 100,000 random weights that is made on the spot."""

import functools
import json
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import yaml

from dpsyn import compose
from dpsyn.api import stable_diffusion
from dpsyn.api.stable_diffusion import StableDiffusion
from dpsyn.build import build
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples, take

LABELS = [{"animal": "cat"}, {"animal": "dog"}] * 3
SEEDS = np.random.default_rng(0).integers(0, 2**64, 6, np.uint64)
CPU = Runtime(device="cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def written_letters(folder):
    """The words of a tokenizer of letters, and its two files."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
    folder.mkdir(parents=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    return tokens, str(vocabulary), str(merges)


def save_tiny(folder, checker=False, scheduler="ddim"):
    import torch
    import transformers
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerAncestralDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    tokens, *files = written_letters(folder)
    tokenizer = transformers.CLIPTokenizer(*files, model_max_length=16, pad_token="<|endoftext|>")
    text = {"vocab_size": len(tokens), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    parts = {"safety_checker": None, "feature_extractor": None}
    if checker:
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 16, "patch_size": 8}
        config = transformers.CLIPConfig(vision_config=vision, projection_dim=8)
        parts["safety_checker"] = StableDiffusionSafetyChecker(config)
        parts["feature_extractor"] = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler={
            "ddim": lambda: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **noise),
            "pndm": lambda: PNDMScheduler(skip_prk_steps=True, **noise),
            "turbo": lambda: EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **noise),
        }[scheduler](),
        requires_safety_checker=checker,
        **parts,
    ).save_pretrained(str(folder / "model"))
    return str(folder / "model")


def save_other(folder, family):
    """SDXL, SD3 (both with CLIP alone) or Flux (with a T5 of letters), tiny."""
    import diffusers
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    tokens, *files = written_letters(folder)
    end = "<|endoftext|>"
    text = {"vocab_size": len(tokens), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 1, "projection_dim": 32}
    parts = {
        "tokenizer": transformers.CLIPTokenizer(*files, model_max_length=77, pad_token=end),
        "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=1 if family == "flux" else 4,
            shift_factor=None if family == "sdxl" else 0.06,
        ),
    }
    if family != "flux":
        parts["tokenizer_2"] = transformers.CLIPTokenizer(*files, model_max_length=77, pad_token=end)
        parts["text_encoder_2"] = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
    if family == "sdxl":
        parts["unet"] = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=4,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
        )
        parts["scheduler"] = diffusers.EulerDiscreteScheduler(steps_offset=1)
        diffusers.StableDiffusionXLPipeline(**parts).save_pretrained(str(folder / "model"))
        return str(folder / "model")
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler()
    if family == "sd3":
        parts["text_encoder"] = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
        parts["transformer"] = diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        )
        pipeline = diffusers.StableDiffusion3Pipeline(**parts, text_encoder_3=None, tokenizer_3=None)
    else:
        pieces = [(piece, -1.0) for piece in ("<pad>", "</s>", "<unk>", *LETTERS)]
        parts["tokenizer_2"] = transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.Unigram(pieces, unk_id=2)), pad_token="<pad>", eos_token="</s>"
        )
        config = transformers.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
        parts["text_encoder_2"] = transformers.T5EncoderModel(config)
        parts["transformer"] = diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=True,
        )
        pipeline = diffusers.FluxPipeline(**parts)
    pipeline.save_pretrained(str(folder / "model"))
    return str(folder / "model")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("ddim") / "it")


@pytest.fixture(scope="module")
def checked_model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("checked") / "it", checker=True)


def part(path, **settings):
    given = {
        "path": path,
        "revision": None,
        "prompts": ["a {animal}", "one {animal} only"],
        "prompt_file": None,
        "negative_prompt": None,
        "guidance": 3.0,
        "steps": 4,
        "size": [16, 16],
        "image_size": None,
        "safety_checker": False,
        "runtime": CPU,
    }
    return StableDiffusion(**{**given, **settings})


def nearly_equal(one, two):
    return np.abs(one.astype(int) - two).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "turbo"])
def test_a_row_is_the_same_in_any_batch_and_order_fresh_and_varied(tmp_path, scheduler):
    api = part(save_tiny(tmp_path / "it", scheduler=scheduler))
    fresh = api.generate(LABELS, SEEDS)
    assert fresh.content.shape == (6, 16, 16, 3) and fresh.content.dtype == np.uint8
    assert len(np.unique(fresh.content, axis=0)) == 6
    varied = api.vary(fresh, LABELS, 0.75, SEEDS[::-1])
    assert varied.content.shape == (6, 16, 16, 3) and varied.traits.keys() == fresh.traits.keys()
    small = part(api.path, runtime=Runtime(device="cpu", network_batch_size=2))
    assert nearly_equal(small.generate(LABELS, SEEDS).content, fresh.content)
    order = np.array([4, 0, 5])
    some = [LABELS[i] for i in order]
    assert nearly_equal(api.generate(some, SEEDS[order]).content, fresh.content[order])
    assert nearly_equal(api.vary(take(fresh, order), some, 0.75, SEEDS[::-1][order]).content, varied.content[order])
    assert nearly_equal(api.generate(some[:1], SEEDS[order[:1]]).content, fresh.content[order[:1]])
    assert list(varied.traits["prompt"]) == list(fresh.traits["prompt"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_the_other_families_draw_and_vary_a_row_the_same_alone(tmp_path, family, dtype):
    runtime = Runtime(device="cpu", dtype=dtype)
    api = part(save_other(tmp_path / "it", family), negative_prompt="z", steps=2, runtime=runtime)
    fresh = api.generate(LABELS[:3], SEEDS[:3])
    varied = api.vary(fresh, LABELS[:3], 0.5, SEEDS[:3])
    assert fresh.content.shape == varied.content.shape == (3, 16, 16, 3)
    assert len(np.unique(fresh.content, axis=0)) == len(np.unique(varied.content, axis=0)) == 3
    if dtype == "float32":
        assert nearly_equal(api.generate(LABELS[1:2], SEEDS[1:2]).content, fresh.content[1:2])
        one = take(fresh, np.array([1]))
        assert nearly_equal(api.vary(one, LABELS[1:2], 0.5, SEEDS[1:2]).content, varied.content[1:2])


def test_no_rows_give_no_rows(model):
    none = part(model, image_size=[12, 10]).generate([], SEEDS[:0])
    assert none.content.shape == (0, 12, 10, 3) and len(none.traits["prompt"]) == 0
    assert part(model, image_size=[12, 10]).vary(none, [], 0.5, SEEDS[:0]).content.shape == (0, 12, 10, 3)


def test_both_pipelines_have_one_copy_of_the_weights_and_keep_it(model):
    api = part(model)
    api.generate(LABELS[:1], SEEDS[:1])
    before = stable_diffusion.pipelines.cache_info().misses
    api.vary(api.generate(LABELS[:2], SEEDS[:2]), LABELS[:2], 0.5, SEEDS[:2])
    part(model, guidance=0, runtime=Runtime(device="cpu", batch_size=7)).generate(LABELS[:1], SEEDS[:1])
    assert stable_diffusion.pipelines.cache_info().misses == before
    runtime = Runtime(device="cpu", dtype="float32")
    from_text, from_image, checker = stable_diffusion.pipelines(model, None, False, runtime)
    for name in ("unet", "vae", "text_encoder"):
        assert getattr(from_text, name) is getattr(from_image, name)
    assert checker is None and not any(p.requires_grad for p in from_text.unet.parameters())


def test_the_more_strength_the_less_is_left_of_the_parent_and_none_leaves_it_as_it_is(model):
    api = part(model, steps=10)
    rng = np.random.default_rng(1)
    prompt = {"prompt": np.array(["a cat"] * 6, object)}
    one, other = (Samples(rng.integers(0, 256, (6, 16, 16, 3), np.uint8), prompt) for _ in range(2))

    def apart(degree, parents, seeds):
        pair = [api.vary(p, LABELS, degree, s).content.astype(float) for p, s in zip(parents, seeds, strict=True)]
        return np.abs(pair[0] - pair[1]).mean()

    # a random autoencoder gives no parent back, so what counts is how far the parent and the seed decide
    by_parent = [apart(degree, (one, other), (SEEDS, SEEDS)) for degree in (0.1, 0.5, 1)]
    by_seed = [apart(degree, (one, one), (SEEDS, SEEDS + 1)) for degree in (0.1, 0.5, 1)]
    assert by_parent[0] > by_parent[1] > by_parent[2] and by_seed[0] < by_seed[1] < by_seed[2]
    assert np.array_equal(api.vary(one, LABELS, 0.0, SEEDS).content, one.content)


def test_an_iteration_has_its_own_strength_steps_and_guidance(model):
    api = part(model)
    fresh = api.generate(LABELS, SEEDS)
    plain = api.vary(fresh, LABELS, {"strength": 0.5}, SEEDS).content
    assert np.array_equal(plain, api.vary(fresh, LABELS, 0.5, SEEDS).content)
    assert not np.array_equal(plain, api.vary(fresh, LABELS, {"strength": 0.5, "guidance": 9}, SEEDS).content)
    more = api.vary(fresh, LABELS, {"strength": 0.5, "steps": 8, "guidance": 0}, SEEDS).content
    assert np.array_equal(more, part(model, steps=8, guidance=0).vary(fresh, LABELS, 0.5, SEEDS).content)


def test_a_negative_prompt_and_the_prompt_count(model):
    base = part(model, prompts="a {animal}", guidance=9.0).generate(LABELS[:2], SEEDS[:2]).content
    other = part(model, prompts="{animal}", guidance=9.0).generate(LABELS[:2], SEEDS[:2]).content
    less = part(model, prompts="a {animal}", guidance=9.0, negative_prompt="z").generate(LABELS[:2], SEEDS[:2]).content
    assert not np.array_equal(base, other) and not np.array_equal(base, less)


@pytest.mark.parametrize("steps", [1, 4])
def test_turbo_draws_in_few_steps_without_guidance(tmp_path, steps):
    api = part(save_tiny(tmp_path / "it", scheduler="turbo"), guidance=0.0, steps=steps)
    fresh = api.generate(LABELS, SEEDS)
    assert api.vary(fresh, LABELS, 1.0, SEEDS).content.shape == (6, 16, 16, 3)
    assert api.vary(fresh, LABELS, {"strength": 0.5, "steps": 2}, SEEDS).content.shape == (6, 16, 16, 3)


def test_samples_of_another_size_and_grey_ones_are_adopted_and_varied(model):
    api = part(model, image_size=[12, 10])
    assert api.generate(LABELS, SEEDS).content.shape == (6, 12, 10, 3)
    grey = Samples(np.random.default_rng(1).integers(0, 256, (6, 9, 7, 1), np.uint8), {"font": np.arange(6)})
    with pytest.raises(UserError, match="lack the trait prompt"):
        api.vary(grey, LABELS, 0.5, SEEDS)
    adopted = api.adopt(grey, LABELS, SEEDS)
    assert np.array_equal(adopted.content, grey.content) and np.array_equal(adopted.traits["font"], np.arange(6))
    assert list(adopted.traits["prompt"]) == list(api.generate(LABELS, SEEDS).traits["prompt"])
    for degree in (0.0, 0.5):
        assert api.vary(adopted, LABELS, degree, SEEDS).content.shape == (6, 12, 10, 3)


def test_prompts_come_from_the_label_and_every_template_is_drawn(model, tmp_path):
    many, seeds = LABELS * 50, np.arange(300, dtype=np.uint64)
    drawn = part(model).adopt(Samples(np.zeros((300, 2, 2, 3), np.uint8)), many, seeds).traits["prompt"]
    assert set(drawn[::2]) == {"a cat", "one cat only"} and set(drawn[1::2]) == {"a dog", "one dog only"}
    share = np.mean([prompt.startswith("a ") for prompt in drawn])
    assert 0.4 < share < 0.6
    by_label = {"cat | big": ["a {size} cat"], "dog | big": "a dog"}
    labels = [{"animal": "cat", "size": "big"}, {"animal": "dog", "size": "big"}]
    named = part(model, prompts=by_label)
    assert list(named.generate(labels, SEEDS[:2]).traits["prompt"]) == ["a big cat", "a dog"]
    assert list(part(model, prompts={"all": "it"}).generate([{}], SEEDS[:1]).traits["prompt"]) == ["it"]
    (tmp_path / "lines.txt").write_text("\n the {animal} \n\n")
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump(by_label))
    from_lines = part(model, prompts=None, prompt_file=str(tmp_path / "lines.txt"))
    assert list(from_lines.generate(LABELS[:2], SEEDS[:2]).traits["prompt"]) == ["the cat", "the dog"]
    from_yaml = part(model, prompts=None, prompt_file=str(tmp_path / "labels.yaml"))
    assert list(from_yaml.generate(labels, SEEDS[:2]).traits["prompt"]) == ["a big cat", "a dog"]


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_template_without_its_column_is_one_line_before_a_model_loads(model):
    before = stable_diffusion.pipelines.cache_info().misses
    with pytest.raises(UserError, match=r"^api\.prompts=a \{colour\}: .* label's columns \(animal\)") as error:
        part(model, prompts="a {colour}").generate(LABELS, SEEDS)
    one_line(error)
    with pytest.raises(UserError, match="templates for the label dog too"):
        part(model, prompts={"cat": "a cat"}).generate(LABELS, SEEDS)
    assert stable_diffusion.pipelines.cache_info().misses == before


def test_a_model_that_is_not_there_is_one_line_that_says_what_to_give(model, tmp_path):
    for path in (None, str(tmp_path / "nothing"), "nothing"):
        with pytest.raises(UserError, match=r"^api\.path=.*expected an existing folder"):
            part(path).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model_index\.json"):
        part(str(tmp_path / "empty")).check()
    part("some-one/some-model").check()
    with pytest.raises(UserError, match=r"^api\.path=some-one/some-model: .*Give api\.path= a folder") as error:
        part("some-one/some-model").generate(LABELS[:1], SEEDS[:1])
    one_line(error)
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    os.remove(next((broken / "unet").glob("*.safetensors")))
    (broken / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle, say")
    with pytest.raises(UserError, match=r"^api\.path=.*safetensors") as error:
        part(str(broken)).generate(LABELS[:1], SEEDS[:1])
    one_line(error)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"prompts": None}, r"^api\.prompts=null"),
        ({"prompts": []}, r"^api\.prompts=\[\]"),
        ({"prompts": "a {"}, r"^api\.prompts=a {"),
        ({"prompts": {"cat": [3]}}, r"^api\.prompts\.cat="),
        ({"prompt_file": "x"}, r"^api\.prompt_file=x: expected null"),
        ({"prompts": None, "prompt_file": "no/such.txt"}, r"^api\.prompt_file=no/such\.txt"),
        ({"steps": 0}, r"^api\.steps=0"),
        ({"guidance": -1}, r"^api\.guidance=-1"),
        ({"size": [20, 16]}, r"^api\.size=\[20, 16\]: expected multiples of 8"),
        ({"image_size": 32}, r"^api\.image_size=32"),
        ({"safety_checker": "no"}, r"^api\.safety_checker=no"),
        ({"safety_checker": True}, r"^api\.safety_checker=true: expected false"),
    ],
)
def test_a_wrong_setting_is_one_line(model, settings, said):
    with pytest.raises(UserError, match=said) as error:
        part(model, **settings).check()
    one_line(error)


def test_a_degree_needs_a_strength_that_leaves_a_step(model):
    api = part(model, steps=50)
    for degree in (0.0, 0.02, 1, {"strength": 0.3, "steps": 4}, {"strength": 1.0, "steps": 1, "guidance": 0.0}):
        api.check_degree(degree)
    for degree in (-0.1, 1.1, "much", True, {"steps": 4}, {"strength": 0.5, "font": 1}, {"strength": 0.5, "steps": 0}):
        with pytest.raises(UserError, match=r"^schedule\.degree"):
            api.check_degree(degree)
    with pytest.raises(UserError, match=r"schedule\.degree=0\.01: expected strength \* steps of 1 or more.* 0\.02"):
        api.check_degree(0.01)


def test_float16_needs_a_gpu(model, monkeypatch):
    with pytest.raises(UserError, match="float16"):
        Runtime(device="cpu", dtype="float16")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=r"^runtime\.dtype=float16"):
        part(model, runtime=Runtime(dtype="float16")).generate(LABELS[:1], SEEDS[:1])


def test_the_weights_have_the_dtype_of_the_runtime(model):
    import torch

    api = part(model, runtime=Runtime(device="cpu", dtype="bfloat16"))
    rough = api.vary(api.generate(LABELS, SEEDS), LABELS, 0.5, SEEDS).content
    assert rough.shape == (6, 16, 16, 3)
    pipeline = stable_diffusion.pipelines(model, None, False, Runtime(device="cpu", dtype="bfloat16"))[0]
    assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.bfloat16


class Strict:
    """Refuses what it is told to, call by call."""

    def __init__(self, checker, *answers):
        self.config, self.answers, self.asked = checker.config, list(answers), []

    def __call__(self, clip_input, images):
        self.asked.append(tuple(clip_input.shape))
        return images, self.answers.pop(0)


def test_what_the_safety_checker_refuses_is_drawn_again_or_comes_back_as_its_parent(checked_model, monkeypatch, caplog):
    api, plain = part(checked_model, safety_checker=True), part(checked_model)
    api.check()
    labels, seeds = LABELS[:3], SEEDS[:3]
    allowed = plain.generate(labels, seeds)
    from_text, from_image, checker = stable_diffusion.pipelines(
        checked_model, None, True, Runtime(device="cpu", dtype="float32")
    )
    assert from_text.safety_checker is None and checker is not None
    assert [type(flag) for flag in checker(clip_input=_pixels(2), images=[np.zeros(1)] * 2)[1]] == [bool] * 2

    def with_answers(*answers):
        strict = Strict(checker, *answers)
        monkeypatch.setattr(stable_diffusion, "pipelines", lambda *_: (from_text, from_image, strict))
        return strict

    strict = with_answers([False, True, False], [True], [False])
    with caplog.at_level(logging.WARNING):
        drawn = api.generate(labels, seeds).content
    assert strict.asked == [(3, 3, 16, 16), (1, 3, 16, 16), (1, 3, 16, 16)] and not caplog.records
    assert np.array_equal(drawn[[0, 2]], allowed.content[[0, 2]])
    assert drawn[1].any() and not np.array_equal(drawn[1], allowed.content[1])
    with_answers([True], [True], [False])
    assert nearly_equal(api.generate(labels[1:2], seeds[1:2]).content[0], drawn[1])  # its other seeds are its own too

    with_answers([False, False, True], *[[True]] * 4)
    drawn = api.generate(labels, seeds).content
    assert drawn[1].any() and not drawn[2].any()
    assert "1 of 3 rows" in caplog.text

    with_answers([True, False, False])
    varied = api.vary(allowed, labels, 0.5, seeds)
    assert np.array_equal(varied.content[0], allowed.content[0])
    assert not np.array_equal(varied.content[1], allowed.content[1])


def _pixels(n):
    import torch

    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_safety_checker_sees_what_the_preparation_of_clip_gives(checked_model):
    import torch
    from transformers import CLIPImageProcessor

    seen = []

    class Watcher(Strict):
        def __call__(self, clip_input, images):
            seen.append(clip_input)
            return images, [False] * len(clip_input)

    checker = stable_diffusion.pipelines(checked_model, None, True, Runtime(device="cpu", dtype="float32"))[2]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    values = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    stable_diffusion.unsafe(Watcher(checker), values)
    theirs = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)(list(pixels), return_tensors="pt")
    assert seen[0].shape == theirs.pixel_values.shape
    assert (seen[0] - theirs.pixel_values).abs().mean() < 0.02  # theirs rounds to whole grey values after resizing


def test_rows_that_are_not_finite_do_not_get_into_the_samples(model, monkeypatch):
    api = part(model)
    fresh = api.generate(LABELS, SEEDS)
    from_image = stable_diffusion.pipelines(model, None, False, Runtime(device="cpu", dtype="float32"))[1]
    whole = type(from_image).__call__

    @functools.wraps(whole)
    def overflowing(*arguments, **request):
        values = whole(*arguments, **request)[0]
        values[1, 0, 0, 0] = float("nan")
        return (values,)

    monkeypatch.setattr(type(from_image), "__call__", overflowing)
    varied = api.vary(fresh, LABELS, 0.5, SEEDS).content
    assert np.array_equal(varied[1], fresh.content[1]) and not np.array_equal(varied[0], fresh.content[0])


def test_it_is_picklable_before_and_after_it_is_asked(model):
    api = part(model)
    copy = pickle.loads(pickle.dumps(api))
    assert copy == api
    drawn = copy.generate(LABELS[:1], SEEDS[:1]).content
    assert np.array_equal(pickle.loads(pickle.dumps(copy)).generate(LABELS[:1], SEEDS[:1]).content, drawn)


def test_it_composes_with_what_stands_in_its_yaml(model):
    overrides = [
        "data=digits",
        "api=stable_diffusion",
        f"api.path={model}",
        "api.prompts='a {digit}'",
        "privacy.epsilon=1",
        "privacy.delta=1e-5",
    ]
    api = build(compose.settings(overrides)).api
    assert isinstance(api, StableDiffusion)
    api.check()
    assert api.row_bytes == 2 * 512 * 512 + 100
