"""What runs in the workers of a pool, and what they and their parent say to each other."""
