"""A simulated Xen: one hypervisor with its domains, in this process."""

from __future__ import annotations

from typing import Literal

from xenvirt import _native
from xenvirt.xen.ram import GIB, X86_BELOW_4G, ram_ranges

Kind = Literal["pv", "pvh", "aarch64"]


class SimulatedXen(_native.SimulatedXen):
    """A model of one machine with Xen, for tests on any machine: no Xen, no rights, no guest that boots.

    What :mod:`xenvirt.xen` has takes it as ``hypervisor=``, and then it answers in the kernel's place, as a
    dom0 of this kind was measured to (:mod:`xenvirt.testing.measured`)::

        xen = SimulatedXen("pvh")
        guest = xen.create_domain(memory=16 << 20)
        guest.write(0x1000, b"from the guest")
        with ForeignMemory(hypervisor=xen) as foreign, foreign.map(guest.domid, [1]) as memory:
            assert memory.read(0, 14) == b"from the guest"

    It shows that a program handles what Xen answers; it proves nothing about Xen. What it does not have:

    - guest code, guests that are PV or HVM, and a xenstore: a vCPU accesses what a test lets it access, and a
      :class:`xenvirt.xen.XenGuest` on it needs ``base=``;
    - the end of the process at a bare pointer into a hole on Arm (SIGKILL): there it is SIGBUS, as on PV; a
      hole of a PVH dom0 reads 0xff, but keeps what is written to it. Nobody who goes through xenvirt gets
    there; - flags of mappings that only the kernel sets (VM_IO, VM_PFNMAP, VM_DONTEXPAND), and mappings that
      keep a destroyed domain in the list;
    - eventfds that the kernel takes (irqfd, ioeventfd); descriptors of its devices, but for that of event
      channels; notifications when a process dies; the cost of anything.

    Args:
        kind: what the dom0 is: "pv" or "pvh" on x86, or "aarch64".

    Raises:
        OSError: the kernel of this machine has pages larger than 4 KiB (EOPNOTSUPP).
        ValueError: `kind` is none of these.
    """

    __slots__ = ()

    def create_domain(self, memory: int = 128 << 20, *, vcpus: int = 1) -> _native.SimulatedDomain:
        """Makes a guest, as a toolstack does: PVH, or an Arm one; its memory is zeroes.

        Its RAM is where xl puts it: on x86 from 0 on with a hole below 4 GiB, on Arm in two banks (see
        ``ram``). Two pages are granted to dom0: reference 0 is that of its console, 1 that of its xenstore.
        Memory that is not touched costs nothing.

        Args:
            memory: bytes of RAM, whole pages of 4 KiB.
            vcpus: how many vCPUs, 1 to 128.

        Raises:
            ValueError: `memory` is not of whole pages or there is none; `vcpus` is out of range.
        """
        if memory <= 0 or memory % 4096:
            raise ValueError(f"memory={memory:#x}: whole pages of 4096 bytes are wanted, at least one")
        if self.kind == "aarch64":
            ranges = ram_ranges(memory, "aarch64")
        else:
            low = min(memory, X86_BELOW_4G)
            ranges = (range(low), range(4 * GIB, 4 * GIB + memory - low))
        return self.create([bank for bank in ranges if bank], vcpus)
