"""What is known of a pool: figures, a trace, a page."""
