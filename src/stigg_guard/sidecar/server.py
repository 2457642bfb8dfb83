"""The local sidecar as a server: gRPC with health and reflection, and the HTTP side next to it."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from errno import EACCES, EADDRINUSE
from threading import Thread
from types import TracebackType
from typing import NoReturn

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

from stigg_guard.errors import ClientClosed, InvalidRequest, MissingExtra, SidecarError, SidecarStartError
from stigg_guard.log import logger
from stigg_guard.sidecar.health import HealthServer, Metrics, is_loopback, resolve
from stigg_guard.wire import KEYS_HONOURED, METHODS, SERVICE, TELLS_OF_KEYS, Answerer, Method

try:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection, reflection_pb2
except ModuleNotFoundError as error:
    raise MissingExtra("sidecar", "The local sidecar") from error

WORKERS = 16
GRACE_SECONDS = 5.0
HTTP_POLL_SECONDS = 0.05
UPSTREAM_SECONDS = 10.0
"""The deadline of a call whose caller waits longer, or for ever."""
MAX_DETAILS = 1_000  # gRPC drops the whole answer when its status grows past a few kilobytes
OPTIONS = (
    # A taken port must be an error, not a port shared with whoever has it.
    ("grpc.so_reuseport", 0),
    # Room for a full batch of large events, so that each is refused by its name and not by the transport.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


# What another server said that had the answer. Whatever else it said, here is no answer; the fault is not this one's.
_PASSED_ON = {
    status.name: status
    for status in (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    )
}


class Sidecar:
    """Whatever answers the 12 requests, served over gRPC and HTTP; with an engine, its GraphQL API and its plans too.

    Port 0 picks a free port; ``address`` and ``http_address`` tell which, as ``host:port``, once started. Serves once:
    make another to serve again. With ``api_key`` the GraphQL API wants it. What answers stays the caller's, to close
    after ``stop``.
    """

    def __init__(
        self,
        answers: Answerer,
        host: str = "127.0.0.1",
        port: int = 0,
        http_port: int = 0,
        api_key: str | None = None,
    ) -> None:
        self._answers = answers
        self._host = host
        self._port = port
        self._http_port = http_port
        self._api_key = api_key
        self._metrics = Metrics()
        self._health = health.HealthServicer()
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="stigg-sidecar")

    @property
    def address(self) -> str:
        """Where gRPC listens."""
        return _join(self._host, self._port)

    @property
    def http_address(self) -> str:
        """Where HTTP listens."""
        return _join(self._host, self._http_port)

    def start(self) -> None:
        """Listen on both ports; raises ``SidecarStartError`` when one of them cannot be had."""
        self._http = self._listen_http()
        try:
            self._grpc = self._listen_grpc()
        except SidecarStartError:
            self._http.server_close()
            raise
        self._grpc.start()
        Thread(
            target=self._http.serve_forever, args=(HTTP_POLL_SECONDS,), name="stigg-sidecar-http", daemon=True
        ).start()
        if not is_loopback(self._host):
            logger.warning("the sidecar at %s can be reached from elsewhere, and asks for no password", self._host)

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Accept nothing more, and give calls in flight ``grace`` seconds to finish."""
        self._health.enter_graceful_shutdown()
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(grace).wait()
        self._workers.shutdown()

    def __enter__(self) -> Sidecar:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listen_http(self) -> HealthServer:
        try:
            server = HealthServer(self._host, self._http_port, self._metrics, self._answers, self._api_key)
        except OSError as error:
            raise _cannot_listen(self.http_address, "--http-port", error) from error
        self._http_port = server.port
        return server

    def _listen_grpc(self) -> grpc.Server:
        server = grpc.server(self._workers, options=OPTIONS)
        handlers = {name: self._handler(name, method) for name, method in METHODS.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        self._health.set(SERVICE.full_name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        services = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(services, server, pool=_reflected_pool())
        try:
            _bind_once(self._host, self._port)
            self._port = server.add_insecure_port(self.address)
        except (OSError, RuntimeError) as error:
            raise _cannot_listen(self.address, "--port", error) from error
        return server

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler[Message, Message]:
        answers = self._answers
        answer = answers.answer
        requests = self._metrics.requests
        count_answered = requests.labels(name, grpc.StatusCode.OK.name).inc
        tells_of_keys = name in TELLS_OF_KEYS
        idempotency_key = _idempotency_key if name.startswith("Report") else _no_key

        def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
            requests.labels(name, code.name).inc()
            context.abort(code, details[:MAX_DETAILS])

        def refuse_upstream(context: grpc.ServicerContext, error: SidecarError) -> NoReturn:
            code = _PASSED_ON.get(error.code, grpc.StatusCode.UNAVAILABLE)
            if code is not grpc.StatusCode.INVALID_ARGUMENT:
                self._metrics.count_failure(is_key=code is grpc.StatusCode.UNAUTHENTICATED)
            refuse(context, code, str(error))

        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            try:
                timeout = min(context.time_remaining() or UPSTREAM_SECONDS, UPSTREAM_SECONDS)
                response = answer(name, request, timeout=timeout, idempotency_key=idempotency_key(context))
            except InvalidRequest as error:
                refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except SidecarError as error:
                refuse_upstream(context, error)
            except ClientClosed as error:
                refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
            except Exception:
                logger.exception("the answer to %s failed", name)
                refuse(context, grpc.StatusCode.INTERNAL, f"{name} failed; the sidecar's log says why")
            count_answered()
            if tells_of_keys and answers.honours_keys:
                context.set_trailing_metadata((KEYS_HONOURED,))
            return response

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=method.request.FromString,
            response_serializer=method.response.SerializeToString,
        )


def _idempotency_key(context: grpc.ServicerContext) -> str | None:
    key = dict(context.invocation_metadata()).get("idempotency-key")
    return str(key) if key else None


def _no_key(context: grpc.ServicerContext) -> None:
    """Reading the metadata costs each call; a question is never repeated for its key."""


def _reflected_pool() -> DescriptorPool:
    """One pool for reflection: our messages and those of the other two services live in different ones."""
    pool = DescriptorPool()
    for file in (*SERVICE.file.dependencies, SERVICE.file, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return pool


def _bind_once(host: str, port: int) -> None:
    """Raise the ``OSError`` that says why the port cannot be had; grpcio says only that."""
    family, address = resolve(host, port)
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def _cannot_listen(address: str, option: str, error: OSError | RuntimeError) -> SidecarStartError:
    reason = error.strerror if isinstance(error, OSError) else error
    if isinstance(error, OSError) and error.errno not in (EADDRINUSE, EACCES):
        remedy = "choose a --host that is a name or an address of this machine"
    else:
        remedy = f"stop what listens there, or choose another port with {option} (0 picks a free one)"
    return SidecarStartError(f"cannot listen on {address}: {reason}; {remedy}")


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
