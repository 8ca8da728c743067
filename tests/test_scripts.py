"""Benchmarks say what they take, and run; what they measure at their own sizes is run by hand."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_a_module_with_a_main_that_has_help(path, monkeypatch, capsys):
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0 and "usage" in capsys.readouterr().out


TINY = [
    "bench_all --tiny",
    "bench_busy --work boosting --rows 100 --rounds 1 --quiet --how dpsyn",
    "bench_cluster --records 2000 --candidates 50 --rounds 1 --memory 1000",
    "bench_discover --rounds 1 --values 2 --strides 1",
    "bench_diffusion --rows 2 --calls 1 --rounds 1 --uncompiled --device cpu",
    "bench_frechet --rows 200 --dimension 32",
    "bench_inception --images 2 --sides 32 --threads 1 --rounds 1 --network 1",
    "bench_memory --sizes 2000",
    "bench_runs . --rounds 1 +experiment=smoke metric=none",
    "bench_shards --rows 300 --candidates 20 --rounds 1",
    "bench_table_votes --rows 2000 --threads 1",
    "bench_texts --sizes 2000 --formats csv",
]
"""Those that need neither data, nor weights, nor a minute."""
NEEDED = {
    "bench_cluster": ["ray"],
    "bench_all": ["python_avatars", "cairosvg", "openai"],
    "bench_diffusion": ["diffusers"],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", TINY, ids=lambda command: command.split()[0])
def test_a_benchmark_runs(command, tmp_path, monkeypatch):
    name, *arguments = command.split()
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package, exc_type=(ImportError, OSError))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (path,) = (path for path in SCRIPTS if path.stem == name)
    ended = subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "not here" not in ended.stdout and len(ended.stdout.splitlines()) > 0
