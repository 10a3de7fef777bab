"""Algebra on what a pass leaves behind: n × n, in memory, on one core."""
