"""A trained sampler as an HTTP service: OpenAI's completions, and weighted draws of the posterior."""
