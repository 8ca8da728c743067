import numpy as np
import pytest
import torch

from dpsyn.errors import UserError
from dpsyn.networks import runtime as module
from dpsyn.networks.runtime import Runtime, exact, in_batches, placed, running
from dpsyn.networks.tensors import generators, images, normal, resized, tensor, with_channels


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch):
    monkeypatch.setattr(module, "fitting", {})


def test_a_batch_that_does_not_fit_is_halved_until_it_does_and_the_next_call_knows():
    tried = []

    def work(rows):
        tried.append((rows.start, rows.stop))
        if rows.stop - rows.start > 3:
            raise torch.OutOfMemoryError("too much")
        return list(range(rows.start, rows.stop))

    parts = in_batches(10, Runtime(network_batch_size=8), "a", work)
    assert [row for part in parts for row in part] == list(range(10))
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    tried.clear()
    in_batches(4, Runtime(network_batch_size=8), "a", work)
    assert tried == [(0, 2), (2, 4)]
    assert in_batches(0, Runtime(), "a", work) == []


def test_a_row_that_never_fits_is_one_line_and_other_errors_pass():
    def full(rows):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(UserError, match=r"^the network: one row does not fit into the memory of cpu\.$"):
        in_batches(3, Runtime(device="cpu"), "the network", full)

    def wrong(rows):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        in_batches(3, Runtime(), "b", wrong)


def test_tf32_is_off_unless_asked_and_never_in_an_embedding():
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for context, expected in (
        (running(Runtime(device="cpu")), False),
        (running(Runtime(device="cpu", tf32=True)), True),
        (exact(), False),
    ):
        with context:
            assert [place.allow_tf32 for place in places] == [expected, expected]
            assert not torch.is_grad_enabled()
    assert [place.allow_tf32 for place in places] == before


def test_the_dtype_is_that_of_autocast_and_an_embedding_stays_float32():
    layer = placed(torch.nn.Linear(4, 4), Runtime(device="cpu", channels_last=False))
    with running(Runtime(device="cpu", dtype="bfloat16")):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with running(Runtime(device="cpu")):
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    with exact():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert not any(weight.requires_grad for weight in layer.parameters())


def test_channels_last_is_the_memory_format_of_the_weights():
    layer = torch.nn.Conv2d(8, 8, 3)
    assert placed(layer, Runtime(device="cpu")).weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network_batch_size": 0}, "runtime.network_batch_size=0"),
        ({"device": "gpu"}, "runtime.device=gpu"),
        ({"devices": "cuda:0"}, "runtime.devices=cuda:0"),
        ({"devices": ["cuda"]}, "runtime.devices="),
        ({"devices": ["cuda:0"], "device": "cuda:1"}, "runtime.device=cuda:1: expected auto"),
        ({"dtype": "half"}, "runtime.dtype=half: expected auto, float32, bfloat16 or float16"),
        ({"dtype": "float16", "device": "cpu"}, "runtime.dtype=float16"),
        ({"compile": "yes"}, "runtime.compile=yes"),
        ({"workers": -1}, "runtime.workers=-1"),
    ],
)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(UserError) as refused:
        Runtime(**settings)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_float16_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(UserError, match=r"^runtime.dtype=float16: expected float32 or bfloat16"),
        running(Runtime(dtype="float16")),
    ):
        pass


def test_the_noise_of_a_row_is_that_of_its_seed_alone():
    seeds = np.array([3, 2**63 + 5, 7], np.uint64)
    noise = normal(seeds, (2, 5), "cpu")
    assert noise.shape == (3, 2, 5) and noise.dtype == torch.float32
    assert torch.equal(normal(seeds[::-1], (2, 5), "cpu").flip(0), noise)
    assert torch.equal(torch.randn(2, 5, generator=generators(seeds)[1]), noise[1])
    assert normal(seeds[:0], (2, 5), "cpu").shape == (0, 2, 5)
    many = normal(np.arange(2000, dtype=np.uint64), (8,), "cpu")
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.03


def test_images_survive_the_way_there_and_back_to_the_last_bit():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    there = tensor(pixels, "cpu")
    assert there.shape == (5, 3, 6, 7) and float(there.min()) >= -1 and float(there.max()) <= 1
    np.testing.assert_array_equal(images(there), pixels)
    assert images(torch.full((1, 1, 1, 1), 7.0))[0, 0, 0, 0] == 255
    assert resized(there, (6, 7)) is there
    assert resized(there, [3, 4]).shape == (5, 3, 3, 4)


def test_grey_becomes_colour_and_colour_its_luma():
    grey = torch.rand(2, 1, 3, 3)
    assert torch.equal(with_channels(grey, 3)[:, 2:], grey)
    torch.testing.assert_close(with_channels(with_channels(grey, 3), 1), grey)
