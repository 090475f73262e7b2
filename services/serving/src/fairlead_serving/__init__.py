"""Serves any MLflow model: one process, one model version."""
