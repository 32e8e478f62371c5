"""A user's own task, tried before the run: what it raises and what it gives is said in one line that names its file."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common.action_space import ActionSpace
from common.errors import RunFault, UserError
from common.own_modules import why
from common.tasks import Split, Task, TaskConfig, task_class
from common.tasks.own import SETTING
from common.trajectory import Query


@contextlib.contextmanager
def own_errors(config: TaskConfig) -> Iterator[None]:
    """Makes what the code of a user's own task raises a UserError; what amortis itself raises stays as it is."""
    try:
        yield
    except (UserError, RunFault):
        raise
    except Exception as error:
        file = getattr(sys.modules[task_class(config).__module__], "__file__", None)
        frames = traceback.extract_tb(error.__traceback__)
        if config.module is None or file not in [frame.filename for frame in frames]:
            raise
        raise UserError(SETTING, config.module, f"its task raises {why(error, file)}", "mend the file") from error


def check_own_task(task: Task[Any]) -> None:
    """Whether the parts of a task are what amortis takes them for. Raises UserError naming its module."""
    space, vocab_size = task.action_space, task.codec.vocab_size
    if not isinstance(space, ActionSpace):
        raise _wrong(task, f"its action_space is a {type(space).__name__}, no ActionSpace")
    if space.vocab_size != vocab_size:
        raise _wrong(task, f"its action_space has vocab_size {space.vocab_size}, and the model's is {vocab_size}")
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        found = task.queries(split)
        if not isinstance(found, list) or not found or not all(isinstance(query, Query) for query in found):
            raise _wrong(task, f'its queries("{split}") give no list of queries')


def check_log_constraint(task: Task[Any], query: Query, rationales: Sequence[Sequence[int]]) -> None:
    """Whether each rationale's constraint term has a number for each decision state. Raises UserError."""
    for rationale in rationales:
        ids = np.asarray(rationale, np.int32)
        found = np.asarray(task.log_constraint(query, ids))
        wanted = f"{len(ids) + 1} finite floats for {len(ids)} actions"
        if found.dtype.kind != "f" or found.shape != (len(ids) + 1,):
            raise _wrong(task, f"its log_constraint gives {found.dtype} of shape {found.shape}, and not {wanted}")
        if not np.isfinite(found).all():
            raise _wrong(task, f"its log_constraint gives {found.tolist()}, and not {wanted}")


def _wrong(task: Task[Any], problem: str) -> UserError:
    return UserError(SETTING, task.config.module, problem, "mend it: common/tasks/base.py says what a task gives")
