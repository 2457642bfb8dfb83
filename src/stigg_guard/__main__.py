"""The command ``stigg-guard``."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from stigg_guard.display import usage_text
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import InvalidRequest, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.operators import configure_ledger, configure_report
from stigg_guard.sidecar import __main__ as sidecar


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status. An error of ours is one message on stderr and status 2."""
    parser = ArgumentParser(prog="stigg-guard", description="Guard views by what a customer has paid for.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    local = commands.add_parser("sidecar", help="run a local Stigg sidecar that needs no account")
    sidecar.configure(local)
    local.set_defaults(run=sidecar.run)
    _configure_check(commands.add_parser("check", help="ask what a customer may use"))
    configure_report(commands.add_parser("report", help="report usage that happened"))
    configure_ledger(commands.add_parser("ledger", help="look after usage that is on its way"))
    options = parser.parse_args(argv)
    try:
        return int(options.run(options))
    except StiggGuardError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _configure_check(parser: ArgumentParser) -> None:
    parser.description = "Ask the sidecar of STIGG_GUARD_SIDECAR. Exit status 1 means that access is denied."
    parser.add_argument("customer", help="customer id")
    parser.add_argument("feature", nargs="?", help="feature or currency id (default: all that the plan has)")
    parser.add_argument("--resource", help="id of the customer's resource")
    parser.add_argument("--requested-usage", type=float, metavar="N", help="whether N more units fit")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_check)


def _check(options: Namespace) -> int:
    customer = Customer(options.customer, options.resource)
    if options.feature is None and options.requested_usage is not None:
        raise InvalidRequest("feature_id", "--requested-usage is about one feature: name it")
    with Guard() as guard:
        if options.feature is None:
            answers = list(guard.entitlements(customer).values())
            if not answers and not guard.reload(customer):
                raise InvalidRequest("customer_id", f"the sidecar knows no {customer}")
        else:
            answers = [guard.check(options.feature, customer=customer, requested_usage=options.requested_usage)]
    print(_as_json(answers) if options.json else _as_table(answers))
    return 0 if all(answers) or options.feature is None else 1


def _as_json(answers: Iterable[Entitlement]) -> str:
    return json.dumps([asdict(answer) for answer in answers], default=str, indent=2)


def _as_table(answers: Sequence[Entitlement]) -> str:
    if not answers:
        return "nothing: there is no active subscription"
    width = max(len(answer.feature_id) for answer in answers)
    return "\n".join(
        f"{answer.feature_id:{width}}  {'yes' if answer else 'no ':3}  "
        f"{usage_text(answer) if answer else answer.explanation}"
        for answer in answers
    )


if __name__ == "__main__":
    sys.exit(main())
