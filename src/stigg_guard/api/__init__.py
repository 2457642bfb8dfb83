"""Stigg's GraphQL API, blocking and typed: ``Api``, and the inputs, enums and results of its operations by their names.

::

    from stigg_guard.api import Api, ProvisionCustomerInput

    api = Api(api_key="…")
    api.provision_customer(ProvisionCustomerInput(customer_id="customer-demo-01"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stigg_guard.api.generated import *  # noqa: F403 - each of its names is public here too
from stigg_guard.api.generated import CreditGrant, CreditLedgerEvent, CreditLedgerInput, GetCreditGrantsInput
from stigg_guard.api.generated import __all__ as _types
from stigg_guard.api.generated.operations import Operations
from stigg_guard.api.pages import inputs_after, nodes, paging_after
from stigg_guard.api.record import NOT_GIVEN

if TYPE_CHECKING:
    from stigg_guard.api.generated import (
        CursorPaging,
        SubscriptionQuery,
        SubscriptionQueryFilter,
        SubscriptionQuerySort,
    )
    from stigg_guard.api.generated.dicts import (
        CreditLedgerInputDict,
        CursorPagingDict,
        GetCreditGrantsInputDict,
        SubscriptionQueryFilterDict,
        SubscriptionQuerySortDict,
    )

__all__ = ["Api", *_types]


class Api(Operations):
    """A blocking client of Stigg's GraphQL API, with a method for each query and mutation.

    ``Api("server-key")`` asks ``https://api.stigg.io``, or the address given as ``api_url``. ``timeout`` is in seconds
    and covers all that a call does; each call may have another. ``on_change`` is called after each mutation that may
    have changed entitlements, with the ids of the customers, or with None when it may have been anybody. ``gate`` keeps
    requests within rate limits. Threads may
    share it; connections belong to the process. Nothing is connected before the first call.

    Raises:
        ConfigError: the key or the address is malformed.
    """

    def iter_credit_grants(
        self, input: GetCreditGrantsInput | GetCreditGrantsInputDict, *, timeout: float | None = None
    ) -> Iterator[CreditGrant]:
        """All that ``get_credit_grants`` answers, page after page as they are read; ``timeout`` is that of a page."""
        after = inputs_after(GetCreditGrantsInput, input)
        return nodes(lambda cursor: self.get_credit_grants(after(cursor), timeout=timeout).credit_grants)

    def iter_credit_ledger(
        self, input: CreditLedgerInput | CreditLedgerInputDict, *, timeout: float | None = None
    ) -> Iterator[CreditLedgerEvent]:
        """All that ``get_credit_ledger`` answers, likewise."""
        after = inputs_after(CreditLedgerInput, input)
        return nodes(lambda cursor: self.get_credit_ledger(after(cursor), timeout=timeout).credits_ledger)

    def iter_subscriptions(
        self,
        filter: SubscriptionQueryFilter | SubscriptionQueryFilterDict | None = NOT_GIVEN,
        paging: CursorPaging | CursorPagingDict | None = NOT_GIVEN,
        sorting: Sequence[SubscriptionQuerySort | SubscriptionQuerySortDict] | None = NOT_GIVEN,
        *,
        timeout: float | None = None,
    ) -> Iterator[SubscriptionQuery]:
        """All that ``get_subscriptions`` answers, likewise."""
        return nodes(
            lambda cursor: (
                self.get_subscriptions(filter, paging_after(paging, cursor), sorting, timeout=timeout).subscriptions
            )
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
