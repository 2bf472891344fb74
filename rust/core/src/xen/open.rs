//! Opening the kernel's Xen devices.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

/// A device of the kernel that could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {}", self.reason())]
pub struct OpenError {
    /// The device.
    pub path: &'static str,
    /// What the kernel says.
    pub errno: Errno,
}

impl OpenError {
    /// What the kernel says, and what can be done about it.
    pub fn reason(&self) -> String {
        match self.errno {
            Errno::NOENT => {
                let module = self.path.rsplit('/').next().unwrap_or_default();
                format!(
                    "there is no such device: this is no Xen domain, or xen-{module} is not loaded; `xenvirt probe` says more"
                )
            }
            Errno::ACCESS | Errno::PERM => "permission denied: the device is root's".to_owned(),
            errno => errno.to_string(),
        }
    }
}

/// Opens a device for calls and mappings.
pub(super) fn open_device(path: &'static str, flags: OFlags) -> Result<OwnedFd, OpenError> {
    open(path, OFlags::RDWR | OFlags::CLOEXEC | flags, Mode::empty())
        .map_err(|errno| OpenError { path, errno })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_its_module() {
        let error = open_device("/dev/xen/nothing-of-ours", OFlags::empty()).unwrap_err();
        assert_eq!(error.errno, Errno::NOENT);
        let text = error.to_string();
        assert!(text.starts_with("/dev/xen/nothing-of-ours: there is no such device"), "{text}");
        assert!(text.contains("xen-nothing-of-ours is not loaded"), "{text}");
    }
}
