"""Usage of metered features: held, settled, reported to the sidecar."""
