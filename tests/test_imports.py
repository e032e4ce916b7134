"""The direction of imports, read from the source (design, section 3)."""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "loopy_model"
TIERS = [  # a module imports from the tiers above its own, and from its own leftwards
    ["config"],
    ["conditions"],
    ["portrait", "audio", "motion", "movement", "diffusion", "solvers"],
    ["layers", "temporal", "audio_to_latents"],
    ["unet"],
    ["model"],
    ["guidance", "sampling"],
    ["budget"],
]
ORDER = [name for tier in TIERS for name in tier]
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "server",
    "execution",
    "latent_preview",
    "node_helpers",
}
OPTIONAL = {"diffusers", "librosa", "transformers", "accelerate"}
EXTRAS = ("train", "prepare", "puppet", "evaluate")  # folders that may need more than the host brings
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, anywhere: bool = True) -> Iterator[str]:
    """Full names of what a file imports; only what runs at import time, unless `anywhere`."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    found = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while found:
        node = found.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            base = resolve_name(module, package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif anywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += ast.iter_child_nodes(node)


def ours(path: Path) -> set[str]:
    """First name below the package of everything that a file imports from it."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("loopy_model.")}


def exists(name: str) -> bool:
    """Whether a full name is a module of ours, or something in one."""
    path = PACKAGE.parent / name.replace(".", "/")
    return any(p.exists() for p in (path, path.with_suffix(".py"), path.parent.with_suffix(".py"))) or (
        (path.parent / "__init__.py").exists() and path.name in (path.parent / "__init__.py").read_text()
    )


EVERY_MODULE = pytest.mark.parametrize("path", MODULES, ids=name_of)


@pytest.mark.parametrize("name", ORDER)
def test_arrows_go_one_way(name: str) -> None:
    before = set(ORDER[: ORDER.index(name)])
    assert ours(PACKAGE / f"{name}.py") <= before


def test_config_imports_nothing_of_ours_and_no_torch() -> None:
    assert ours(PACKAGE / "config.py") == set()
    assert "torch" not in {name.split(".")[0] for name in imports(PACKAGE / "config.py")}


@EVERY_MODULE
def test_what_is_imported_exists(path: Path) -> None:
    """Also what is imported within functions, when somebody uses them."""
    assert [name for name in imports(path) if name.startswith("loopy_model.") and not exists(name)] == []


@EVERY_MODULE
def test_training_is_imported_by_the_command_line_alone(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] not in (*EXTRAS, "cli.py"):
        assert not ours(path) & set(EXTRAS)


@EVERY_MODULE
def test_importers_stand_on_the_model_and_are_imported_by_the_command_line_alone(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "donors":
        assert ours(path) <= {"config", "model", "weights", "donors"}
    elif path.name != "cli.py":
        assert "donors" not in ours(path)


@EVERY_MODULE
def test_nothing_imports_the_host(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & HOST


@EVERY_MODULE
def test_optional_libraries_are_not_imported_at_module_scope(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] not in EXTRAS:
        assert not {name.split(".")[0] for name in imports(path, anywhere=False)} & OPTIONAL


@EVERY_MODULE
def test_the_package_calls_itself_by_dots(path: Path) -> None:
    """In the host the package has another name: `import loopy_model` would miss or double it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {PACKAGE.name}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module.split(".")[0] != PACKAGE.name


def test_there_are_no_cycles_at_module_scope() -> None:
    graph = {name_of(path): {n for n in imports(path, anywhere=False)} for path in MODULES}
    known = set(graph)
    edges = {
        module: {n if n in known else n.rpartition(".")[0] for n in names} & known - {module}
        for module, names in graph.items()
    }
    while leaves := [module for module, needs in edges.items() if not needs]:
        for leaf in leaves:
            del edges[leaf]
        edges = {module: needs - set(leaves) for module, needs in edges.items()}
    assert not edges


def test_the_test_reads_imports_correctly() -> None:
    assert "loopy_model.config.LOOPY" not in set(imports(PACKAGE / "config.py"))
    assert "loopy_model.conditions.Conditions" in set(imports(PACKAGE / "unet.py"))
    encoder = PACKAGE / "speech_encoder.py"
    assert "transformers.Wav2Vec2Model" in set(imports(encoder))
    assert "transformers.Wav2Vec2Model" not in set(imports(encoder, anywhere=False))
    assert "loopy_model.diffusion.NoiseSchedule" in set(imports(PACKAGE / "train" / "objective.py"))
