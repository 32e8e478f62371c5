"""The replay buffer, the adapter registry and the run's control keys, all on Redis."""
