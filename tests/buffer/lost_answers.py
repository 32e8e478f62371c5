"""What a client does where it lost an answer: it sends the command again."""

from __future__ import annotations

from typing import Any


def sent_again(owner: Any, name: str) -> None:
    """Have each call of an object's script come twice, of which the second is answered."""
    script = getattr(owner, name)

    def twice(**arguments: Any) -> Any:
        script(**arguments)
        return script(**arguments)

    setattr(owner, name, twice)
