"""Stigg's durable queue (Amazon SQS): what changed while nobody listened is told all the same."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from stigg_guard.api.event_queue import EventQueueAccess
from stigg_guard.cache.messages import Message, read_message
from stigg_guard.clock import Clock
from stigg_guard.errors import ApiError, ConfigError, MissingExtra
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import is_http_url

try:
    import botocore
    from boto3.session import Session
    from botocore.config import Config as ClientConfig
    from botocore.exceptions import BotoCoreError, ClientError
    from prometheus_client import CollectorRegistry, Counter, Gauge
except ModuleNotFoundError as error:
    raise MissingExtra("redis,prometheus,sqs", "Stigg's durable queue") from error

FAULTS = (ApiError, BotoCoreError, ClientError)
"""What is raised when the queue, or the credentials for it, cannot be had."""
POLL_SECONDS = 20
"""The longest that SQS lets a request wait for messages; it is billed by the request."""
AT_A_TIME = 10
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
RETRY_SECONDS = (0.5, 30.0)
EARLY_SECONDS = 300.0
"""So long before they expire credentials are replaced."""

_REGION = re.compile(r"(?:^|\.)sqs\.([a-z0-9-]+)\.|^([a-z0-9-]+)\.queue\.amazonaws\.com$")

QueuedMessage: TypeAlias = "Mapping[str, Any]"

botocore.log.setLevel("INFO")  # with DEBUG it writes the session token into the log


class Queue:
    """The queue at ``url``, read with temporary credentials from ``access``. For one thread.

    Raises:
        ConfigError: the URL is none of a queue, or has no region in it and ``region`` is none.
    """

    def __init__(self, url: str, access: EventQueueAccess, clock: Clock, region: str | None = None) -> None:
        if not is_http_url(url):
            raise ConfigError("QUEUE_URL: expected the URL of a queue of SQS, as Stigg gave it to you")
        parts = urlsplit(url)
        found = _REGION.search(parts.hostname or "")
        self._region = next((name for name in (found.groups() if found else ()) if name), region)
        if self._region is None:
            raise ConfigError(f"QUEUE_URL: {parts.hostname} names no region of AWS; set AWS_REGION")
        self._url = url
        self._endpoint = f"{parts.scheme}://{parts.netloc}"
        self._access = access
        self._monotonic = clock.monotonic
        self._client: Any = None
        self._replaced_at = 0.0

    def receive(self) -> Sequence[QueuedMessage]:
        """Up to ten messages; none if none came within ``POLL_SECONDS``. Each comes again unless it is deleted.

        Raises:
            one of ``FAULTS``: it cannot be read now.
        """
        answer = self._asked(
            "receive_message", MaxNumberOfMessages=AT_A_TIME, WaitTimeSeconds=POLL_SECONDS, QueueUrl=self._url
        )
        messages: Sequence[QueuedMessage] = answer.get("Messages", ())
        return messages

    def delete(self, messages: Collection[QueuedMessage]) -> None:
        """They do not come again; one that is not deleted all the same does, which is harmless.

        Raises:
            one of ``FAULTS``.
        """
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(messages)
        ]
        if entries:
            self._asked("delete_message_batch", QueueUrl=self._url, Entries=entries)

    def close(self) -> None:
        """Closes the connections."""
        self._access.close()
        self._disconnect()

    def _asked(self, operation: str, **given: Any) -> Mapping[str, Any]:
        if self._client is None or self._monotonic() >= self._replaced_at:
            self._connect()
        try:
            answer: Mapping[str, Any] = getattr(self._client, operation)(**given)
        except ClientError:  # it may be the credentials that are refused
            self._disconnect()
            raise
        return answer

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connect(self) -> None:
        credentials = self._access.credentials()
        self._disconnect()
        # A short life is no reason to ask for others at each request.
        self._replaced_at = self._monotonic() + max(credentials.seconds - EARLY_SECONDS, credentials.seconds / 2, 60.0)
        session = Session(
            aws_access_key_id=credentials.access_key_id,
            aws_secret_access_key=credentials.secret_access_key,
            aws_session_token=credentials.session_token,
            region_name=self._region,
        )
        self._client = session.client(
            "sqs",
            endpoint_url=self._endpoint,
            config=ClientConfig(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=POLL_SECONDS + ANSWER_SECONDS,
                retries={"total_max_attempts": 1},  # the reader tries again by itself
            ),
        )


class QueueReader(threading.Thread):
    """Reads the queue until ``over`` is set; it does not outlive the process, whatever it waits for.

    ``take`` is given the ids of customers who have changed, and returns those of whom that is seen everywhere. Their
    messages are deleted; those of the others come again, to this process or another one. What cannot be read is told in
    the log and deleted: it would come again, and could not be read then either.
    """

    def __init__(
        self, queue: Queue, take: Callable[[Collection[str]], Collection[str]], registry: CollectorRegistry
    ) -> None:
        super().__init__(name="stigg-guard-queue", daemon=True)
        self.over = threading.Event()
        self._queue = queue
        self._take = take
        self._is_failing = False
        self._pause, _ = RETRY_SECONDS
        self._up = Gauge("stigg_guard_cache_queue_up", "1 if Stigg's queue answered last.", registry=registry)
        self._messages = Counter(
            "stigg_guard_cache_queue_messages", "Messages of Stigg's queue.", ["outcome"], registry=registry
        )

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self._step()
        finally:
            self._up.set(False)
            self._queue.close()

    def _step(self) -> None:
        try:
            self._follow(self._queue.receive())
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on: nothing else reads the queue
            self._note(error)
            self.over.wait(self._pause)
            self._pause = min(2 * self._pause, RETRY_SECONDS[1])
        else:
            self._note(None)

    def _follow(self, messages: Sequence[QueuedMessage]) -> None:
        told = [(message, self._read(message)) for message in messages]
        self._dispose([message for message, read in told if read is None], "unreadable")
        whose = [(message, read.customer) for message, read in told if read is not None]
        done = self._take({customer.id for _, customer in whose if customer is not None})
        applied = [message for message, customer in whose if customer is None or customer.id in done]
        self._dispose(applied, "applied")

    def _read(self, message: QueuedMessage) -> Message | None:
        try:
            return read_message(message["Body"])
        except ValueError as error:
            logger.warning("a message of Stigg's queue is deleted unread: %s: %s", message["MessageId"], error)
            return None

    def _dispose(self, messages: Collection[QueuedMessage], outcome: str) -> None:
        self._queue.delete(messages)
        self._messages.labels(outcome).inc(len(messages))

    def _note(self, fault: Exception | None) -> None:
        self._up.set(fault is None)
        was_failing, self._is_failing = self._is_failing, fault is not None
        if fault is not None and not was_failing:
            said = fault if isinstance(fault, FAULTS) else f"{type(fault).__name__}: {fault}"
            logger.warning("Stigg's queue is not read, and changes in it are seen later: %s", said)
        if fault is None:
            self._pause, _ = RETRY_SECONDS
            if was_failing:
                logger.warning("Stigg's queue is read again")
