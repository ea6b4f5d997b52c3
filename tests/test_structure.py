"""The shape of the package: layers, what the decoder may import, the public list, files that stay readable, import cost."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nnc
from nnc.stages import DECODER, LAYERS

PACKAGE = Path(nnc.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Top-level names of the package that a file imports, also inside functions."""
    found = set()
    parts = path.relative_to(PACKAGE).parts
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts[:-node.level] + tuple((node.module or "").split("."))
            names = [".".join(p for p in base if p)] if node.module else [
                ".".join((*parts[:-node.level], alias.name)) if (PACKAGE.joinpath(*parts[:-node.level], alias.name + ".py")).exists() or (PACKAGE.joinpath(*parts[:-node.level], alias.name)).is_dir()
                else "__init__" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nnc":
            rest = node.module.split(".")[1:]
            names = [".".join(rest)] if rest else [alias.name if (PACKAGE / alias.name).is_dir() or (PACKAGE / f"{alias.name}.py").exists() else "__init__" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [".".join(alias.name.split(".")[1:]) or "__init__" for alias in node.names if alias.name.split(".")[0] == "nnc"]
        found |= {name.split(".")[0] for name in names if name}
    return found - {module_of(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    own = module_of(path)
    assert own in level, f"{own} has no layer in stages.py"
    for name in imports_of(path):
        assert level[name] < level[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p) in DECODER], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_decoder_never_imports_the_encoder(path):
    assert imports_of(path) <= set(DECODER)


def test_public_list():
    assert nnc.__all__ == sorted(nnc.__all__)
    assert nnc.__all__ == ["Archive", "CalibratedSummary", "Config", "Corruption", "FileInfo", "InsufficientData", "InvalidArgument", "NncError", "Rule",
                           "RunSummary", "Statistics", "Summary", "TensorInfo", "Unsupported", "calibrate", "compress", "compress_run", "decompress", "evaluate",
                           "inspect", "load", "load_into", "lookup", "open", "runtime", "sweep", "verify"]
    for name in nnc.__all__:
        assert getattr(nnc, name).__doc__, name


def test_files_stay_readable():
    sizes = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_only_the_command_line_prints():
    for path in FILES:
        if module_of(path) in ("commands", "__main__"):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not calls, path


@pytest.mark.slow
def test_import_is_light():
    """Under 1.5 s beyond torch, and nothing of plots, transformers or scikit-learn."""
    code = ("import time, torch; start = time.process_time(); import nnc, sys; spent = time.process_time() - start; "
            "print(spent, *(m for m in ('sklearn', 'transformers', 'matplotlib', 'pandas') if m in sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) < 1.5 and out[1:] == []


@pytest.mark.slow
def test_import_changes_no_global():
    code = ("import warnings, logging, random, numpy, torch; before = (list(warnings.filters), logging.root.level, random.getstate(), torch.get_num_threads(), "
            "torch.get_default_dtype()); import nnc; assert before == (list(warnings.filters), logging.root.level, random.getstate(), torch.get_num_threads(), "
            "torch.get_default_dtype())")
    subprocess.run([sys.executable, "-c", code], check=True)
