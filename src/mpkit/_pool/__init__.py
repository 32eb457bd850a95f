"""TaskPool as callers see it: its facade, maps, and what else it can run on."""
