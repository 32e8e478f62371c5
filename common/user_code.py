"""The process that runs a user's function: it loads the function, then answers one request after another.

Started as `python -m common.user_code ROLE FUNCTION FOLDER REQUESTS ANSWERS LIFELINE`, where the last three are file
descriptors. A frame is a number, a length (little-endian, 4 bytes each) and that many bytes of JSON. Nothing but the
standard library is imported, so that it starts in no time, and standard input and output are not what frames go
through: the user's code may read, write or close them.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import os
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.processes import end_group_with

HEADER = struct.Struct("<II")
LOADED = 0
"""The number of the first frame, which says whether the function could be loaded."""
MAX_FRAME_BYTES = 4 << 20
"""Of an answer; no tool's result and no batch's values are ever as long."""
HIGHEST_LOG_REWARD = 1e6
"""In nats, either way: what is beyond it can't be told from others in the float32 that log R is kept in."""
_SHOWN = 300
"""Characters of a message that are kept."""


class Unloadable(Exception):
    """Why a function can't be loaded, and what to do; `{setting}` stands for what names it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


def split_function(text: str) -> tuple[str, str]:
    """The file or module, and the function in it; raises ValueError saying how it is written."""
    where, _, name = text.rpartition(":")
    if not where or not name.isidentifier():
        raise ValueError("names no function: write my_file.py:function, or package.module:function")
    return where, name


def is_file(where: str) -> bool:
    """Whether a function is named by its file, and not by its module."""
    return where.endswith(".py") or os.sep in where


def load_function(text: str, folder: str, parameters: int) -> Callable[..., Any]:
    """The function that `text` names, in a file or in a module; raises Unloadable."""
    where, name = split_function(text)
    try:
        module = _module_of_file(Path(where)) if is_file(where) else _module(where, folder)
    except Unloadable:
        raise
    except BaseException as error:  # SystemExit and the like among them: it is the user's code that runs here.
        raise Unloadable(f"can't be imported ({describe(error)})", "mend it") from error
    found = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        remedy = f"name one of {', '.join(known[:8])}" if known else "write one, or name another"
        raise Unloadable(f"there is no {name!r} in {where}", remedy)
    if not callable(found):
        raise Unloadable(f"{name!r} is not callable", "name a function")
    if inspect.iscoroutinefunction(found):
        raise Unloadable("is a coroutine function, which nobody awaits", "name a plain function")
    try:
        inspect.signature(found).bind(*range(parameters))
    except TypeError as error:
        raise Unloadable(f"can't be called with {parameters} arguments ({error})", "{signature}") from error
    except ValueError:
        # One written in C, which doesn't say.
        pass
    return found  # type: ignore[no-any-return]


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise Unloadable("there is no such file", "name one that is there")
    # What lies beside the file can be imported from it, as when it is run.
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Unloadable("is no Python file", "give one whose name ends with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _module(name: str, folder: str) -> Any:
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        remedy = "put the module on PYTHONPATH or beside where amortis is started, or set {folder}"
        raise Unloadable(f"there is no module {error.name!r}", remedy) from error


def describe(error: BaseException) -> str:
    """An exception's type, its message, and where in the user's code it was raised, on one line and not too long."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = "its message can't be shown"
    message = message if len(message) <= _SHOWN else f"{message[: _SHOWN - 1]}…"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError):
        place = ""
    return f"{type(error).__name__}: {message}{place}" if message else f"{type(error).__name__}{place}"


def answer_tool(function: Callable[[str], Any], request: Any) -> Any:
    """What to insert, or None."""
    found = function(request)
    if found is None:
        return None
    text = str(found)
    text.encode()
    return text


def answer_reward(function: Callable[..., Any], request: Any) -> Any:
    """For each text its value, or a message that says why there is none; a message for all where they can't be told
    apart.

    Texts of one query share its prompt and row, so these come once.
    """
    queries, items = request
    prompts = [queries[index][0] for index, _ in items]
    rows = [copy.deepcopy(queries[index][1]) for index, _ in items]
    texts = [text for _, text in items]
    found = function(prompts, texts, rows)
    if hasattr(found, "tolist"):
        found = found.tolist()
    if not isinstance(found, list | tuple):
        return f"returned {_named(found)}, where a list of {len(texts)} numbers is wanted"
    if len(found) != len(texts):
        return f"returned {len(found)} values for {len(texts)} texts"
    return [_value(value) for value in found]


def _value(value: Any) -> float | str:
    if not isinstance(value, numbers.Real) and callable(getattr(value, "item", None)):
        # A tensor or an array of one number.
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return f"returned {_named(value)} for a text, where a number of nats is wanted"
    number = float(value)
    if math.isnan(number):
        return "returned NaN for a text"
    if abs(number) > HIGHEST_LOG_REWARD:
        return f"returned {number:g} for a text: log R is finite, give -100 for what is to be as good as impossible"
    return number


def _named(value: Any) -> str:
    shown = f" {value!r}" if isinstance(value, bool | str) and len(value if isinstance(value, str) else "") < 40 else ""
    return f"a {type(value).__name__}{shown}"


ROLES: dict[str, tuple[int, Callable[[Callable[..., Any], Any], Any]]] = {
    "tool": (1, answer_tool),
    "reward": (3, answer_reward),
}
"""How many arguments a function gets, and how a request is answered with it."""


def serve(role: str, text: str, folder: str, requests: int, answers: int) -> None:
    """Load, say so, and answer until the requests end."""
    parameters, answer = ROLES[role]
    own = os.getpid()

    def say(number: int, what: dict[str, Any]) -> None:
        if os.getpid() != own:
            # The user's code forked, and the copy came back here: what it would say is said already.
            os._exit(0)
        data = json.dumps(what).encode()
        if len(data) > MAX_FRAME_BYTES:
            data = json.dumps({"too_long": len(data)}).encode()
        _write(answers, HEADER.pack(number, len(data)) + data)

    try:
        function = load_function(text, folder, parameters)
    except Unloadable as error:
        say(LOADED, {"unloadable": [error.problem, error.remedy]})
        return
    say(LOADED, {"loaded": True})
    while header := _read(requests, HEADER.size):
        number, length = HEADER.unpack(header)
        request = json.loads(_read(requests, length))
        try:
            # Encoded within the attempt: what can't be is the function's fault as well.
            said = {"answer": answer(function, request)}
            json.dumps(said, allow_nan=False)
        except BaseException as error:  # SystemExit and KeyboardInterrupt among them.
            said = {"raised": describe(error)}
        say(number, said)


def _read(descriptor: int, size: int) -> bytes:
    """So many bytes; none at the end."""
    found = b""
    while len(found) < size:
        part = os.read(descriptor, size - len(found))
        if not part:
            return b""
        found += part
    return found


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    _role, _function, _folder, _requests, _answers, _lifeline = sys.argv[1:]
    end_group_with(int(_lifeline))
    # What is under `-m` would otherwise be seen by the user's code as its own folder's.
    sys.argv = [_function]
    serve(_role, _function, _folder, int(_requests), int(_answers))
