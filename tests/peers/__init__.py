"""Tests against programs that nobody here wrote: guests, daemons, frontends."""
