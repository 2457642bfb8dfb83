"""The local sidecar: the whole contract answered from a catalog file, without an account."""

PORT = 8433
"""Its gRPC port, unless another is named."""
HTTP_PORT = 8080
"""Its HTTP port, likewise."""
