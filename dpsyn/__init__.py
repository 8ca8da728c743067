"""dpsyn: differentially private synthetic data by Private Evolution, without training anything.

From Python: `dpsyn.run`, `dpsyn.plan`, `dpsyn.open` (`dpsyn/python.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpsyn.python import Run, open, plan, run

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "open", "plan", "run"]


def __getattr__(name: str) -> Any:
    """What Python users call, imported when it is first asked for: `dpsyn --help` is there at once."""
    if name not in __all__:
        raise AttributeError(f"module 'dpsyn' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("dpsyn.python"), name)
