"""What libxl writes for a guest's virtio devices (Xen 4.17 to 4.20), into any xenstore."""

from __future__ import annotations

from xenvirt.xen.xenstore import Transaction, XenStore

BACKEND = "/local/domain/0/backend"


class Toolstack:
    """Announces devices and takes them away, as libxl_virtio.c, libxl_disk.c and libxl_device.c do."""

    def __init__(self, store: XenStore) -> None:
        self.store = store

    def make_domain(self, domid: int, uuid: str = "uuid-1") -> None:
        self.store.write(f"/local/domain/{domid}/vm", f"/vm/{uuid}")

    def add(self, domid: int, devid: int = 0, /, **changes: str | None) -> str:
        """A device of ``virtio = [...]``; gives its backend's node."""
        return self._announce(
            "virtio",
            domid,
            devid,
            {
                "type": "virtio,device4",
                "base": "0x2000000",
                "irq": "33",
                "transport": "mmio",
                "grant_usage": "0",
            },
            changes,
        )

    def add_disk(self, domid: int, devid: int = 51712, /, **changes: str | None) -> str:
        """A disk with ``specification=virtio``."""
        entries = {
            "params": "/disk.img",
            "removable": "0",
            "bootable": "1",
            "dev": "xvda",
            "type": "standalone",
            "mode": "w",
            "device-type": "disk",
            "discard-enable": "1",
            "specification": "virtio",
            "transport": "mmio",
            "base": "33554432",
            "irq": "33",
        }
        return self._announce("virtio_disk", domid, devid, entries, changes)

    def take_away(self, path: str, *, force: bool = True) -> None:
        """Begins to: libxl waits for state 6 then. By force when a guest is destroyed."""

        def begin(transaction: Transaction) -> None:
            if force:
                transaction.rm(transaction.read(f"{path}/frontend"))
            transaction.write(f"{path}/online", "0")
            if transaction.read(f"{path}/state") != "6":
                transaction.write(f"{path}/state", "5")

        self.store.transact(begin)

    def remove(self, path: str) -> None:
        self.store.rm(path)

    def state(self, path: str) -> int:
        return int(self.store.read(f"{path}/state"))

    def _announce(
        self, kind: str, domid: int, devid: int, entries: dict[str, str], changes: dict[str, str | None]
    ) -> str:
        path = f"{BACKEND}/{kind}/{domid}/{devid}"
        frontend = f"/local/domain/{domid}/device/{kind}/{devid}"
        nodes: dict[str, str | None] = {
            "frontend": frontend,
            "frontend-id": str(domid),
            "online": "1",
            "state": "1",
            **entries,
            **changes,
        }

        with self.store.transaction() as transaction:
            transaction.mkdir(path)
            transaction.rm(path)
            transaction.mkdir(path)
            for name, value in nodes.items():
                if value is not None:
                    transaction.write(f"{path}/{name}", value)
            transaction.write(f"{frontend}/state", "1")
        return path
