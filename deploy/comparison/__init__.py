"""`amortis compare`: several configurations for several seeds, one table and one plot."""
