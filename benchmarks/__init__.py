"""Our hot paths beside the floors they stand on: ``python -m benchmarks [name...]``. The method is in docs/performance.md."""
