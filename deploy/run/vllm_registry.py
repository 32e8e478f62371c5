"""Whether vLLM serves LoRA adapters for an architecture, read in its source, as its import takes ten seconds."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

_MARK = "SupportsLoRA"
"""What vLLM's classes of models that take adapters are derived from."""


def is_installed() -> bool:
    """Whether there is a vLLM to ask."""
    return _root() is not None


def serves_lora(architecture: str) -> bool | None:
    """None where it isn't known: without vLLM, or for what its registry doesn't name."""
    entry = _registered().get(architecture) if is_installed() else None
    return None if entry is None else _is_marked(*entry)


def _root() -> Path | None:
    spec = importlib.util.find_spec("vllm")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@cache
def _registered() -> dict[str, tuple[str, str]]:
    """Module and class by architecture, from the dictionaries of vLLM's registry."""
    found = {}
    for node in ast.walk(_parsed("vllm.model_executor.models.registry") or ast.Module([], [])):
        if not isinstance(node, ast.Dict):
            continue
        for key, value in zip(node.keys, node.values, strict=True):
            match key, value:
                case ast.Constant(value=str(name)), ast.Tuple(
                    elts=[ast.Constant(value=str(module)), ast.Constant(value=str(class_name))]
                ):
                    inside = module.startswith("vllm.")
                    found[name] = (module if inside else f"vllm.model_executor.models.{module}", class_name)
    return found


@cache
def _is_marked(module: str, class_name: str) -> bool | None:
    """Whether the mark is among a class's ancestors, wherever they are imported from; None for no such class."""
    tree = _parsed(module)
    if tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            return _MARK in bases or any(_is_marked(module, base) for base in bases)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == class_name:
                    return _is_marked(_absolute(module, node), alias.name)
    return None


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that an import statement names."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    package = parts if _path(module, "__init__.py").is_file() else parts[:-1]
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


@cache
def _parsed(module: str) -> ast.Module | None:
    """A module of vLLM; None for one that isn't there, or is another library's."""
    for path in (_path(module).with_suffix(".py"), _path(module, "__init__.py")):
        if module.split(".")[0] == "vllm" and path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None


def _path(module: str, *names: str) -> Path:
    root = _root()
    assert root is not None
    return root.joinpath(*module.split(".")[1:], *names)
