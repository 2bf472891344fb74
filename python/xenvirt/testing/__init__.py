"""For users' tests: `dom0`, a plugin of pytest with which marked tests run on real Xen, in the lab."""
