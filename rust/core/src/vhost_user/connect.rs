//! Connecting to a socket that may not be there yet.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    fs::{FileType, stat},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};

use super::{FrontendError, wait::Patience, wait::Waited};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Connects; while the socket does not exist, nobody listens on it, or its queue is full, tries again until
/// the timeout. (rust-vmm's daemons make their socket anew for each connection, and leave a window in which
/// it does not exist.)
pub(super) fn connect_with_retry(path: &Path, patience: &Patience) -> Result<OwnedFd, FrontendError> {
    let failed = |errno| FrontendError::Connect { path: path.into(), errno, timeout: patience.timeout };
    let address = SocketAddrUnix::new(path).map_err(failed)?;
    let deadline = patience.deadline();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        let errno = match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            Err(Errno::CONNREFUSED) if is_something_else(path) => {
                return Err(FrontendError::NoSocket(path.into()));
            }
            Err(errno @ (Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)) => errno,
            Err(errno) => return Err(failed(errno)),
        };
        match patience.pause(PAUSE, deadline) {
            Ok(()) => {}
            Err(Waited::Interrupted) => {
                return Err(FrontendError::Interrupted(format!("{} to appear", path.display())));
            }
            Err(Waited::TimedOut) => return Err(failed(errno)),
            Err(Waited::Failed(errno)) => return Err(failed(errno)),
        }
    }
}

/// A file, a directory: connecting to one is refused as it is for a socket on which nobody listens.
fn is_something_else(path: &Path) -> bool {
    stat(path).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) != FileType::Socket)
}
