"""The local sidecar: the whole contract answered from a catalog file, without an account."""
