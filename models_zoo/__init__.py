"""Architectures to test, report and benchmark on."""
