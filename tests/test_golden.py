"""Fixed runs release the same bytes as when `golden.json` was written. It changes only on purpose:
`python tests/test_golden.py` writes it anew.

Noise is seeded. What a processor computes depends on its kind, so libraries are held to what all x86-64 of the last ten
years have.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).with_name("golden.json")
SAME_EVERYWHERE = {
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Haswell",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "AVX2",
    "OMP_NUM_THREADS": "1",
}
DERIVED = ("config.yaml", "privacy.json", "report.html", "README.md", "croissant.json", "marginals.parquet")
RUNS = {
    "smoke, expanded": ["experiment=smoke", "expand.rows=150"],
    "noisy label shares": ["experiment=smoke", "label_shares=noisy", "schedule.releases=1"],
    "text_smoke": ["experiment=text_smoke"],
    "breast_cancer": ["experiment=breast_cancer", "metric=none"],
    "rows then texts": [
        "experiment=mail_rows",
        "metric=none",
        "schedule.size=120",
        "schedule.releases=2",
        "schedule.candidates=null",
    ],
    "Tab-PE": ["experiment=breast_cancer_tab_pe", "metric=none", "schedule.releases=3", "schedule.sampled_releases=1"],
}


def digests(folder: Path) -> dict[str, str]:
    """Of all released files but those that name the run or the version, and those that are functions of all the others
    (the page, the card and other descriptions: they hold the others' checksums and wording). Of a receipt, what it
    says."""
    from dpsyn.privacy.ledger import read_receipt

    found = {}
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = str(path.relative_to(folder))
        content = path.read_bytes()
        if name.startswith("votes/"):
            receipt = read_receipt(path)
            content = f"{receipt.iteration} {receipt.population} {receipt.votes.tolist()}".encode()
        if name not in DERIVED and not name.endswith("SHA256SUMS"):
            found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def made(place: Path) -> dict[str, dict[str, str]]:
    """Runs them, in this process."""
    from dpsyn import cli

    found = {}
    for number, (name, overrides) in enumerate(RUNS.items()):
        run_dir = place / str(number)
        assert cli.main(["run", *overrides, "privacy.noise=insecure_seeded", f"run_dir={run_dir}"]) == 0
        found[name] = digests(run_dir / "not_private")
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    place = tmp_path_factory.mktemp("golden")
    own = {f"XDG_{kind}_HOME": str(place / kind.lower()) for kind in ("STATE", "CACHE")}
    command = [sys.executable, __file__, str(place)]
    told = subprocess.run(command, env=os.environ | SAME_EVERYWHERE | own, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    return dict(json.loads((place / "found.json").read_text()))


@pytest.mark.parametrize("name", RUNS)
def test_a_fixed_run_releases_what_it_always_did(name: str, found: dict[str, dict[str, str]]) -> None:
    assert found[name] == json.loads(PLACE.read_text())[name]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        (Path(sys.argv[1]) / "found.json").write_text(json.dumps(made(Path(sys.argv[1]))))
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            own = {f"XDG_{kind}_HOME": f"{place}/{kind.lower()}" for kind in ("STATE", "CACHE")}
            subprocess.run([sys.executable, __file__, place], env=os.environ | SAME_EVERYWHERE | own, check=True)
            written = json.loads((Path(place) / "found.json").read_text())
        PLACE.write_text(json.dumps(written, indent=1) + "\n")
