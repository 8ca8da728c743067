"""Every preset of a data set reads a file in the layout in which that data set comes."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dpsyn.compose import config_folder, settings
from dpsyn.data.images import Images

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION = [
    "T - shirt / top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
]  # fmt: skip


def encoded(height, width, channels, red=0):
    pixels = np.full((height, width, channels), 40, np.uint8)
    pixels[..., 0] = red
    stream = io.BytesIO()
    Image.fromarray(pixels if channels > 1 else pixels[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def parquet(path, image_column, image, labels, names=None):
    """Rows of one image each, as the hub stores them: {bytes, path}, and class labels by number."""
    rows = pa.array([{"bytes": image, "path": None}] * len(next(iter(labels.values()))))
    features = {image_column: {"_type": "Image"}}
    features |= {column: {"_type": "ClassLabel", "names": names} for column in labels if names}
    table = pa.table({image_column: rows, **labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return str(path)


def preset(name, **changes):
    arguments = yaml.safe_load((config_folder() / f"data/{name}.yaml").read_text())
    assert arguments.pop("_target_") == "dpsyn.data.images.Images"
    return Images(**{**arguments, **changes})


def read(data):
    data.check()
    (records,) = data.batches(100)
    assert not records.refused
    return records


@pytest.mark.parametrize(
    "name, image_column, image, names, shape",
    [
        ("cifar10", "img", encoded(32, 32, 3), CIFAR10, (32, 32, 3)),
        ("camelyon17", "image", encoded(96, 96, 3), ["non-tumor", "tumor"], (64, 64, 3)),
        ("fashion_mnist", "image", encoded(28, 28, 1), FASHION, (28, 28, 1)),
    ],
)
def test_class_labels_are_read_by_their_names(tmp_path, name, image_column, image, names, shape):
    numbers = [*range(len(names)), 1, 0]
    path = parquet(tmp_path / "a.parquet", image_column, image, {"label": numbers}, names)
    data = preset(name, path=path)
    records = read(data)
    assert records.samples.content.shape == (len(numbers), *shape)
    assert records.labels.tolist() == numbers
    assert [tuple(label.values()) for label in data.labels] == [(value,) for value in names]


def test_cifar10_reads_local_files_that_name_the_column_image(tmp_path):
    path = parquet(tmp_path / "a.parquet", "image", encoded(32, 32, 3), {"label": [3]}, CIFAR10)
    assert read(preset("cifar10", path=path, image_column="image")).labels.tolist() == [3]


def test_an_attribute_that_is_true_or_false_is_a_label(tmp_path):
    pixels = np.zeros((218, 178, 3), np.uint8)
    pixels[20:198] = 255  # the middle square
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    columns = {"celeb_id": [7, 7, 9], "Male": [True, False, True], "Young": [False, True, True]}
    path = parquet(tmp_path / "a.parquet", "image", stream.getvalue(), columns)
    assert pq.read_schema(path).field("Male").type == pa.bool_()
    data = preset("celeba", path=path)
    records = read(data)
    assert [data.labels[k]["Male"] for k in records.labels] == ["True", "False", "True"]
    assert records.samples.content.shape == (3, 32, 32, 3)
    assert records.samples.content.min() > 200  # black above and below is left out, but for what is smoothed in
    assert read(preset("celeba", path=path, unit_column="celeb_id")).units.tolist() == [0, 0, 1]


def test_another_attribute_takes_the_place_of_male():
    chosen = ["~data.labels.Male", "+data.labels.Smiling=['False','True']"]
    data = settings(["data=celeba", "privacy.epsilon=1", "privacy.delta=1e-6", *chosen])["data"]
    assert data["labels"] == {"Smiling": ["False", "True"]}


def tree(root, **folders):
    for folder, image in folders.items():
        (root / folder).mkdir()
        for name in ("0.png", "1.png"):
            (root / folder / name).write_bytes(image)
    return str(root)


def test_the_two_cats_are_told_apart_by_their_folders(tmp_path):
    path = tree(tmp_path, cookie=encoded(512, 512, 3, red=10), doudou=encoded(512, 700, 3, red=200))
    data = preset("cat", path=path)
    records = read(data)
    assert records.samples.content.shape == (4, 512, 512, 3)
    for image, label in zip(records.samples.content, records.labels, strict=True):
        assert data.labels[label] == {"cat": {10: "cookie", 200: "doudou"}[image[0, 0, 0]]}


def test_digiface_is_read_without_labels_from_a_folder_a_subject(tmp_path):
    path = tree(tmp_path, **{"0": encoded(112, 112, 3), "166666": encoded(112, 112, 3)})
    data = preset("digiface", path=path)
    assert data.labels == ({},)
    assert read(data).samples.content.shape == (4, 32, 32, 3)


@pytest.mark.parametrize(
    "name, records",
    [
        ("cifar10", 50_000), ("camelyon17", 302_436), ("celeba", 162_770), ("cat", 200), ("fashion_mnist", 60_000),
        ("digiface", 1_219_995),
    ],
)  # fmt: skip
def test_a_preset_composes_and_declares_how_many_records_there_are(name, records):
    data = settings([f"data={name}", "privacy.epsilon=1", "privacy.delta=1e-6"])["data"]
    assert data["records"] == records
    assert data["id"] == name
