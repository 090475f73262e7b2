"""Takes an MLflow promotion to a statistically decided rollout."""
