"""What is to be run, with which options, and the result to come."""
