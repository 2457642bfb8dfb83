"""Stigg's GraphQL API in the place of a sidecar."""
