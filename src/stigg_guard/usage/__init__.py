"""Usage of metered features: held within the quota, settled, reported to the sidecar."""
