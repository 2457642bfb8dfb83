"""The ledger in the site's own database: ``"stigg_guard.django.ledger"`` in ``INSTALLED_APPS``, then ``migrate``.

Usage then commits and rolls back with the data that it pays for.
"""
