"""The learner: policy log-probabilities, GFlowNet losses, optimisation, and publishing adapters."""
