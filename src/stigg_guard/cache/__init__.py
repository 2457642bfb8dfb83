"""The cache: snapshots of customers' entitlements, those of a process and those that all processes share."""
