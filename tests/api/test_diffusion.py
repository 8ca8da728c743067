"""Diffusion networks as an api: the published sampler held against its formulas, and the schedulers of diffusers.

The original network is written down here again, from its layout alone, and run on random weights.
"""

import importlib.machinery
import importlib.util
import json
import pickle
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dpsyn.api.diffusion import Diffusion
from dpsyn.api.diffusion import improved as improved_diffusion
from dpsyn.errors import UserError
from dpsyn.files import public_cache
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples, take

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tiny_models.py"
CPU = Runtime(device="cpu", dtype="float32")
SETTINGS = dict(
    image_size=None,
    classes=None,
    resolution=16,
    heads=4,
    diffusion_steps=4000,
    noise_schedule="cosine",
    respacing="10",
    ddim=True,
    steps=4,
    runtime=CPU,
)
SMALL = dict(channels=32, multipliers=(1, 2), blocks=1, attention=(1,), classes=10, learned=True)


def script():
    loader = importlib.machinery.SourceFileLoader("make_tiny_models", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("make_tiny_models", loader))
    loader.exec_module(module)
    return module


tiny = script()


def api(path, **changed):
    return Diffusion(str(path), **{**SETTINGS, **changed})


def seeds(n, start=0):
    return np.random.SeedSequence(start).generate_state(n, np.uint64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    torch.save(tiny.improved_diffusion(**SMALL), path)
    return path


@pytest.fixture(scope="module")
def consistency(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consistency")
    tiny.consistency(folder)
    return folder


def original(state, x, t, classes, heads):
    """What improved-diffusion computes, from its names: float32 [n, 3 or 6, h, w]"""

    def layer(name, h):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.conv2d(h, weight, bias, padding=weight.shape[-1] // 2) if weight.ndim == 4 else h @ weight.T + bias

    def norm(name, h):
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def residual(name, h, emb):
        out = layer(f"{name}.in_layers.2", F.silu(norm(f"{name}.in_layers.0", h)))
        told = layer(f"{name}.emb_layers.1", F.silu(emb))[..., None, None]
        if told.shape[1] == 2 * out.shape[1]:
            scale, shift = told.tensor_split(2, 1)
            out = norm(f"{name}.out_layers.0", out) * (1 + scale) + shift
        else:
            out = norm(f"{name}.out_layers.0", out + told)
        out = layer(f"{name}.out_layers.3", F.silu(out))
        return out + (layer(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in state else h)

    def attend(name, h):
        n, c, height, width = h.shape
        flat = norm(f"{name}.norm", h).flatten(2)
        three = torch.einsum("oc,nct->not", state[f"{name}.qkv.weight"][:, :, 0], flat)
        three = three + state[f"{name}.qkv.bias"][:, None]
        parts = []
        for one in three.split(3 * c // heads, 1):
            q, k, v = one.split(c // heads, 1)
            weights = torch.softmax(q.transpose(1, 2) @ k / (c // heads) ** 0.5, 2)
            parts.append(v @ weights.transpose(1, 2))
        out = torch.einsum("oc,nct->not", state[f"{name}.proj_out.weight"][:, :, 0], torch.cat(parts, 1))
        return h + (out + state[f"{name}.proj_out.bias"][:, None]).view(n, c, height, width)

    def block(name, h, emb):
        for part in range(3):
            if f"{name}.{part}.in_layers.0.weight" in state:
                h = residual(f"{name}.{part}", h, emb)
            elif f"{name}.{part}.qkv.weight" in state:
                h = attend(f"{name}.{part}", h)
            elif f"{name}.{part}.op.weight" in state:
                h = F.conv2d(h, state[f"{name}.{part}.op.weight"], state[f"{name}.{part}.op.bias"], 2, 1)
            elif f"{name}.{part}.conv.weight" in state:
                h = layer(f"{name}.{part}.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
            elif f"{name}.{part}.weight" in state:
                h = layer(f"{name}.{part}", h)
        return h

    def count(kind):
        return len({name.split(".")[1] for name in state if name.startswith(kind)})

    half = state["time_embed.0.weight"].shape[1] // 2
    angles = t[:, None].float() * torch.exp(-np.log(10000) * torch.arange(half) / half)
    emb = layer("time_embed.2", F.silu(layer("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    if classes is not None:
        emb = emb + state["label_emb.weight"][classes]
    kept, h = [], x
    for n in range(count("input_blocks.")):
        h = block(f"input_blocks.{n}", h, emb)
        kept.append(h)
    h = block("middle_block", h, emb)
    for n in range(count("output_blocks.")):
        h = block(f"output_blocks.{n}", torch.cat([h, kept.pop()], 1), emb)
    return layer("out.2", F.silu(norm("out.0", h)))


LAYOUTS = [
    dict(channels=32, multipliers=(1, 2, 3, 4), blocks=3, attention=(2, 3), classes=1000, learned=True),
    dict(channels=32, multipliers=(1, 2, 3, 4), blocks=1, attention=(0, 3), classes=None, learned=True),
    dict(channels=64, multipliers=(1, 2), blocks=2, attention=(), classes=10, learned=False),
    dict(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(0, 1), classes=None, learned=False),
]


@pytest.mark.parametrize("layout, heads", list(zip(LAYOUTS, (4, 2, 4, 1), strict=True)), ids=range(len(LAYOUTS)))
def test_a_converted_network_computes_what_the_original_does_and_so_does_its_copy_in_the_cache(tmp_path, layout, heads):
    state = tiny.improved_diffusion(**layout)
    assert all(weight.abs().max() > 0 for weight in state.values())
    torch.save(state, tmp_path / "x.pt")
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 3, 16, 16, generator=generator), torch.tensor([0, 1234, 3999])
    classes = torch.tensor([0, 9, 5]) if layout["classes"] else None
    expected = original(state, x, t, classes, heads)
    assert expected.shape[1] == (6 if layout["learned"] else 3)
    for cached in (0, 1):
        assert len(list(public_cache().glob("networks/*.safetensors"))) == cached
        network = improved_diffusion.network("api.path", str(tmp_path / "x.pt"), heads)
        with torch.no_grad():
            error = (network(x, t, classes).sample - expected).abs().max()
        assert error < 2e-5, error
    assert not list(public_cache().glob("networks/*.part"))


def test_a_layout_without_scale_shift_norm_is_read_off_the_file(tmp_path):
    state = tiny.improved_diffusion(**SMALL)
    for name in list(state):
        if ".emb_layers.1." in name:
            state[name] = state[name][: len(state[name]) // 2].clone()
    torch.save(state, tmp_path / "x.pt")
    x, t, classes = torch.randn(2, 3, 16, 16), torch.tensor([7, 2000]), torch.tensor([1, 2])
    network = improved_diffusion.network("api.path", str(tmp_path / "x.pt"), 4)
    with torch.no_grad():
        assert (network(x, t, classes).sample - original(state, x, t, classes, 4)).abs().max() < 2e-5


def test_the_published_layout_is_known_by_its_shapes():
    small = tiny.improved_diffusion(32, (1, 2, 3, 4), 3, (2, 3), 1000, True)
    shapes = {
        name: tuple(6 * side if side % 32 == 0 and side else side for side in weight.shape)
        for name, weight in small.items()
    }
    found = improved_diffusion.architecture("api.path", "x.pt", shapes, 4)
    assert found["block_out_channels"] == [192, 384, 576, 768]
    assert found["layers_per_block"] == 3
    assert [kind.startswith("Attn") for kind in found["down_block_types"]] == [False, False, True, True]
    assert (found["num_class_embeds"], found["out_channels"]) == (1000, 6)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == pytest.approx(270e6, rel=0.1)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("middle_block.1.qkv.bias"), r"missing middle_block\.1\.qkv\.bias\.$"),
        (lambda s: s.update({"extra.weight": torch.zeros(2)}), r"unexpected extra\.weight\.$"),
        (lambda s: s.pop("time_embed.0.weight"), r"missing time_embed\.0\.weight"),
        (lambda s: s.update({"out.0.weight": torch.ones(64)}), r"Shapes do not fit: out\.0\.weight"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("output_blocks.1.")],
            r"missing output_blocks\.1\.0\..*, .*, .* and \d+ more",
        ),
    ],
)
def test_a_checkpoint_of_another_layout_says_which_keys(tmp_path, change, words):
    state = tiny.improved_diffusion(**SMALL)
    change(state)
    torch.save(state, tmp_path / "x.pt")
    for ask in (lambda part: part.check(), lambda part: part.generate([{}], seeds(1))):
        with pytest.raises(
            UserError, match=rf"^api\.path=.*: expected an improved-diffusion checkpoint\..*{words}"
        ) as e:
            ask(api(tmp_path / "x.pt"))
        assert "\n" not in str(e.value)


def test_what_is_no_file_of_weights_and_what_would_run_code_is_one_line(tmp_path):
    (tmp_path / "page.pt").write_text("<html>")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("page", "module", "list"):
        with pytest.raises(UserError, match=r"^api\.path=.*expected a state dict") as error:
            api(tmp_path / f"{name}.pt").check()
        assert "\n" not in str(error.value)


def test_settings_that_do_not_fit_the_network_are_one_line(checkpoint, consistency):
    for part in (api(checkpoint, classes=[3, 10]), api(consistency, classes=[10])):
        for ask in (part.check, lambda part=part: part.generate([{}], seeds(1))):
            with pytest.raises(UserError, match=r"^api\.classes=.*expected ids from 0 to 9\. The network has 10"):
                ask()
    with pytest.raises(UserError, match=r"^api\.resolution=15: expected a multiple of 2"):
        api(checkpoint, resolution=15).check()
    with pytest.raises(UserError, match=r"^api\.heads=5: expected a number that divides"):
        api(checkpoint, heads=5).check()
    with pytest.raises(UserError, match=r"^api\.steps=41: expected at most 40"):
        api(consistency, steps=41).check()


def test_known_respacings_are_those_of_the_original():
    def kept(respacing, steps=4000):
        return improved_diffusion.respaced("cosine", steps, respacing, "api.respacing").timesteps

    assert kept("ddim10") == tuple(range(0, 4000, 400))
    assert kept("ddim40") == tuple(range(0, 4000, 100))
    hundred = kept("100")
    assert (len(hundred), hundred[:4], hundred[-2:]) == (100, (0, 40, 81, 121), (3959, 3999))
    assert kept("40") == tuple(round(i * 3999 / 39) for i in range(40))
    assert kept("4000") == tuple(range(4000))
    assert kept("10,15,20", 300)[:12] == (0, 11, 22, 33, 44, 55, 66, 77, 88, 99, 100, 107)
    assert len(kept("10,15,20", 300)) == 45
    assert kept("1") == (0,)
    for wrong in ("ddim3000", "4001", "0", "many", "ddim", "-3", "10;10"):
        with pytest.raises(UserError, match=rf"^api\.respacing={wrong}: expected"):
            kept(wrong)


def test_the_respaced_process_keeps_the_noise_levels_of_the_whole():
    whole = improved_diffusion.respaced("cosine", 4000, "4000", "x").alphas
    curve = np.cos((np.arange(1, 4001) / 4000 + 0.008) / 1.008 * np.pi / 2) ** 2
    curve /= np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert whole[:3900] == pytest.approx(curve[:3900], abs=1e-9)
    part = improved_diffusion.respaced("cosine", 4000, "100", "x")
    assert np.array_equal(part.alphas, whole[list(part.timesteps)])
    linear = improved_diffusion.respaced("linear", 1000, "1000", "x").alphas
    assert linear[[0, -1]] == pytest.approx([1 - 1e-4, np.prod(1 - np.linspace(1e-4, 0.02, 1000))])


@pytest.mark.parametrize("ddim", [True, False])
def test_samples_follow_the_published_formulas(checkpoint, ddim):
    """DDIM: Song et al. 2020, equation 12. Ancestral: posterior mean, and variance between its bounds in logs."""
    part = api(checkpoint, ddim=ddim, respacing="6")
    parents = part.generate([{}] * 2, seeds(2))
    made = part.vary(parents, [{}] * 2, 2, seeds(2, 1))
    state, process = torch.load(checkpoint, weights_only=True), improved_diffusion.respaced("cosine", 4000, "6", "x")
    bars = torch.tensor(process.alphas)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    betas = 1 - bars / before
    noise = [torch.Generator().manual_seed(int(seed)) for seed in seeds(2, 1)]

    def normal():
        return torch.stack([torch.randn(3, 16, 16, generator=one) for one in noise]).double()

    x = torch.from_numpy(parents.content).permute(0, 3, 1, 2).double() / 127.5 - 1
    x = bars[3].sqrt() * x + (1 - bars[3]).sqrt() * normal()
    classes = torch.from_numpy(parents.traits["class"])
    for i in (3, 2, 1, 0):
        t = torch.full((2,), process.timesteps[i])
        eps, share = original(state, x.float(), t, classes, 4).double().chunk(2, 1)
        start = ((x - (1 - bars[i]).sqrt() * eps) / bars[i].sqrt()).clamp(-1, 1)
        if ddim:
            eps = (x - bars[i].sqrt() * start) / (1 - bars[i]).sqrt()
            x = before[i].sqrt() * start + (1 - before[i]).sqrt() * eps
        else:
            small = betas[i] * (1 - before[i]) / (1 - bars[i])
            mean = betas[i] * before[i].sqrt() / (1 - bars[i]) * start
            x = mean + (1 - betas[i]).sqrt() * (1 - before[i]) / (1 - bars[i]) * x
            if i:
                share = (share + 1) / 2
                x = x + (share * betas[i].log() + (1 - share) * small.log()).exp().sqrt() * normal()
    expected = ((x + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(made.content.astype(int) - expected).max() <= 1
    assert np.mean(made.content != expected) < 0.01


def test_a_larger_degree_stays_closer_and_a_degree_may_bring_its_respacing(checkpoint):
    part = api(checkpoint)
    parents = part.generate([{}] * 8, seeds(8))

    def moved(degree):
        made = part.vary(parents, [{}] * 8, degree, seeds(8, 1))
        assert np.array_equal(made.traits["class"], parents.traits["class"])
        return np.abs(made.content.astype(int) - parents.content).mean()

    assert moved(9) < 3
    assert moved(9) < moved(7) < moved(5)
    assert moved(0) > 40
    assert moved({"skip": 5}) == moved(5)
    assert moved({"skip": 38, "respacing": "40"}) != moved(8)
    assert moved({"skip": 0.0, "respacing": "ddim10"}) > 40
    part.check_degree({"skip": 39, "respacing": 40})
    for wrong in (10, -1, 1.5, True, "1", float("nan"), {"skip": 40, "respacing": "40"}):
        with pytest.raises(UserError, match=r"^schedule\.degree=.*expected a whole number from 0 to \d+"):
            part.check_degree(wrong)
    for wrong in ({"respacing": "40"}, {"skip": 1, "strength": 1}, {"skip": 1, "respacing": "x"}):
        with pytest.raises(UserError, match=r"^schedule\.degree"):
            part.check_degree(wrong)


def test_a_degree_of_diffusers_is_a_share(consistency):
    part = api(consistency, steps=2)
    for good in (0, 0.0, 1, 0.3, {"strength": 0.5}, {"strength": 0.5, "steps": 40}):
        part.check_degree(good)
    for wrong in (-0.1, 1.1, True, "far", float("nan"), {"steps": 2}, {"strength": 1, "steps": 0}, {"skip": 2}):
        with pytest.raises(UserError, match=r"^schedule\.degree"):
            part.check_degree(wrong)
    with pytest.raises(UserError, match=r"^schedule\.degree\.steps=41: expected at most 40"):
        part.check_degree({"strength": 1, "steps": 41})
    parents = part.generate([{}] * 4, seeds(4))
    assert np.array_equal(part.vary(parents, [{}] * 4, 0, seeds(4)).content, parents.content)


@pytest.mark.parametrize("ddim", [True, False])
def test_a_row_is_the_same_in_any_batch_and_any_order(checkpoint, ddim):
    whole = api(checkpoint, ddim=ddim)
    parts = api(checkpoint, ddim=ddim, runtime=Runtime(device="cpu", dtype="float32", network_batch_size=3))
    same_in_any_batch(whole, parts, 4)


def same_in_any_batch(whole, parts, degree):
    n, labels = 7, [{}] * 7
    one, other = whole.generate(labels, seeds(n)), parts.generate(labels, seeds(n))
    did_you_mean(one, other)
    order = np.array([4, 2, 6, 0])
    did_you_mean(take(one, order), parts.generate(labels[:4], seeds(n)[order]))
    varied = whole.vary(one, labels, degree, seeds(n, 1))
    did_you_mean(varied, parts.vary(one, labels, degree, seeds(n, 1)))
    did_you_mean(take(varied, order), whole.vary(take(one, order), labels[:4], degree, seeds(n, 1)[order]))
    assert not np.array_equal(varied.content, whole.vary(one, labels, degree, seeds(n, 2)).content)
    none = whole.vary(take(one, order[:0]), [], degree, seeds(0))
    assert none.content.shape == (0, *one.content.shape[1:]) == whole.generate([], seeds(0)).content.shape
    assert none.traits.keys() == one.traits.keys()


def did_you_mean(one, other):
    assert one.content.dtype == np.uint8
    assert np.abs(one.content.astype(int) - other.content).max() <= 1
    assert one.traits.keys() == other.traits.keys()
    assert all(np.array_equal(one.traits[name], other.traits[name]) for name in one.traits)


SCHEDULERS = {
    "DDPMScheduler": dict(num_train_timesteps=100),
    "DDIMScheduler": dict(num_train_timesteps=100),
    "EDMEulerScheduler": dict(num_train_timesteps=100),
    "EDMDPMSolverMultistepScheduler": dict(num_train_timesteps=100),
    "DPMSolverMultistepScheduler": dict(num_train_timesteps=100),
    "HeunDiscreteScheduler": dict(num_train_timesteps=100),
    "CMStochasticIterativeScheduler": dict(num_train_timesteps=40),
}


def saved(folder, scheduler, settings, inner=True, **network):
    import diffusers

    torch.manual_seed(0)
    shape = dict(block_out_channels=(32, 32), layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"))
    shape |= dict(up_block_types=("AttnUpBlock2D", "UpBlock2D"), sample_size=8)
    made = diffusers.UNet2DModel(**{**shape, **network})
    made.save_pretrained(folder / "unet" if inner else folder)
    getattr(diffusers, scheduler)(**settings).save_pretrained(folder / "scheduler" if inner else folder)
    return folder


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_generates_and_varies_row_by_row(tmp_path, name):
    folder = saved(tmp_path, name, SCHEDULERS[name])
    part = api(folder, steps=5)
    part.check()
    parts = api(folder, steps=5, runtime=Runtime(device="cpu", dtype="float32", network_batch_size=3))
    same_in_any_batch(part, parts, {"strength": 0.6, "steps": 5})
    parents = part.generate([{}] * 4, seeds(4))
    assert parents.content.shape == (4, 8, 8, 3)
    assert not parents.traits

    def moved(degree):
        made = part.vary(parents, [{}] * 4, degree, seeds(4, 1)).content
        return np.abs(made.astype(int) - parents.content).mean()

    assert moved({"strength": 0.03, "steps": 40}) < moved({"strength": 1.0, "steps": 5})
    assert moved(1.0) != moved({"strength": 1.0, "steps": 1})


def test_a_variation_takes_its_share_of_the_calls(tmp_path, consistency, monkeypatch):
    calls = []
    real = torch.nn.Module.__call__

    def counted(self, *given, **named):
        if type(self).__name__ == "UNet2DModel":
            calls.append(float(given[1]))
        return real(self, *given, **named)

    part, shortcut = api(saved(tmp_path, "DDIMScheduler", {}), steps=10), api(consistency, steps=1)
    parents, few = part.generate([{}], seeds(1)), shortcut.generate([{}], seeds(1))
    monkeypatch.setattr(torch.nn.Module, "__call__", counted)

    def asked(part, parents, degree):
        calls.clear()
        part.vary(parents, [{}], degree, seeds(1)) if parents else part.generate([{}], seeds(1))
        return list(calls)

    assert asked(part, None, None) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert asked(part, parents, 0.3) == [200, 100, 0]
    assert asked(part, parents, 0.01) == [0]
    assert asked(part, parents, {"strength": 0.5, "steps": 4}) == [250, 0]

    def sigma(s):  # of 40 levels between 80 and 0.002
        return (0.002 ** (1 / 7) + s * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7

    def levels(part, parents, degree):
        return [np.exp(t / 250) for t in asked(part, parents, degree)]

    assert levels(shortcut, None, None) == pytest.approx([80], rel=1e-4)
    assert levels(shortcut, few, 1) == pytest.approx([80], rel=1e-4)
    assert levels(shortcut, few, 19 / 39) == pytest.approx([sigma(19 / 39)], rel=1e-4)
    assert levels(shortcut, few, {"strength": 19 / 39, "steps": 2}) == pytest.approx(
        [sigma(19 / 39), sigma(9 / 39)], rel=1e-4
    )


def test_the_noise_is_that_of_the_level(tmp_path):
    """A network that says nothing of x leaves a consistency model's parent at its skip share, and the noise with it."""
    part = api(saved(tmp_path, "CMStochasticIterativeScheduler", {"clip_denoised": False}), steps=1)
    network = part.loaded.network
    with torch.no_grad():
        network.conv_out.weight.zero_()
        network.conv_out.bias.zero_()
    parents = Samples(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8))
    made = part.vary(parents, [{}] * 2, 10 / 39, seeds(2))
    sigma = (0.002 ** (1 / 7) + 10 / 39 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    noise = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds(2)]
    x = parents.content / 127.5 - 1 + sigma * torch.stack(noise).permute(0, 2, 3, 1).numpy()
    expected = (np.clip(x * 0.25 / ((sigma - 0.002) ** 2 + 0.25), -1, 1) + 1) * 127.5
    assert np.abs(made.content - expected).max() < 0.51


def test_learned_variances_are_split_off_and_files_may_lie_in_the_folder_itself(tmp_path):
    for name, settings in (("DDPMScheduler", {"variance_type": "learned_range"}), ("DDIMScheduler", {})):
        folder = saved(tmp_path / name, name, settings, inner=False, out_channels=6)
        assert (folder / "config.json").exists()
        made = api(folder, steps=2).generate([{}] * 2, seeds(2))
        assert made.content.shape == (2, 8, 8, 3)


def test_grey_networks_take_parents_of_any_size_and_colour(tmp_path):
    part = api(saved(tmp_path, "DDIMScheduler", {}, in_channels=1, out_channels=1), image_size=[12, 20], steps=2)
    parents = Samples(np.random.default_rng(0).integers(0, 256, (2, 30, 24, 3)).astype(np.uint8))
    assert part.vary(parents, [{}] * 2, 0.5, seeds(2)).content.shape == (2, 12, 20, 1)
    assert part.generate([{}] * 3, seeds(3)).content.shape == (3, 12, 20, 1)


def test_classes_are_drawn_by_the_seed_alone_from_those_that_are_named(checkpoint):
    every = api(checkpoint, respacing="1").generate([{}] * 300, seeds(300)).traits["class"]
    assert (every.dtype, set(every)) == (np.int64, set(range(10)))
    assert np.bincount(every).min() > 10
    some = api(checkpoint, respacing="1", classes=[7, 2]).generate([{}] * 30, seeds(30)).traits["class"]
    assert set(some) == {2, 7}


def test_samples_of_another_api_are_adopted(checkpoint):
    part = api(checkpoint)
    strange = Samples(np.zeros((5, 28, 28, 1), np.uint8), {"font": np.arange(5)})
    with pytest.raises(UserError, match="lack the trait class"):
        part.vary(strange, [{}] * 5, 1, seeds(5))
    own = part.adopt(strange, [{}] * 5, seeds(5))
    assert np.array_equal(own.content, strange.content)
    assert own.traits.keys() == {"font", "class"}
    assert part.vary(own, [{}] * 5, 8, seeds(5)).content.shape == (5, 16, 16, 3)
    foreign = Samples(own.content, {"class": np.full(5, 10)})
    with pytest.raises(UserError, match="trait class does not fit the network, which has 10 classes"):
        part.vary(foreign, [{}] * 5, 1, seeds(5))
    with pytest.raises(UserError, match="expected images"):
        part.vary(Samples(np.array(["a"], object)), [{}], 1, seeds(1))


def test_without_a_network_and_without_the_internet_one_line_says_what_to_put_where(in_tmp, monkeypatch):
    part = api("openai/no-such-network-here")
    part.check()
    with pytest.raises(
        UserError, match=r"^api\.path=openai/no-such-network-here: .*Put unet/config\.json.*api\.path="
    ) as e:
        part.generate([{}], seeds(1))
    assert "\n" not in str(e.value)

    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    part = api("https://example.invalid/imagenet64.pt")
    part.check()
    with pytest.raises(UserError, match=r"^api\.path=https.*Put the file at .*imagenet64\.pt") as e:
        part.generate([{}], seeds(1))
    assert "\n" not in str(e.value)
    for wrong in ("nowhere.pt", "a b", "nowhere/of/that/name"):
        with pytest.raises(UserError, match=r"^api\.path=.*expected"):
            api(wrong).check()


def test_a_folder_that_does_not_serve_is_one_line(tmp_path):
    def refused(folder, words):
        with pytest.raises(UserError, match=rf"^api\.path=.*{words}") as error:
            api(folder).check()
        assert "\n" not in str(error.value)

    def edited(name, file, **changed):
        folder = saved(tmp_path / name, "DDIMScheduler", {})
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**config, **changed}))
        return folder

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds unet/config\.json or config\.json")
    refused(
        edited("text", "unet/config.json", _class_name="UNet2DConditionModel"), "a UNet2DModel. It holds UNet2DCond"
    )
    refused(edited("latent", "unet/config.json", in_channels=4), "1 or 3 channels")
    folder = saved(tmp_path / "bare", "DDIMScheduler", {})
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, "scheduler_config")
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    refused(folder, "in json")
    folder = edited("sde", "scheduler/scheduler_config.json", _class_name="ScoreSdeVeScheduler")
    with pytest.raises(UserError, match="ScoreSdeVeScheduler"):
        api(folder).generate([{}], seeds(1))
    folder = edited("wide", "unet/config.json", block_out_channels=[64, 64])
    with pytest.raises(UserError, match=r"^api\.path=.*the weights of its config"):
        api(folder).generate([{}], seeds(1))
    folder = saved(tmp_path / "lost", "DDIMScheduler", {})
    next((folder / "unet").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"^api\.path=.*the weights of its config"):
        api(folder).generate([{}], seeds(1))


@pytest.mark.parametrize(
    "key, wrong",
    [
        ("path", None),
        ("image_size", 8),
        ("image_size", [8, 0]),
        ("classes", []),
        ("classes", [-1]),
        ("classes", "3"),
        ("resolution", 0),
        ("heads", True),
        ("diffusion_steps", 1.5),
        ("noise_schedule", "sigmoid"),
        ("respacing", 0),
        ("respacing", None),
        ("ddim", "yes"),
        ("steps", 0),
    ],
)
def test_a_wrong_setting_is_one_line(key, wrong):
    with pytest.raises(UserError, match=rf"^api\.{key}=.*expected"):
        Diffusion(**{**SETTINGS, "path": "x.pt", key: wrong})


def test_a_part_is_plain_values_until_it_is_asked(checkpoint, consistency):
    for part in (api(checkpoint), api(consistency, runtime=Runtime(devices=["cpu"]))):
        assert pickle.loads(pickle.dumps(part)) == part
        part.generate([{}], seeds(1))
        assert pickle.loads(pickle.dumps(part)) == part
        assert part.row_bytes == 16 * 16 * 3 * 0.8 // 1 + 160
    assert improved_diffusion.checkpoint.cache_info().maxsize == 2
