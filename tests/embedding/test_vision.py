"""CLIP and DINOv2 as embeddings: tiny random networks, saved by transformers as published ones are."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dpsyn.embedding.vision import CLIP, IMAGENET, Vision, preprocessed
from dpsyn.errors import UserError
from dpsyn.networks.runtime import Runtime
from dpsyn.population import Samples

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(**TOWER, image_size=32, patch_size=8, projection_dim=16)
    text = {"vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = transformers.CLIPTextConfig(**TOWER, **text, projection_dim=16)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    torch.manual_seed(0)
    shape = {**TOWER, "image_size": 56, "patch_size": 14, "mlp_ratio": 2}
    folder = tmp_path_factory.mktemp("dino")
    transformers.Dinov2Model(transformers.Dinov2Config(**shape)).save_pretrained(folder)
    return folder


@pytest.fixture(params=["clip", "dino"])
def folder(request):
    return request.getfixturevalue(request.param)


def noise(n, h=32, w=32, c=3):
    return np.random.default_rng(h).integers(0, 256, (n, h, w, c), np.uint8)


def prepared(images, colours):
    mean, deviation = (torch.tensor(three)[None, :, None, None] for three in colours)
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / deviation


def test_clip_gives_the_image_features_of_the_whole_network(clip):
    images = noise(5)
    ours = Vision(str(clip), 32, False)(Samples(images))
    network = transformers.CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        theirs = network.get_image_features(prepared(images, CLIP)).pooler_output.numpy()
    assert ours.shape == (5, 16) and ours.dtype == np.float32
    assert ours == pytest.approx(theirs, abs=1e-5)
    unit = Vision(str(clip), 32, True)(Samples(images))
    assert unit == pytest.approx(theirs / np.linalg.norm(theirs, axis=1, keepdims=True), abs=1e-5)


def test_dinov2_gives_the_class_token_after_the_last_norm(dino):
    images = noise(5, 56, 56)
    ours = Vision(str(dino), 56, False)(Samples(images))
    network = transformers.Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        theirs = network(prepared(images, IMAGENET)).last_hidden_state[:, 0].numpy()
    assert ours.shape == (5, 32) and ours.dtype == np.float32
    assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("height, width", [(28, 28), (100, 60), (60, 101), (16, 17), (512, 512)])
def test_images_are_prepared_as_by_pillow_the_shorter_side_and_the_middle(height, width):
    image = noise(1, height, width)
    shorter = min(height, width)
    to = width * 32 // shorter, height * 32 // shorter
    planes = [
        np.asarray(Image.fromarray(image[0, ..., c].astype(np.float32)).resize(to, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    top, left = (to[1] - 32) // 2, (to[0] - 32) // 2
    expected = np.stack(planes).clip(0, 255)[:, top : top + 32, left : left + 32] / 255
    colours = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    assert preprocessed(image, 32, colours, "cpu")[0].numpy() == pytest.approx(expected, abs=1e-4)


def test_colours_are_those_that_the_folder_states(clip, tmp_path):
    other = shutil.copytree(clip, tmp_path / "clip")
    images = Samples(noise(2))
    stated = {"image_mean": list(CLIP[0]), "image_std": list(CLIP[1])}
    (other / "preprocessor_config.json").write_text(json.dumps(stated))
    usual = Vision(str(clip), 32, False)(images)
    assert (Vision(str(other), 32, False)(images) == usual).all()
    another = shutil.copytree(clip, tmp_path / "another")
    (another / "preprocessor_config.json").write_text(json.dumps({**stated, "image_mean": [0.5, 0.5, 0.5]}))
    assert np.abs(Vision(str(another), 32, False)(images) - usual).max() > 1e-3


def test_a_row_does_not_depend_on_its_batch(folder):
    images = noise(9, 40, 50)
    whole = Vision(str(folder), 56, True)(Samples(images))
    for batch in (1, 2, 7):
        parts = Vision(str(folder), 56, True, runtime=Runtime(network_batch_size=batch))(Samples(images))
        assert np.abs(whole - parts).max() < 1e-5
    assert np.abs(whole[1:] - whole[:-1]).max() > 1e-4


def test_grey_is_repeated_and_sizes_are_free(folder):
    grey = noise(2, 28, 28, 1)
    part = Vision(str(folder), 42, False)
    assert part(Samples(grey)) == pytest.approx(part(Samples(np.repeat(grey, 3, 3))), abs=1e-5)


def test_no_images_give_no_vectors_of_the_same_length(folder):
    part = Vision(str(folder), 32, False)
    assert part(Samples(noise(0))).shape == (0, part(Samples(noise(1))).shape[1])


def test_it_is_a_plain_value_and_its_check_loads_nothing(folder, monkeypatch):
    part = Vision(str(folder), 32, False)
    assert pickle.loads(pickle.dumps(part)) == part
    monkeypatch.setattr("dpsyn.embedding.vision.load", None)
    part.check()
    Vision("openai/clip-vit-base-patch32", 224, True).check()


def test_loading_says_nothing(folder, tmp_path, capfd):
    fresh = shutil.copytree(folder, tmp_path / "fresh")
    Vision(str(fresh), 32, False)(Samples(noise(1)))
    out, err = capfd.readouterr()
    assert out == err == ""


@pytest.mark.parametrize(
    "content",
    [np.array(["a"], dtype=object), np.zeros(3, [("age", "f8")]), np.zeros((1, 8, 8, 4), np.uint8)],
    ids=["texts", "table", "four channels"],
)
def test_what_are_no_images_is_refused(content):
    with pytest.raises(UserError, match="expected images"):
        Vision("openai/clip-vit-base-patch32", 224, True)(Samples(content))


def one_line(work, start):
    with pytest.raises(UserError) as refused:
        work()
    assert "\n" not in str(refused.value)
    assert re.match(start, str(refused.value)), refused.value
    return str(refused.value)


@pytest.mark.parametrize("path", [None, "nowhere", "/no/such/folder", 3])
def test_a_path_to_nothing_is_one_line(path):
    one_line(Vision(path, 224, True).check, r"embedding\.path=.*expected a folder that is there, or a name")


def test_a_network_of_another_kind_is_one_line(clip, tmp_path):
    one_line(Vision(str(tmp_path), 32, True).check, r".*expected a network of the kind .*config.json is not there")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    one_line(Vision(str(tmp_path), 32, True).check, r".*expected a network of the kind clip.* or dinov2.* says bert")


def test_a_name_that_cannot_be_fetched_says_which_files_to_put_where():
    said = one_line(lambda: Vision("nobody/nothing", 32, True)(Samples(noise(1))), r"embedding\.path=nobody/nothing: ")
    assert "config.json and model.safetensors" in said and "embedding.path=." in said


def test_a_folder_without_its_weights_is_one_line(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    one_line(lambda: Vision(str(tmp_path), 32, True)(Samples(noise(1))), r"embedding\.path=.*expected the weights")


def test_weights_that_are_missing_are_named_and_not_made_up(dino, tmp_path):
    other = shutil.copytree(dino, tmp_path / "dino")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    said = one_line(lambda: Vision(str(other), 56, True)(Samples(noise(1))), r"embedding\.path=")
    assert "It has no encoder.layer.2" in said


@pytest.mark.parametrize("key, wrong", [("size", 0), ("size", True), ("size", [224, 224]), ("normalize", "no")])
def test_a_wrong_setting_is_one_line(key, wrong):
    settings = {"path": "a/b", "size": 224, "normalize": True, key: wrong}
    one_line(lambda: Vision(**settings), rf"embedding\.{key}=.*expected")


def test_a_size_below_one_patch_is_one_line(dino):
    one_line(lambda: Vision(str(dino), 13, True)(Samples(noise(1))), r"embedding\.size=13: expected 14 px or more")


def test_other_weights_at_the_same_place_have_another_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors").write_bytes(b"one")
    part = Vision(str(tmp_path), 32, True)
    first = part.fingerprint()
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert part.fingerprint() != first
