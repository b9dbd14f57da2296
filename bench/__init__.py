"""The benchmark: `python -m bench.run` measures pageferry against its peers and writes docs/benchmarks.md."""
