"""`report.html`: what a run was, whether its sampler can be trusted, and why, on one page that needs nothing else.

`found` reads what a run's folder holds, `contents` chooses what is shown of it, `plots` draws, and `page` fills in the
templates. Nothing here starts an engine, reads a model or runs anybody's code.
"""
