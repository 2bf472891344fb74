"""Which releases a lab is made of."""

from __future__ import annotations

from dataclasses import dataclass

from xenvirt.errors import LabError

from .packages import Suite


@dataclass(frozen=True)
class Recipe:
    """What a dom0 is made of."""

    name: str
    suite: Suite
    xen: str
    """Xen's version, as the names of its packages have it."""
    python: tuple[int, int]
    glibc: tuple[int, int]
    dom0s: tuple[str, ...]
    """How Xen can run dom0; the first is the default."""
    hypervisor: str | None
    """The package with the hypervisor; None where it is built from the suite's source."""
    transport: str
    """The module that reaches the host's devices."""
    kernels: tuple[str, ...] = ("debian",)
    """Which kernels dom0 can have; the first is the default."""
    device_model: tuple[str, ...] = ()
    """The package with QEMU for HVM guests, where there are such guests."""


X86_64 = Recipe(
    name="x86_64-4.17",
    suite=Suite("bookworm", "amd64"),
    xen="4.17",
    python=(3, 11),
    glibc=(2, 36),
    dom0s=("pv", "pvh"),
    hypervisor="xen-hypervisor-4.17-amd64",
    transport="virtio_pci",
    device_model=("qemu-system-xen",),
)
# Built, because Debian's has no IOREQ servers on Arm. The tools must be of the hypervisor's version, and so
# the whole dom0 is of the suite that its source is from.
AARCH64_TRIXIE = Recipe(
    name="aarch64-4.20",
    suite=Suite("trixie", "arm64"),
    xen="4.20",
    python=(3, 13),
    glibc=(2, 41),
    dom0s=("pvh",),
    hypervisor=None,
    transport="virtio_mmio",
    kernels=("debian", "own"),
)
AARCH64_BOOKWORM = Recipe(
    name="aarch64-4.17",
    suite=Suite("bookworm", "arm64"),
    xen="4.17",
    python=(3, 11),
    glibc=(2, 36),
    dom0s=("pvh",),
    hypervisor=None,
    transport="virtio_mmio",
    kernels=("debian", "own"),
)

RECIPES = {"x86_64": (X86_64,), "aarch64": (AARCH64_TRIXIE, AARCH64_BOOKWORM)}
"""What can be booted on each architecture, the newest first."""


def dom0_of(architecture: str, dom0: str | None) -> str:
    """The kind of dom0 that was asked for, or the default; a LabError where there is no such one."""
    if architecture not in RECIPES:
        raise LabError(f"no lab for {architecture}; there are {', '.join(RECIPES)}")
    there = RECIPES[architecture][0].dom0s
    if dom0 is not None and dom0 not in there:
        raise LabError(f"Xen on {architecture} has no {dom0} dom0, only {', '.join(there)}")
    return dom0 or there[0]


def kernel_of(architecture: str, kernel: str | None) -> str:
    """The kernel that was asked for, or the default; a LabError where there is no such one."""
    there = RECIPES[architecture][0].kernels
    if kernel is not None and kernel not in there:
        raise LabError(f"a dom0 for {architecture} has no {kernel} kernel, only {', '.join(there)}")
    return kernel or there[0]


def recipe_named(name: str) -> Recipe:
    """The recipe of this name."""
    return next(recipe for recipes in RECIPES.values() for recipe in recipes if recipe.name == name)
