"""Our hot paths beside the floors under them: ``python -m benchmarks [name...]``. See docs/performance.md."""
