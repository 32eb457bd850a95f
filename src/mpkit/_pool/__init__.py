"""TaskPool: its facade, what it runs on, and the engine of processes beneath."""
