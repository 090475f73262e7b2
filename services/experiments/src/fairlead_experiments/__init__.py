"""Takes exposures and outcomes, computes the analysis of a rollout."""
