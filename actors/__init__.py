"""Actors: sample trajectories with the newest adapter, score them with the base model, push them."""
