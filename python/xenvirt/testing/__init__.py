"""For users' tests: a simulated Xen; and `dom0`, a plugin of pytest that runs marked tests on real Xen, in
the lab.

The same test runs on both: see :mod:`xenvirt.testing.dom0`.
"""

from xenvirt._native import SimulatedAccess, SimulatedDomain

from .simulated_xen import SimulatedXen

__all__ = ["SimulatedAccess", "SimulatedDomain", "SimulatedXen"]
