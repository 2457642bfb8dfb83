"""Random schedules of a whole system on one ledger, against a sidecar that knows the truth."""
