"""Splits traffic exactly and stickily: Envoy and the agent beside it."""
