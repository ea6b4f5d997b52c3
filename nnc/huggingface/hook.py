"""Registers with transformers without importing it: at once if its loader is there already, else right after it has been imported.

A finder at the front of `sys.meta_path` (PEP 451) knows a single name.  It leaves the finding to the others, and only adds a step
to the loader that they return.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

LOADER = "transformers.modeling_utils"


class Finder(MetaPathFinder):
    """Adds registration to the import of the module that loads weights."""

    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != LOADER:
            return None
        found = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register
        return spec


def install() -> None:
    """Make compressed folders known to transformers, now or when it is imported.  Again: nothing."""
    if not any(type(finder) is Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    if LOADER in sys.modules:
        _register(sys.modules[LOADER])


def _register(module: ModuleType) -> None:
    import_module(".dispatch", __package__).register(module)
