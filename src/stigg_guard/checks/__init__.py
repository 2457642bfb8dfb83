"""How a check is answered: from the cache, by the sidecar, by the outage policy."""
