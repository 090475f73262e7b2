"""What the end-to-end tests drive a cluster with."""
