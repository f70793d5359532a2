"""Aggregation and pictures of runs."""
