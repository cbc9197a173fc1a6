"""The tests: a package, so that every kind of test, and the benchmarks, share tests.support."""
