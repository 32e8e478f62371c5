"""A finished run, opened to be used."""
