"""A name on the hub is one commit, from the first use on."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dpsyn.api.diffusion import Diffusion
from dpsyn.embedding.sentence import Sentence
from dpsyn.embedding.vision import Vision
from dpsyn.errors import UserError
from dpsyn.networks.hub import commit_of, fetched, pinned

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> dict[str, Any]:
    """What the hub answers, at its client's boundary."""
    import huggingface_hub

    answers: dict[str, Any] = {"sha": FIRST, "asked": 0}

    def info(self: Any, name: str, **asked: Any) -> Any:
        answers["asked"] += 1
        if answers["sha"] is None:
            raise OSError("down")
        return SimpleNamespace(sha=answers["sha"])

    def nothing(*_: Any, **__: Any) -> str:
        raise OSError("nothing kept")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    commit_of.cache_clear()
    return answers


def test_a_run_that_goes_on_has_the_commit_of_its_first_use_whatever_the_hub_has_since(hub: dict[str, Any]) -> None:
    for sha in (FIRST, SECOND, None):
        hub["sha"] = sha
        commit_of.cache_clear()  # another process
        assert commit_of("data.path", "owner/name", None, "dataset") == FIRST
    assert hub["asked"] == 1
    hub["sha"] = SECOND
    assert commit_of("data.path", "owner/name", "v2", "dataset") == SECOND
    assert commit_of("data.path", "owner/name", None, "model") == SECOND


def test_a_commit_is_itself_and_nobody_is_asked(hub: dict[str, Any]) -> None:
    assert commit_of("data.path", "owner/name", SECOND) == SECOND and hub["asked"] == 0


def test_a_hub_that_is_not_reached_is_one_line(hub: dict[str, Any]) -> None:
    hub["sha"] = None
    with pytest.raises(UserError, match=r"^data.path=owner/name: expected [^\n]*revision=v9 \(OSError\)[^\n]*$"):
        commit_of("data.path", "owner/name", "v9", "dataset")


def test_a_folder_is_itself_and_nobody_is_asked(hub: dict[str, Any], tmp_path: Any) -> None:
    assert fetched("embedding.path", str(tmp_path), None, ["*.json"], [], "") == tmp_path
    assert pinned("api.path", str(tmp_path), "v2", "") is None and hub["asked"] == 0


def test_files_are_fetched_at_the_commit_of_the_first_use(hub: dict[str, Any], monkeypatch: Any, tmp_path: Any) -> None:
    """The other weights alone where there are no safetensors."""
    import huggingface_hub

    calls: list[Any] = []

    def copy(name: str, **asked: Any) -> str:
        calls.append((asked["revision"], asked["allow_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", copy)
    assert fetched("embedding.path", "owner/name", None, ["*.safetensors"], ["*.bin"], "") == tmp_path
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/x.safetensors").touch()
    hub["sha"] = SECOND
    commit_of.cache_clear()
    fetched("embedding.path", "owner/name", None, ["*.safetensors"], ["*.bin"], "")
    assert calls == [(FIRST, ["*.safetensors"]), (FIRST, ["*.safetensors", "*.bin"]), (FIRST, ["*.safetensors"])]


@pytest.mark.parametrize("name", ["vision", "sentence", "diffusion", "transformers", "stable_diffusion", "encoder"])
def test_every_part_that_names_a_model_loads_it_at_that_commit(
    hub: dict[str, Any], monkeypatch: Any, name: str
) -> None:
    import diffusers
    import huggingface_hub
    import transformers

    from dpsyn.api import local_llm as local
    from dpsyn.api import stable_diffusion
    from dpsyn.metric import text_classifier
    from dpsyn.networks.runtime import Runtime

    asked: list[Any] = []

    def load(*_: Any, revision: Any = None, **__: Any) -> Any:
        asked.append(revision)
        raise OSError("enough")

    for place, function in (
        (huggingface_hub, "snapshot_download"), (transformers.AutoTokenizer, "from_pretrained"),
        (diffusers.DiffusionPipeline, "load_config"),
    ):  # fmt: skip
        monkeypatch.setattr(place, function, load)
    diffusion = Diffusion("owner/name", None, None, 64, 4, 4000, "cosine", "100", True, 1)
    use: dict[str, Any] = {
        "vision": lambda: Vision("owner/name", 32, True).fingerprint(),
        "sentence": lambda: Sentence("owner/name", None, None, None, True, "float32").fingerprint(),
        "diffusion": lambda: diffusion.generate([{}], np.zeros(1, np.uint64)),
        "transformers": lambda: local.load("owner/name", None, False, None, Runtime()),
        "stable_diffusion": lambda: stable_diffusion.pipelines("owner/name", None, False, Runtime()),
        "encoder": lambda: text_classifier.load("owner/name", None),
    }
    with pytest.raises(UserError):
        use[name]()
    assert asked == [FIRST]
