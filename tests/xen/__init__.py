"""Tests on real Xen, in the lab."""
