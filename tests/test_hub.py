"""A name on the hub is one commit, from the first use on."""

from types import SimpleNamespace
from typing import Any

import pytest

from dpsyn.errors import UserError
from dpsyn.hub import commit_of

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
