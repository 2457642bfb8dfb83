"""The local sidecar as a server: gRPC with health and reflection, and the HTTP side next to it."""

from __future__ import annotations

import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from errno import EACCES, EADDRINUSE
from hmac import compare_digest
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from types import TracebackType
from typing import NoReturn

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from stigg_guard.errors import ClientClosed, ConfigError, InvalidRequest, MissingExtra, SidecarError, SidecarStartError
from stigg_guard.runtime.log import logger
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.faults import Faults, Injected
from stigg_guard.sidecar.health import HealthServer, is_loopback, is_wildcard, resolve
from stigg_guard.sidecar.journal import Journal
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.news import Watchers
from stigg_guard.sidecar.page import Page
from stigg_guard.sidecar.settings import Settings
from stigg_guard.sidecar.state import StateUnavailable
from stigg_guard.wire import API_KEY, KEYS_HONOURED, METHODS, NEWS, SERVICE, TELLS_OF_KEYS, WATCH, Answerer, Method

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
    # Who hangs is let go, so that nobody else waits for it to take news.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
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


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts: a certificate, its key, and the authority that certificates of clients must be of, if any."""

    certificate: bytes
    key: bytes = field(repr=False)
    client_authority: bytes | None = None

    @classmethod
    def of(cls, settings: Settings) -> Tls | None:
        """From the files that the settings name; None for plaintext. Raises ``ConfigError`` for one that cannot be
        read."""
        if settings.tls_cert_file is None or settings.tls_key_file is None:
            return None
        authority = settings.tls_client_ca_file
        return cls(_pem(settings.tls_cert_file), _pem(settings.tls_key_file), _pem(authority) if authority else None)

    def credentials(self) -> grpc.ServerCredentials:
        """As gRPC takes them."""
        pair = (self.key, self.certificate)
        return grpc.ssl_server_credentials([pair], self.client_authority, self.client_authority is not None)


class Sidecar:
    """Whatever answers the 12 requests, served over gRPC and HTTP; with an engine, its GraphQL API and its plans too.

    Port 0 picks a free port; ``address`` and ``http_address`` tell which, as ``host:port``, once started. Serves once:
    make another to serve again. What answers stays the caller's, to close after ``stop``.

    With ``api_key`` the GraphQL API wants it, with ``require_api_key`` gRPC calls, too; with ``tls`` gRPC speaks TLS.
    ``metrics`` are those that others count into; ``token`` is what changes on the status page must carry, a new one if
    none is given; ``faults`` are done to answers over gRPC.
    """

    def __init__(
        self,
        answers: Answerer,
        host: str = "127.0.0.1",
        port: int = 0,
        http_port: int = 0,
        api_key: str | None = None,
        *,
        require_api_key: bool = False,
        tls: Tls | None = None,
        metrics: Metrics | None = None,
        token: str | None = None,
        faults: Faults | None = None,
    ) -> None:
        self._answers = answers
        self._host = host
        self._port = port
        self._http_port = http_port
        self._api_key = api_key
        self._required_key = (api_key or "").encode() if require_api_key else None
        self._tls = tls
        self._metrics = metrics or Metrics()
        self._faults = faults or Faults({})
        self._watchers = Watchers()
        self._is_over = Event()
        self._journal = Journal()
        self._token = token or secrets.token_urlsafe(16)
        self._page = Page(answers, self._journal, self._metrics, self._token) if isinstance(answers, Engine) else None
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

    @property
    def page_url(self) -> str:
        """The address of the status page, with the token for changes, which a browser keeps to itself. It is of this
        machine alone."""
        host = "localhost" if is_wildcard(self._host) else self._host
        return f"http://{_join(host, self._http_port)}/#{self._token}"

    def start(self) -> None:
        """Listen on both ports; raises ``SidecarStartError`` when one of them cannot be had."""
        self._http = self._listen_http()
        try:
            self._grpc = self._listen_grpc()
        except SidecarStartError:
            self._http.server_close()
            raise
        self._grpc.start()
        if isinstance(self._answers, Engine):
            self._answers.on_change = self._watchers.tell
            Thread(target=self._answers.follow, args=(self._is_over,), name="stigg-sidecar-follow", daemon=True).start()
        Thread(
            target=self._http.serve_forever, args=(HTTP_POLL_SECONDS,), name="stigg-sidecar-http", daemon=True
        ).start()
        if not is_loopback(self._host):
            logger.warning("the sidecar at %s can be reached from elsewhere, and asks for no password", self._host)

    def stop(self, grace: float = GRACE_SECONDS) -> None:
        """Accept nothing more, and give calls in flight ``grace`` seconds to finish."""
        self._health.enter_graceful_shutdown()
        if self._page is not None:
            self._page.end()
        self._watchers.end()
        self._is_over.set()
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
            server = HealthServer(self._host, self._http_port, self._metrics, self._answers, self._api_key, self._page)
        except OSError as error:
            raise _cannot_listen(self.http_address, "--http-port", error) from error
        self._http_port = server.port
        return server

    def _listen_grpc(self) -> grpc.Server:
        server = grpc.server(self._workers, options=OPTIONS)
        handlers = {name: self._handler(name, method) for name, method in METHODS.items()}
        watch = {WATCH.rpartition("/")[2]: self._watchers.handler(self._accepts)}
        services_of_ours = ((SERVICE.full_name, handlers), (NEWS, watch))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(*one) for one in services_of_ours])
        self._health.set(SERVICE.full_name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        services = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(services, server, pool=_reflected_pool())
        try:
            _bind_once(self._host, self._port)
            if self._tls is None:
                self._port = server.add_insecure_port(self.address)
            else:
                self._port = server.add_secure_port(self.address, self._tls.credentials())
        except OSError as error:
            raise _cannot_listen(self.address, "--port", error) from error
        except RuntimeError as error:
            if self._tls is not None:
                raise SidecarStartError(
                    "TLS: gRPC takes neither file or they do not belong together; give PEM files of a certificate, of "
                    "its own key and, if clients need one, of their authority"
                ) from error
            raise _cannot_listen(self.address, "--port", error) from error
        return server

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler[Message, Message]:
        answers = self._answers
        answer = self._faults.wrap(name, answers.answer)
        requests = self._metrics.requests
        count_answered = requests.labels(name, grpc.StatusCode.OK.name).inc
        measure = self._metrics.seconds.labels(name).observe
        learns = isinstance(answers, Engine) and not name.startswith("Report")
        tells_of_keys = name in TELLS_OF_KEYS
        idempotency_key = _idempotency_key if name.startswith("Report") else _no_key
        unreadable = method.request()
        note = self._journal.note

        def reject(request: Message, context: grpc.ServicerContext, code: grpc.StatusCode, details: str) -> NoReturn:
            requests.labels(name, code.name).inc()
            note(name, request, None, details)
            context.abort(code, details[:MAX_DETAILS])

        def reject_upstream(request: Message, context: grpc.ServicerContext, error: SidecarError) -> NoReturn:
            code = _PASSED_ON.get(error.code, grpc.StatusCode.UNAVAILABLE)
            if code is grpc.StatusCode.UNAUTHENTICATED:
                self._metrics.invalid_api_key_errors.inc()
            elif code is not grpc.StatusCode.INVALID_ARGUMENT:
                self._metrics.network_request_errors.inc()
            reject(request, context, code, str(error))

        def read(body: bytes) -> Message:
            try:
                return method.request.FromString(body)
            except DecodeError:
                return unreadable  # gRPC would log a traceback for each, and answer INTERNAL

        def handle(request: Message, context: grpc.ServicerContext) -> Message:
            if request is unreadable:
                details = f"this is no {method.request.DESCRIPTOR.name}; send its bytes as protobuf writes them"
                reject(request, context, grpc.StatusCode.INVALID_ARGUMENT, details)
            if not self._accepts(context):
                reject(request, context, grpc.StatusCode.UNAUTHENTICATED, f"send the sidecar's key as {API_KEY}")
            began = perf_counter()
            timeout = min(context.time_remaining() or UPSTREAM_SECONDS, UPSTREAM_SECONDS)
            try:
                if learns:
                    self._learn()
                response: Message = answer(name, request, timeout=timeout, idempotency_key=idempotency_key(context))
            except InvalidRequest as error:
                reject(request, context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except Injected as fault:
                reject(request, context, fault.code(), fault.details())
            except SidecarError as error:
                reject_upstream(request, context, error)
            except (StateUnavailable, ClientClosed) as error:
                reject(request, context, grpc.StatusCode.UNAVAILABLE, str(error))
            except Exception:
                logger.exception("the answer to %s failed", name)
                reject(request, context, grpc.StatusCode.INTERNAL, f"{name} failed; the sidecar's log says why")
            count_answered()
            measure(perf_counter() - began)
            note(name, request, response)
            if tells_of_keys and answers.honours_keys:
                context.set_trailing_metadata((KEYS_HONOURED,))
            return response

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=read,
            response_serializer=method.response.SerializeToString,
        )

    def _accepts(self, context: grpc.ServicerContext) -> bool:
        """Whether a call carries the key, where one is required."""
        if self._required_key is None:
            return True
        given = dict(context.invocation_metadata()).get(API_KEY, "")
        is_right = compare_digest(given if isinstance(given, bytes) else given.encode(), self._required_key)
        if not is_right:
            self._metrics.invalid_api_key_errors.inc()
        return is_right

    def _learn(self) -> None:
        assert isinstance(self._answers, Engine)
        knew = self._answers.refresh()
        (self._metrics.cache_hits if knew else self._metrics.cache_misses).inc()


def _pem(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None


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
