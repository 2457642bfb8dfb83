"""Proofs of docs/reliability.md that take longer than a test: ``python -m faults [name...]``, or ``make faults``."""
