"""A container's health: `python -m deploy.health URL` ends with 0 if the URL answers.

Standard library only, as it runs every few seconds.
"""

from __future__ import annotations

import sys
import urllib.request

LIMIT_S = 5.0


def main(urls: list[str]) -> int:
    """Ask every URL; 0 if all answer, else 1 and the reason."""
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
                answer.read()
        except OSError as error:
            print(f"{url}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
