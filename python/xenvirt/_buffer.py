"""What "bytes-like" means in xenvirt's signatures. Private; nothing is needed at run time."""

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing_extensions import Buffer

    class _Array(Protocol):
        """NumPy's arrays: they have the buffer protocol, which their stubs say only from Python 3.12 on."""

        @property
        def __array_interface__(self) -> dict[str, Any]: ...

    BytesLike: TypeAlias = Buffer | _Array
    """Anything with the buffer protocol whose bytes lie side by side: bytes, bytearray, memoryview, array,
    ctypes objects, NumPy arrays of any type but object. Its bytes are taken as they lie in memory."""
