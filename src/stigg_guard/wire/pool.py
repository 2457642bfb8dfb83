"""The descriptor pool of the wire messages.

The contract's file name and package belong to Stigg, so another library in the same process may register them too, and
protobuf refuses a second, different registration in one pool. Ours live in a pool of their own: neither import order
nor version of the other library matters. What follows for users: pass ``datetime`` (or a mapping) for timestamps; a
``google.protobuf.timestamp_pb2.Timestamp`` belongs to the default pool and is refused with a ``TypeError``.
"""

from __future__ import annotations

from google.protobuf import descriptor_pool, empty_pb2, struct_pb2, timestamp_pb2

POOL = descriptor_pool.DescriptorPool()
for _module in (empty_pb2, struct_pb2, timestamp_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)
