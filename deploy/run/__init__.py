"""A run from its configuration to its summary: checks, launcher, actor pool, expectation maximisation."""
