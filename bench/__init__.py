"""Benchmarks of the control plane, run by `script/bench`. What they measure: docs/reference/benchmarks.md."""
