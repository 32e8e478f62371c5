"""JSON numbers between bounds as regular expressions, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"
"""Any; the exponent is too short for most floats to overflow."""
_FLOAT_DIGITS = 15
"""Two decimals of so many digits are never one float."""
MOST_EXACT = 10**13
"""The greatest bound, so that one decimal is left at least."""
_NEVER = "(?!)"


def integers(least: int | None, most: int | None) -> str:
    """Matches the integers from `least` to `most`, without leading zeros and without -0."""
    options = []
    if most is None or most >= 0:
        options.append(_naturals(0 if least is None else max(0, least), most))
    if least is None or least < 0:
        options.append("-" + _naturals(1 if most is None else max(1, -most), None if least is None else -least))
    return either(options)


def numbers(least: Decimal | None, most: Decimal | None, over: bool, under: bool) -> str:
    """Matches the decimals from `least` to `most`, without an exponent; `over` and `under`: that bound is left out.

    Where a bound is left out they have too few digits to be rounded to it when they are read as floats.
    """
    decimals = "+"
    if over or under:
        longest = max(len(str(int(abs(bound)))) for bound in (least, most) if bound is not None)
        decimals = f"{{1,{_FLOAT_DIGITS - longest}}}"
    options = []
    if most is None or most >= 0:
        low = None if least is None or least < 0 else least
        options.append(_magnitudes(low, most, over, under, decimals))
    if least is None or least < 0:
        low = None if most is None or most > 0 else -most
        options.append("-" + _magnitudes(low, None if least is None else -least, under, over, decimals))
    return either(options)


def _magnitudes(low: Decimal | None, high: Decimal | None, over: bool, under: bool, decimals: str) -> str:
    found = rf"(?:0|[1-9][0-9]*)(?:\.[0-9]{decimals})?"
    if high is not None:
        found = f"(?={_up_to(high, under)}(?![0-9.])){found}"
    if low is not None:
        found = f"(?={_from(low, over)}(?![0-9.])){found}"
    return found


def _from(low: Decimal, over: bool) -> str:
    whole, fraction = _parts(low)
    more = [rf"{fraction[:i]}[{int(digit) + 1}-9][0-9]*" for i, digit in enumerate(fraction) if digit != "9"]
    more.append(fraction + ("[0-9]*[1-9][0-9]*" if over else "[0-9]*" if fraction else "[0-9]+"))
    options = [_naturals(whole + 1, None) + r"(?:\.[0-9]+)?", rf"{whole}\.{either(more)}"]
    if not over and not fraction:
        options.append(str(whole))
    return either(options)


def _up_to(high: Decimal, under: bool) -> str:
    whole, fraction = _parts(high)
    less = [rf"{fraction[:i]}[0-{int(digit) - 1}][0-9]*" for i, digit in enumerate(fraction) if digit != "0"]
    less += [fraction[:i] for i in range(1, len(fraction))]
    if not under:
        less.append(fraction + ("0*" if fraction else "0+"))
    options = [rf"{whole}\.{either(less)}"]
    if fraction or not under:
        options.append(str(whole))
    if whole:
        options.append(_naturals(0, whole - 1) + r"(?:\.[0-9]+)?")
    return either(options)


def _parts(bound: Decimal) -> tuple[int, str]:
    whole, _, fraction = format(bound, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _naturals(least: int, most: int | None) -> str:
    """From `least` to `most`, both at least 0."""
    if most is None:
        # All that are longer, and those as long from `least` on.
        longer = f"[1-9][0-9]{{{len(str(least))},}}"
        return either([_naturals(least, 10 ** len(str(least)) - 1), longer])
    options = []
    for length in range(len(str(least)), len(str(most)) + 1):
        first = max(least, 10 ** (length - 1) if length > 1 else 0)
        options.append(_of_one_length(str(first), str(min(most, 10**length - 1))))
    return either(options)


def _of_one_length(least: str, most: str) -> str:
    rest = len(least) - 1
    if rest < 0:
        return ""
    if (least[1:], most[1:]) == ("0" * rest, "9" * rest):
        return f"[{least[0]}-{most[0]}][0-9]{{{rest}}}"
    if least[0] == most[0]:
        return least[0] + _of_one_length(least[1:], most[1:])
    options = [
        least[0] + _of_one_length(least[1:], "9" * rest),
        most[0] + _of_one_length("0" * rest, most[1:]),
    ]
    if int(most[0]) - int(least[0]) > 1:
        options.append(f"[{int(least[0]) + 1}-{int(most[0]) - 1}][0-9]{{{rest}}}")
    return either(options)


def either(options: Sequence[str]) -> str:
    """Matches what one of them does."""
    return f"(?:{'|'.join(options)})" if options else _NEVER
