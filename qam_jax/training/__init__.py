"""Loops that join agents, data and environments."""
