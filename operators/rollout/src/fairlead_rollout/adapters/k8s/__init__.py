"""Kubernetes: the store of ServedModels, the versions' objects, the Lease, what wakes us."""
