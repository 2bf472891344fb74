"""The suite, by subject."""
