"""The house rules that a machine can check: which folder may import which, where names live, and sizes."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "iterpref_jax"

# Folder or module -> what it may import of ours, besides itself and EVERYONE's; "a" allows "a.b" as well.
EVERYTHING = ""
ARROWS = {
    "codeflow": (),
    "ops": (),
    "objectives": (),
    "parallel": (),
    "models": ("ops", "parallel"),
    "data": ("codeflow", "objectives.weights"),
    "decode": ("models", "parallel"),
    "serve": ("decode", "models"),
    # Every stage is a process of its own.
    "rounds": (),
    "train": ("data", "models", "ops", "objectives", "parallel"),
    "doctor": ("data", "models", "objectives", "parallel", "train"),
    "plan": ("data", "models", "ops", "objectives", "parallel", "train"),
    "view": ("data", "codeflow", "objectives.weights"),
    # Reports read what a run has written; models are started by cli/ and handed over.
    "evaluate": ("codeflow", "data", "decode", "train.metrics", "train.goodput", "train.best", "train.saved"),
    # It starts commands, each in a process of its own, and reads what they wrote.
    "sweep": ("data", "evaluate", "train"),
    "cli": (EVERYTHING,),
    "settings": (),
    "atomic": (),
    "child": (),
    "errors": (),
    "locks": (),
    "progress": (),
    "__init__": (),
    "__main__": (),
}
EVERYONE = ("atomic", "child", "errors", "locks", "progress", "__init__")

MESH_AXES = {"fsdp", "sequence", "tensor"}
VAGUE = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40


@functools.cache
def modules():
    """Every module of the package: {dotted name below the package: (path, syntax tree)}."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


@functools.cache
def sources():
    """Every Python file that we keep: {path from the root: text}."""
    folders = (PACKAGE, "configs", "tests", "benchmarks", "launch", "docs")
    paths = [ROOT / "setup.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(paths)}


def imports(tree):
    """Yields (line, dotted name below the package) of every import of ours, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("."):
                yield node.lineno, name
            elif name == PACKAGE or name.startswith(f"{PACKAGE}."):
                yield node.lineno, _module(name.removeprefix(PACKAGE).removeprefix("."))


def _module(name):
    """`data.schema.Example` -> `data.schema`: the longest part of a dotted name that is a module."""
    while name and name not in modules():
        name = name.rpartition(".")[0]
    return name or "__init__"


def _within(name, allowed):
    return any(not part or name == part or name.startswith(f"{part}.") for part in allowed)


def _report(found, what_to_do):
    assert not found, f"{what_to_do}\n  " + "\n  ".join(found)


def test_every_folder_of_the_package_has_a_row_of_arrows():
    folders = {name.split(".")[0] for name in modules()}
    missing = sorted(folders - ARROWS.keys())
    _report(missing, "decide what these may import: add a row to ARROWS here and to ARCHITECTURE.md")
    _report(sorted(ARROWS.keys() - folders), "these are gone: remove their rows from ARROWS and ARCHITECTURE.md")


def test_imports_follow_the_arrows():
    found = []
    for name, (path, tree) in modules().items():
        folder = name.split(".")[0]
        allowed = (folder, *EVERYONE, *ARROWS.get(folder, ()))
        found += [
            f"{path.relative_to(ROOT)}:{line} imports {imported}; {folder} may import {', '.join(allowed)}"
            for line, imported in imports(tree)
            if not _within(imported, allowed)
        ]
    _report(found, "move the code to where the arrow points, or pass the value in; widen ARROWS only with a reason:")


def test_only_the_command_line_imports_settings_and_nothing_imports_the_command_line():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for name, (path, tree) in modules().items()
        for line, imported in imports(tree)
        if _within(imported, ("settings", "cli", "__main__")) and not _within(name, ("cli",))
    ]
    _report(found, "take a frozen dataclass as an argument; cli/ turns the config into it:")


def test_no_module_imports_relatively():
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path, tree in modules().values()
        for line, imported in imports(tree)
        if imported.startswith(".")
    ]
    _report(found, f"write the whole name, `from {PACKAGE}.x import y`:")


def test_only_settings_and_the_command_line_read_config_dicts():
    found = [
        name
        for name, (_, tree) in modules().items()
        if name not in ("settings", "cli.options")
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "ml_collections" in ast.unparse(node)
    ]
    _report(found, "read a frozen dataclass instead; settings.py is the only reader of ConfigDict:")


def test_mesh_axes_are_named_only_in_parallel():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value!r}"
        for name, (path, tree) in modules().items()
        if not _within(name, ("parallel",))
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in MESH_AXES
    ]
    _report(found, "name the dim and let parallel/rules.py map it to mesh axes:")


def test_no_file_has_a_vague_name():
    found = [path for path in sources() if VAGUE & set(Path(path).stem.split("_"))]
    _report(found, "name the file after what it holds:")


def test_every_file_is_short():
    lengths = {path: len(text.splitlines()) for path, text in sources().items()}
    found = [f"{path}: {lines} lines" for path, lines in lengths.items() if lines >= MAX_FILE_LINES]
    _report(found, f"split these along a seam, below {MAX_FILE_LINES} lines:")


def test_every_function_is_short():
    found = [
        f"{path}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path, text in sources().items()
        # A config is one flat list of fields; cutting it into functions would hide it.
        if not path.startswith("configs/")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    _report(found, f"give the parts names, below {MAX_FUNCTION_LINES + 1} lines:")


def test_every_module_says_what_it_is():
    found = [name for name, (path, tree) in modules().items() if path.stat().st_size and not ast.get_docstring(tree)]
    _report(found, "start the file with a docstring of one line:")


def _imported_with(folder):
    """The top-level packages and the modules of ours that importing all of `folder` loads, in a fresh process."""
    names = [f"{PACKAGE}.{name}" for name in modules() if _within(name, (folder,))]
    script = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_codeflow_loads_neither_jax_nor_the_rest_of_us():
    loaded = _imported_with("codeflow")
    assert f"{PACKAGE}.codeflow.focus" in loaded
    heavy = {"jax", "jaxlib", "flax", "tensorflow", "torch", "transformers"} & set(loaded)
    _report(sorted(heavy), "codeflow/ runs on machines without an accelerator stack; import it elsewhere:")
    ours = [name for name in loaded if name.startswith(f"{PACKAGE}.")]
    allowed = tuple(f"{PACKAGE}.{name}" for name in ("codeflow", *EVERYONE))
    _report([name for name in ours if not _within(name, allowed)], "codeflow/ stands alone:")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from iterpref_jax.data import schema", ["data.schema"]),
        ("from iterpref_jax.data.schema import Example", ["data.schema"]),
        ("def f():\n    import iterpref_jax.train.step as s", ["train.step"]),
        ("from iterpref_jax import __version__, progress", ["__init__", "progress"]),
        ("from . import x", ["..x"]),
        ("import iterpref_jaxx\nimport jax", []),
    ],
)
def test_this_test_sees_every_kind_of_import(source, expected):
    assert [name for _, name in imports(ast.parse(source))] == expected
