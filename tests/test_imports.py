"""Imports go one way: errors, trace <- ops <- backend <- layers <- models <- train, evaluate, viz, ...; heavy ones are lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "nprcnn"
MODULES = sorted(ROOT.rglob("*.py"))

# Part -> the parts of nprcnn it may import. A part is a folder, or a file beside __init__.py.
CHECKS_OF_INPUT = {"data.images", "data.targets"}
ALLOWED = {
    "errors": set(),
    "devices": {"errors", "kernels"},
    "trace": {"inspect", "devices"},
    "ops": {"ops"},
    "gradcheck": set(),
    "pairs": {"ops", "gradcheck"},
    "threads": {"errors"},
    "backend": {"ops", "errors", "threads", "allocator", "devices", "kernels"},
    "layers": {"backend", "devices", "ops", "errors"},
    "models": {"models", "layers", "ops", "backend", "devices", "trace", "errors", "weights"} | CHECKS_OF_INPUT,
    "weights": {"weights", "errors"},
    "data": {"data", "errors"},
    "train": {"train", "errors", "backend", "devices", "threads", "layers", "models", "data", "weights", "pretrained", "trace", "canvas"},
    "evaluate": {"evaluate", "canvas", "models", "data", "errors"},
    "canvas": {"data", "errors"},
    "viz": {"canvas", "models", "data", "errors"},
}
# only when called: `import nprcnn` must stay quick, and weights are above models
LAZY = {("models", "weights"), ("backend", "kernels"), ("devices", "kernels"), ("trace", "inspect")}
THIRD_PARTY = {"ipywidgets", "jupytext", "nbclient", "nbformat",  # of the extra [notebooks], only where they are installed
               "numpy", "numba", "PIL", "matplotlib", "tqdm", "safetensors", "pycocotools", "threadpoolctl",
               "mpi4py",  # of the extra [mpi]
               # only where they are installed, for `nprcnn bench` to compare with
               "torch", "torchvision", "onnx", "onnxruntime", "openvino"}
KERNELS = sorted((ROOT.parent / "kernels").rglob("*.py"))


def name_of(path):
    """nprcnn/ops/conv.py -> "ops.conv"; nprcnn/ops/__init__.py -> "ops"; nprcnn/__init__.py -> ""."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path):
    """Yield (module, whether it is imported on loading); modules of nprcnn as "nprcnn.ops.conv"."""
    tree = ast.parse(path.read_text())
    lazy = {id(node) for function in ast.walk(tree) if isinstance(function, (ast.FunctionDef, ast.Lambda))
            for node in ast.walk(function)}
    package = ["nprcnn", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package[:len(package) - node.level + 1] + ([node.module] if node.module else []))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner.removeprefix("nprcnn.") in NAMES else base), id(node) not in lazy


def part(name):
    return name.split(".")[0]


def test_the_reader_of_imports_sees_them():
    found = dict(imports(ROOT / "models" / "rpn.py"))
    assert {"numpy", "nprcnn.backend", "nprcnn.layers", "nprcnn.ops.boxes", "nprcnn.models.fpn"} <= set(found)
    assert dict(imports(ROOT / "models" / "builders.py"))["nprcnn.weights"] is False  # inside a function
    assert dict(imports(ROOT / "ops" / "nms.py"))["nprcnn.ops.boxes"] is True


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    name = name_of(path)
    for module, at_load in imports(path):
        if module == "nprcnn" or module.startswith("nprcnn."):
            target = module.removeprefix("nprcnn").removeprefix(".")
            if part(name) in ALLOWED:
                allowed = ALLOWED[part(name)]
                assert part(target) in allowed or target in allowed, f"{name} must not import {module}"
                assert not at_load or (part(name), part(target)) not in LAZY, f"{name} may import {module} inside a function only"
        elif part(module) not in sys.stdlib_module_names:
            assert part(module) in THIRD_PARTY, f"{name} imports {module}"
            assert part(module) == "numpy" or not at_load, f"{name} must import {module} where it is used"
            assert part(name) != "ops" or module == "numpy", f"{name}: ops need NumPy alone, not {module}"


def test_there_are_kernels():
    assert {"roi_align.py", "nms.py"} <= {path.name for path in KERNELS}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_kernels_import_nothing_of_ours(path):
    """Relative imports stay inside the folder."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level <= len(path.relative_to(ROOT.parent / "kernels").parts), f"{path} imports from outside"
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not any(part(name) == "nprcnn" for name in names), f"{path} imports nprcnn"


def test_importing_nprcnn_is_light():
    code = ("import sys, nprcnn; print(*sorted({m.split('.')[0] for m in sys.modules} & "
            "{'matplotlib', 'pycocotools', 'tqdm', 'torch', 'torchvision', 'PIL', 'safetensors', 'numba', 'scipy', 'cupy', 'threadpoolctl'}))")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []
