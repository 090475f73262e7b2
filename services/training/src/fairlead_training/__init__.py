"""The worked example: will this flight arrive late."""
