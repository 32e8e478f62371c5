"""What the buffer's clients read of the environment; nothing is imported here, as commands are declared with it."""

URL_VARIABLE = "AMORTIS_REDIS__URL"
"""Where a run's Redis is, for a run that was given one: a URL may hold a password, which a command line shows."""
