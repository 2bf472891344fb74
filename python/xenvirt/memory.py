"""Guest memory: regions in shared files, and the table of them, through which its addresses are reached.

A device finds its guest's memory at ``session.memory`` and needs nothing of this module; it is for those who
make memory of their own, for a driver or for a test::

    fd = os.memfd_create("guest")
    os.ftruncate(fd, 64 << 20)
    with GuestMemory([FileRegion(fd, guest_address=0, size=64 << 20)]) as memory:
        memory.write(0x1000, b"hello")
        with memory.view(0x1000, 5) as view:
            print(bytes(view))

What holds for every range, an address and a size, in all of these:

- *Crossing*: where one region begins at the end of another, a range may span both for ``read``, ``readinto``
  and ``write``. A ``view`` needs one region.
- *Outside*: a range that begins or ends outside the table, or spans a hole, raises ``GuestAddressError``, and
  not a byte is read or written.
- *Wrapping*: a range does not go on at 0 behind the last address; it ends outside.
- *Empty*: a range of no bytes is allowed at any address.
"""

from xenvirt._native import FileRegion, GuestMemory, MemoryView

__all__ = ["FileRegion", "GuestMemory", "MemoryView"]
