"""How amortis is started and watched: command line, launcher, checks and displays."""
