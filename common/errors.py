"""Errors that a user can act on, each one line: the field, its value, what is wrong, what to do."""

from __future__ import annotations

EXIT_FAULT, EXIT_USER, EXIT_INTERRUPTED = 1, 2, 130
"""Statuses that commands end with."""


class UserError(Exception):
    """A mistake in what the user gave, or in the machine's state, that the user can mend.

    The command line prints it as one line and exits with status 2, without a traceback.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        shown = "" if value is None else f" = {_short(value)}"
        super().__init__(f"{field}{shown}: {_one_line(problem)}; {_one_line(remedy)}")

    def __reduce__(self) -> tuple[type[UserError], tuple[object, ...]]:
        """Pickle by the four parts, so that the error survives the way out of a Ray actor."""
        return (type(self), (self.field, self.value, self.problem, self.remedy))


class RunFault(Exception):
    """The run stopped itself because going on would train on wrong data; the message says why."""


class SamplerGapFault(RunFault):
    """Samplers and learner give the same actions under the same adapter log-probabilities that are too far apart."""


class EngineFault(RunFault):
    """vLLM failed in the middle of its work, and what it holds is in no good state; the message names the first cause.

    Another engine in another process may go on.
    """


class EngineDisturbed(UserError):
    """An engine could not start, maybe as a process beside it was in the way for a moment; a new try is worth it."""


class StallError(Exception):
    """A wait reached its limit; the message names what was waited for and what to do."""


def last_line(error: BaseException) -> str:
    """What an error says in the end, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _short(value: object, limit: int = 120) -> str:
    text = _one_line(repr(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"
