//! The numbers of the requests, and their names.

use std::fmt;

/// Which of the two channels of a connection a message belongs to. Both count their requests from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The main socket: requests by the frontend, replies by the backend.
    Main,
    /// The reverse channel of SET_BACKEND_REQ_FD: requests by the backend, replies by the frontend.
    Reverse,
}

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name {
            $(
                #[doc = concat!("`", $text, "`, ", $value, ".")]
                $variant = $value,
            )*
        }

        impl $name {
            /// Every request that has a number, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The request of that number; None for a number that nobody has given out.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The specification's name, without its prefix.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

codes! {
    /// Requests of the frontend (vhost-user, "Front-end message types").
    FrontendCode {
        GetFeatures = 1, "GET_FEATURES";
        SetFeatures = 2, "SET_FEATURES";
        SetOwner = 3, "SET_OWNER";
        ResetOwner = 4, "RESET_OWNER";
        SetMemTable = 5, "SET_MEM_TABLE";
        SetLogBase = 6, "SET_LOG_BASE";
        SetLogFd = 7, "SET_LOG_FD";
        SetVringNum = 8, "SET_VRING_NUM";
        SetVringAddr = 9, "SET_VRING_ADDR";
        SetVringBase = 10, "SET_VRING_BASE";
        GetVringBase = 11, "GET_VRING_BASE";
        SetVringKick = 12, "SET_VRING_KICK";
        SetVringCall = 13, "SET_VRING_CALL";
        SetVringErr = 14, "SET_VRING_ERR";
        GetProtocolFeatures = 15, "GET_PROTOCOL_FEATURES";
        SetProtocolFeatures = 16, "SET_PROTOCOL_FEATURES";
        GetQueueNum = 17, "GET_QUEUE_NUM";
        SetVringEnable = 18, "SET_VRING_ENABLE";
        SendRarp = 19, "SEND_RARP";
        NetSetMtu = 20, "NET_SET_MTU";
        SetBackendReqFd = 21, "SET_BACKEND_REQ_FD";
        IotlbMsg = 22, "IOTLB_MSG";
        SetVringEndian = 23, "SET_VRING_ENDIAN";
        GetConfig = 24, "GET_CONFIG";
        SetConfig = 25, "SET_CONFIG";
        CreateCryptoSession = 26, "CREATE_CRYPTO_SESSION";
        CloseCryptoSession = 27, "CLOSE_CRYPTO_SESSION";
        PostcopyAdvise = 28, "POSTCOPY_ADVISE";
        PostcopyListen = 29, "POSTCOPY_LISTEN";
        PostcopyEnd = 30, "POSTCOPY_END";
        GetInflightFd = 31, "GET_INFLIGHT_FD";
        SetInflightFd = 32, "SET_INFLIGHT_FD";
        GpuSetSocket = 33, "GPU_SET_SOCKET";
        ResetDevice = 34, "RESET_DEVICE";
        VringKick = 35, "VRING_KICK";
        GetMaxMemSlots = 36, "GET_MAX_MEM_SLOTS";
        AddMemReg = 37, "ADD_MEM_REG";
        RemMemReg = 38, "REM_MEM_REG";
        SetStatus = 39, "SET_STATUS";
        GetStatus = 40, "GET_STATUS";
        GetSharedObject = 41, "GET_SHARED_OBJECT";
        SetDeviceStateFd = 42, "SET_DEVICE_STATE_FD";
        CheckDeviceState = 43, "CHECK_DEVICE_STATE";
        GetShmemConfig = 44, "GET_SHMEM_CONFIG";
    }
}

impl FrontendCode {
    /// True if the backend answers this request with a reply of its own, whether or not an
    /// acknowledgement was asked for. (SET_LOG_BASE does where LOG_SHMFD is on, which is the only way in
    /// which it is sent today; SET_MEM_TABLE during postcopy is not counted here.)
    pub const fn has_reply(self) -> bool {
        use FrontendCode as C;
        matches!(
            self,
            C::GetFeatures
                | C::SetLogBase
                | C::GetVringBase
                | C::GetProtocolFeatures
                | C::GetQueueNum
                | C::IotlbMsg
                | C::GetConfig
                | C::CreateCryptoSession
                | C::PostcopyAdvise
                | C::PostcopyEnd
                | C::GetInflightFd
                | C::GetMaxMemSlots
                | C::GetStatus
                | C::GetSharedObject
                | C::SetDeviceStateFd
                | C::CheckDeviceState
                | C::GetShmemConfig
        )
    }
}

codes! {
    /// Requests of the backend, on the reverse channel (vhost-user, "Back-end message types").
    BackendCode {
        IotlbMsg = 1, "BACKEND_IOTLB_MSG";
        ConfigChange = 2, "BACKEND_CONFIG_CHANGE_MSG";
        VringHostNotifier = 3, "BACKEND_VRING_HOST_NOTIFIER_MSG";
        VringCall = 4, "BACKEND_VRING_CALL";
        VringErr = 5, "BACKEND_VRING_ERR";
        SharedObjectAdd = 6, "BACKEND_SHARED_OBJECT_ADD";
        SharedObjectRemove = 7, "BACKEND_SHARED_OBJECT_REMOVE";
        SharedObjectLookup = 8, "BACKEND_SHARED_OBJECT_LOOKUP";
        ShmemMap = 9, "BACKEND_SHMEM_MAP";
        ShmemUnmap = 10, "BACKEND_SHMEM_UNMAP";
    }
}

/// The number of a request, together with its channel: prints as its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestName {
    /// The channel whose numbering is meant.
    pub channel: Channel,
    /// The number on the wire.
    pub number: u32,
}

impl From<FrontendCode> for RequestName {
    fn from(code: FrontendCode) -> Self {
        Self { channel: Channel::Main, number: code.number() }
    }
}

impl From<BackendCode> for RequestName {
    fn from(code: BackendCode) -> Self {
        Self { channel: Channel::Reverse, number: code.number() }
    }
}

impl fmt::Display for RequestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.channel {
            Channel::Main => FrontendCode::from_number(self.number).map(FrontendCode::name),
            Channel::Reverse => BackendCode::from_number(self.number).map(BackendCode::name),
        };
        match name {
            Some(name) => f.write_str(name),
            None => write!(f, "request {}", self.number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_consecutive_and_names_are_found_by_number() {
        for (index, &code) in FrontendCode::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index + 1);
            assert_eq!(FrontendCode::from_number(code.number()), Some(code));
        }
        for (index, &code) in BackendCode::ALL.iter().enumerate() {
            assert_eq!(code.number() as usize, index + 1);
            assert_eq!(BackendCode::from_number(code.number()), Some(code));
        }
        assert_eq!((FrontendCode::ALL.len(), BackendCode::ALL.len()), (44, 10));
        assert_eq!((FrontendCode::from_number(0), FrontendCode::from_number(45)), (None, None));
    }

    #[test]
    fn a_name_prints_in_words_and_an_unknown_number_as_a_number() {
        assert_eq!(RequestName::from(FrontendCode::SetVringNum).to_string(), "SET_VRING_NUM");
        assert_eq!(RequestName { channel: Channel::Main, number: 99 }.to_string(), "request 99");
        assert_eq!(RequestName::from(BackendCode::VringCall).to_string(), "BACKEND_VRING_CALL");
    }
}
