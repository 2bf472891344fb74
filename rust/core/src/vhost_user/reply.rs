//! Replies of the backend on the main channel.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::cursor::{Input, Output};
use super::{ConfigSpace, FrontendCode, Inflight, Outgoing, ProtocolError, VringState};

/// GET_SHMEM_CONFIG has room for this many regions, whatever their number.
const SHMEM_REGIONS: usize = 256;

/// Bit of the number that says that no file descriptor comes with it (SET_DEVICE_STATE_FD).
const NO_FD: u64 = 1 << 8;

/// What the backend answers.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reply {
    /// A number: features, counts, the status; and every acknowledgement, where 0 is success.
    Number(u64),
    /// GET_VRING_BASE: where the ring stopped.
    VringBase(VringState),
    /// GET_CONFIG; no data means that the backend refused.
    Config(ConfigSpace),
    /// GET_INFLIGHT_FD; without a file it failed.
    Inflight {
        /// The layout of the area.
        inflight: Inflight,
        /// Its file.
        fd: Option<OwnedFd>,
    },
    /// POSTCOPY_ADVISE: the userfaultfd.
    Userfault(Option<OwnedFd>),
    /// GET_SHARED_OBJECT and SET_DEVICE_STATE_FD: a number, 0 for success in its low byte, and perhaps a file.
    NumberAndFile {
        /// The number, without the no-fd bit.
        value: u64,
        /// The file.
        fd: Option<OwnedFd>,
    },
    /// GET_SHMEM_CONFIG: the sizes of the regions in bytes, by their ids; 0 where there is none.
    SharedMemory(Vec<u64>),
}

impl Reply {
    /// Makes a reply of what came in answer to `request`. A request without a reply of its own has an
    /// acknowledgement.
    pub fn decode(request: FrontendCode, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Self, ProtocolError> {
        use FrontendCode as C;
        let mut input = Input::new(request, payload, fds);
        let one_fd_at_most = |input: &Input<'_>| input.fds(input.fd_count() <= 1, || "0 or 1".into());
        Ok(match request {
            C::GetVringBase => Self::VringBase(input.vring_state()?),
            // rust-vmm refuses with a header alone, libvhost-user with a size of 0.
            C::GetConfig if input.len() == 0 => {
                input.expect(0, 0)?;
                Self::Config(ConfigSpace { offset: 0, flags: 0, data: Vec::new() })
            }
            C::GetConfig => Self::Config(input.config(false)?),
            C::GetInflightFd => {
                one_fd_at_most(&input)?;
                Self::Inflight { inflight: input.inflight()?, fd: input.optional_fd() }
            }
            C::PostcopyAdvise => {
                input.size(matches!(input.len(), 0 | 8), || "0 or 8".into())?;
                one_fd_at_most(&input)?;
                Self::Userfault(input.optional_fd())
            }
            C::GetSharedObject | C::SetDeviceStateFd => {
                input.size(input.len() == 8, || "8".into())?;
                one_fd_at_most(&input)?;
                Self::NumberAndFile { value: input.u64()? & !NO_FD, fd: input.optional_fd() }
            }
            C::GetShmemConfig => {
                let size = 8 + SHMEM_REGIONS * 8;
                input.expect(size, 0)?;
                let _count = input.u64()?;
                Self::SharedMemory((0..SHMEM_REGIONS).map(|_| input.u64()).collect::<Result<_, _>>()?)
            }
            _ => {
                input.expect(8, 0)?;
                Self::Number(input.u64()?)
            }
        })
    }

    /// The payload and the file descriptors of the reply to the request of that number.
    pub fn encode(&self, number: u32) -> Outgoing<'_> {
        let mut out = Output::default();
        let mut fds: Vec<BorrowedFd<'_>> = Vec::new();
        match self {
            Self::Number(value) => out.u64(*value),
            Self::VringBase(state) => out.vring_state(state),
            Self::Config(config) => out.config(config),
            Self::Inflight { inflight, fd } => {
                out.inflight(inflight);
                fds.extend(fd.as_ref().map(AsFd::as_fd));
            }
            Self::Userfault(fd) => fds.extend(fd.as_ref().map(AsFd::as_fd)),
            Self::NumberAndFile { value, fd } => {
                out.u64(if fd.is_some() { *value } else { *value | NO_FD });
                fds.extend(fd.as_ref().map(AsFd::as_fd));
            }
            Self::SharedMemory(sizes) => {
                out.u32(sizes.iter().filter(|&&size| size != 0).count() as u32);
                out.u32(0);
                let sizes = sizes.iter().copied().chain(std::iter::repeat(0));
                sizes.take(SHMEM_REGIONS).for_each(|size| out.u64(size));
            }
        }
        Outgoing { number, payload: out.0, fds }
    }
}
