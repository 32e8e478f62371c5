"""Which trajectories of a batch go through the model together: those of like length, so that little is padding.

And which of several processes computes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CPU_OVERHEAD = 48
"""What one more pass costs besides its tokens, as a number of tokens: the weights are read again."""
GPU_OVERHEAD = 1.5e12
"""The same on a GPU, times the model's parameters: there it is the time to launch the kernels.

On an H100, 135 million parameters in float32, forward and backward: 175 ms for a pass of any size, and 16 µs a token.
"""
BFLOAT16_SPEED_UP = 4
"""How much less time a token takes there in bfloat16, the launches taking as long."""


def gpu_overhead(parameters: int, *, float32: bool) -> int:
    """What one more pass costs on a GPU, as a number of tokens; estimated from one model on one kind of GPU."""
    return int(GPU_OVERHEAD * (1 if float32 else BFLOAT16_SPEED_UP) / parameters)


def passes(
    lengths: Sequence[int], queries: Sequence[str], prompts: Mapping[str, int], overhead: int
) -> list[list[int]]:
    """Indices of the rows, split so that the fewest tokens are computed, padding, prompts and overhead counted.

    `lengths` are the rows', in tokens; each pass computes the prompts of its rows' queries once, of `prompts[query]`
    tokens. Rows of one length stay together. Exact, by dynamic programming over the distinct lengths.
    """
    rows: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        rows.setdefault(length, []).append(i)
    widths = sorted(rows)
    # More passes than one can't save more than the padding.
    if len(lengths) * widths[-1] - sum(lengths) <= overhead:
        return [list(range(len(lengths)))]
    # The fewest tokens for all rows shorter than each width, and where their last pass begins.
    best = [(0, 0)]
    for end in range(len(widths)):
        count, seen, options = 0, set[str](), []
        for start in range(end, -1, -1):
            count += len(rows[widths[start]])
            seen.update(queries[i] for i in rows[widths[start]])
            tokens = count * widths[end] + sum(prompts[query] for query in seen) + overhead
            options.append((best[start][0] + tokens, start))
        best.append(min(options))
    found, end = list[list[int]](), len(widths)
    while end:
        start = best[end][1]
        found.append([i for width in widths[start:end] for i in rows[width]])
        end = start
    return found[::-1]


def shares(lengths: Sequence[int], queries: Sequence[str], prompts: Mapping[str, int], n: int) -> list[list[int]]:
    """Indices of the rows for each of `n` processes, so that the most tokens that one of them computes are fewest.

    Arguments as of `passes`. A query's rows stay together, in the order of their lengths, as each process that has one
    computes the prompt: they are cut only where that balances. With fewer rows than processes some have none.
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
