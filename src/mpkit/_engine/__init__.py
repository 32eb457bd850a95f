"""Runs tasks on processes: a supervisor, and what it owns."""
