"""What actors and learner must agree on: configuration, trajectories, tasks, rewards and metrics."""
