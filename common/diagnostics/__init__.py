"""Statistics of a posterior sampler: pure functions of arrays, no engine inside."""
