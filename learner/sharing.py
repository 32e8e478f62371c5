"""Which of several processes computes which trajectories of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def shares(lengths: Sequence[int], queries: Sequence[str], prompts: Mapping[str, int], n: int) -> list[list[int]]:
    """Indices of the rows for each of `n` processes, so that the most tokens that one of them computes are fewest.

    `lengths` are the rows', in tokens, and `prompts` those of the queries' prompts, which are read by each process that
    has a row of theirs. A query's rows stay together, in the order of their lengths, and are cut only where that
    balances. With fewer rows than processes some have none.
    """
    place = {query: i for i, query in enumerate(dict.fromkeys(queries))}
    order = sorted(range(len(lengths)), key=lambda i: (place[queries[i]], lengths[i]))

    def cut(limit: int) -> list[list[int]]:
        """In order, each as many rows as are within the limit."""
        found, seen, tokens = list[list[int]](), set[str](), 0
        for i in order:
            more = lengths[i] + (0 if queries[i] in seen else prompts[queries[i]])
            if not found or tokens + more > limit:
                found.append([])
                seen, tokens = set(), 0
                more = lengths[i] + prompts[queries[i]]
            found[-1].append(i)
            seen.add(queries[i])
            tokens += more
        return found

    low = max(length + prompts[query] for length, query in zip(lengths, queries, strict=True))
    high = sum(lengths) + sum(prompts[query] for query in queries)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(cut(middle)) <= n else (middle + 1, high)
    found = cut(low)
    return found + [[] for _ in range(n - len(found))]
