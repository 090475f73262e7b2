"""From traffic plans and endpoints to Envoy's resources, as plain dictionaries.

A cluster is one version of one model. The candidate's cluster holds the fallback version's
endpoints at priority 1: they take over when none of its own is healthy, and answer retries. The
route decides the arm; the endpoint's metadata tells which version answered.
"""
