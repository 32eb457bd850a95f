"""What a release goes through before anybody can install it: see `tools.release_check`."""
