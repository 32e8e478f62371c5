"""A user's own Python modules, by path or by import name: trusted code, which runs in the process that needs it.

A file is imported as it is now, under a name that its place and content give: one that was edited is another module.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from common.errors import UserError
from common.user_code import is_file


def load_module(setting: str, text: str) -> ModuleType:
    """The module; raises UserError naming `setting`. Modules beside a file can be imported by it."""
    if not is_file(text):
        return _import(setting, text)
    path = Path(text).expanduser().resolve()
    source = _read(setting, text, path)
    name = f"{path.stem}_{_sha256(str(path).encode() + source)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        # Last, so that nothing beside it takes the place of an installed module.
        sys.path.append(str(path.parent))
    module = ModuleType(name)
    module.__file__ = str(path)
    # Classes look their module up while they are made.
    sys.modules[name] = module
    try:
        # Compiled here: Python's own cache tells two versions of a file apart by time and size alone.
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(setting, text, _why_not_imported(error, str(path)), "mend the file") from error
    return module


def module_sha256(setting: str, text: str) -> str:
    """Of the module's source as it is now; raises UserError naming `setting` if it can't be found."""
    if is_file(text):
        return _sha256(_read(setting, text, Path(text).expanduser().resolve()))
    return _sha256(_read(setting, text, Path(str(_import(setting, text).__file__))))


def _read(setting: str, text: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
        raise UserError(setting, text, f"can't be read ({problem})", "name a Python file that is there") from error


def _import(setting: str, name: str) -> ModuleType:
    remedy = "name a file that ends in .py, or a module of an installed package or of PYTHONPATH"
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(setting, name, "is no module's name", remedy)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        if missing and Path(f"{name}.py").is_file():
            remedy = f"to name the file here, write {name}.py"
        problem = "there is no such module" if missing else _why_not_imported(error, None)
        raise UserError(setting, name, problem, remedy if missing else "mend the module") from error
    if getattr(module, "__file__", None) is None or not str(module.__file__).endswith(".py"):
        raise UserError(setting, name, "is no module that a Python file defines", remedy)
    return module


def why(error: BaseException, path: str | None) -> str:
    """What a module raised, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f" (line {frame.lineno})" for frame in reversed(frames) if frame.filename == path), "")
    return f"{type(error).__name__}: {error}{line}" if str(error) else f"{type(error).__name__}{line}"


def _why_not_imported(error: BaseException, path: str | None) -> str:
    if isinstance(error, SyntaxError):
        return f"can't be imported: {error.msg} (line {error.lineno})"
    return f"can't be imported: {why(error, path)}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
