//! The codec: what is encoded comes back, what is not a message is an error, and neither is ever a panic.

use std::{
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use proptest::{collection::vec, prelude::*};
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use xenvirt_core::vhost_user::{
    BackendRequest, Channel, ConfigSpace, Connection, DeviceStateTransfer, FrontendCode, FrontendRequest,
    Header, Inflight, IotlbMessage, LogArea, MAX_PAYLOAD, MemoryRegion, Outgoing, ProtocolError,
    RegionFormat, Reply, SharedMemoryMap, Side, VringAddress, VringArea, VringFlags, VringState, XenMapFlags,
};

fn file() -> OwnedFd {
    memfd_create("codec", MemfdFlags::CLOEXEC).unwrap()
}

fn a_file() -> impl Strategy<Value = OwnedFd> {
    Just(()).prop_map(|()| file())
}

fn maybe_a_file() -> impl Strategy<Value = Option<OwnedFd>> {
    any::<bool>().prop_map(|some| some.then(file))
}

fn vring_state() -> impl Strategy<Value = VringState> {
    any::<(u32, u32)>().prop_map(|(index, value)| VringState { index, value })
}

fn xen_flags(format: RegionFormat) -> BoxedStrategy<XenMapFlags> {
    match format {
        RegionFormat::Plain => Just(XenMapFlags::empty()).boxed(),
        RegionFormat::Xen => prop_oneof![
            Just(XenMapFlags::empty()),
            Just(XenMapFlags::FOREIGN),
            Just(XenMapFlags::GRANT),
            Just(XenMapFlags::GRANT | XenMapFlags::NO_ADVANCE_MAP)
        ]
        .boxed(),
    }
}

fn region(format: RegionFormat) -> impl Strategy<Value = MemoryRegion> {
    let start = 0..u64::MAX / 2;
    (start.clone(), 1..u64::MAX / 2, start.clone(), start, xen_flags(format), any::<u32>()).prop_map(
        move |(guest_address, size, user_address, mmap_offset, xen_flags, domain)| MemoryRegion {
            guest_address,
            size,
            user_address,
            mmap_offset,
            xen_flags,
            xen_domain: if format == RegionFormat::Xen { domain } else { 0 },
        },
    )
}

fn config() -> impl Strategy<Value = ConfigSpace> {
    (0..u32::MAX - 4096, any::<u32>(), vec(any::<u8>(), 1..300))
        .prop_map(|(offset, flags, data)| ConfigSpace { offset, flags, data })
}

fn inflight() -> impl Strategy<Value = Inflight> {
    any::<(u64, u64, u16, u16)>().prop_map(|(mmap_size, mmap_offset, queues, queue_size)| Inflight {
        mmap_size,
        mmap_offset,
        queues,
        queue_size,
    })
}

fn iotlb() -> impl Strategy<Value = IotlbMessage> {
    any::<(u64, u64, u64, u8, u8)>().prop_map(|(iova, size, user_address, permission, kind)| IotlbMessage {
        iova,
        size,
        user_address,
        permission,
        kind,
    })
}

fn shared_memory_map() -> impl Strategy<Value = SharedMemoryMap> {
    any::<(u8, u64, u64, u64, u64)>().prop_map(|(region, fd_offset, offset, size, flags)| SharedMemoryMap {
        region,
        fd_offset,
        offset,
        size,
        flags,
    })
}

fn vring_address() -> impl Strategy<Value = VringAddress> {
    any::<(u32, bool, [u64; 4])>().prop_map(|(index, log, [descriptors, used, available, address])| {
        VringAddress {
            index,
            flags: if log { VringFlags::LOG } else { VringFlags::empty() },
            descriptors,
            used,
            available,
            log: address,
        }
    })
}

fn format() -> impl Strategy<Value = RegionFormat> {
    prop_oneof![Just(RegionFormat::Plain), Just(RegionFormat::Xen)]
}

/// Any request of that number, with valid contents.
fn request(code: FrontendCode, format: RegionFormat) -> BoxedStrategy<FrontendRequest> {
    use FrontendCode as C;
    use FrontendRequest as R;
    let number = any::<u64>();
    let index = any::<u32>();
    let vring_fd = (any::<u8>(), maybe_a_file());
    match code {
        C::GetFeatures => Just(()).prop_map(|()| R::GetFeatures).boxed(),
        C::SetFeatures => number.prop_map(R::SetFeatures).boxed(),
        C::SetOwner => Just(()).prop_map(|()| R::SetOwner).boxed(),
        C::ResetOwner => Just(()).prop_map(|()| R::ResetOwner).boxed(),
        C::SetMemTable => vec((region(format), a_file()), 0..=32).prop_map(R::SetMemTable).boxed(),
        C::SetLogBase => (any::<(u64, u64)>(), a_file())
            .prop_map(|((size, offset), fd)| R::SetLogBase { log: LogArea { size, offset }, fd })
            .boxed(),
        C::SetLogFd => a_file().prop_map(R::SetLogFd).boxed(),
        C::SetVringNum => vring_state().prop_map(R::SetVringNum).boxed(),
        C::SetVringAddr => vring_address().prop_map(R::SetVringAddr).boxed(),
        C::SetVringBase => vring_state().prop_map(R::SetVringBase).boxed(),
        C::GetVringBase => index.prop_map(|index| R::GetVringBase { index }).boxed(),
        C::SetVringKick => vring_fd.prop_map(|(index, fd)| R::SetVringKick { index, fd }).boxed(),
        C::SetVringCall => vring_fd.prop_map(|(index, fd)| R::SetVringCall { index, fd }).boxed(),
        C::SetVringErr => vring_fd.prop_map(|(index, fd)| R::SetVringErr { index, fd }).boxed(),
        C::GetProtocolFeatures => Just(()).prop_map(|()| R::GetProtocolFeatures).boxed(),
        C::SetProtocolFeatures => number.prop_map(R::SetProtocolFeatures).boxed(),
        C::GetQueueNum => Just(()).prop_map(|()| R::GetQueueNum).boxed(),
        C::SetVringEnable => {
            any::<(u32, bool)>().prop_map(|(index, enable)| R::SetVringEnable { index, enable }).boxed()
        }
        C::SendRarp => number.prop_map(R::SendRarp).boxed(),
        C::NetSetMtu => number.prop_map(R::NetSetMtu).boxed(),
        C::SetBackendReqFd => a_file().prop_map(R::SetBackendReqFd).boxed(),
        C::IotlbMsg => iotlb().prop_map(R::IotlbMsg).boxed(),
        C::SetVringEndian => vring_state().prop_map(R::SetVringEndian).boxed(),
        C::GetConfig => config().prop_map(R::GetConfig).boxed(),
        C::SetConfig => config().prop_map(R::SetConfig).boxed(),
        C::CreateCryptoSession | C::CloseCryptoSession => {
            Just(()).prop_map(move |()| R::Unimplemented(code)).boxed()
        }
        C::PostcopyAdvise => Just(()).prop_map(|()| R::PostcopyAdvise).boxed(),
        C::PostcopyListen => Just(()).prop_map(|()| R::PostcopyListen).boxed(),
        C::PostcopyEnd => Just(()).prop_map(|()| R::PostcopyEnd).boxed(),
        C::GetInflightFd => inflight().prop_map(R::GetInflightFd).boxed(),
        C::SetInflightFd => {
            (inflight(), a_file()).prop_map(|(inflight, fd)| R::SetInflightFd { inflight, fd }).boxed()
        }
        C::GpuSetSocket => a_file().prop_map(R::GpuSetSocket).boxed(),
        C::ResetDevice => Just(()).prop_map(|()| R::ResetDevice).boxed(),
        C::VringKick => index.prop_map(|index| R::VringKick { index }).boxed(),
        C::GetMaxMemSlots => Just(()).prop_map(|()| R::GetMaxMemSlots).boxed(),
        C::AddMemReg => {
            (region(format), a_file()).prop_map(|(region, fd)| R::AddMemReg { region, fd }).boxed()
        }
        C::RemMemReg => region(format).prop_map(R::RemMemReg).boxed(),
        C::SetStatus => any::<u8>().prop_map(R::SetStatus).boxed(),
        C::GetStatus => Just(()).prop_map(|()| R::GetStatus).boxed(),
        C::GetSharedObject => any::<[u8; 16]>().prop_map(R::GetSharedObject).boxed(),
        C::SetDeviceStateFd => (any::<(u32, u32)>(), a_file())
            .prop_map(|((direction, phase), fd)| R::SetDeviceStateFd {
                transfer: DeviceStateTransfer { direction, phase },
                fd,
            })
            .boxed(),
        C::CheckDeviceState => Just(()).prop_map(|()| R::CheckDeviceState).boxed(),
        C::GetShmemConfig => Just(()).prop_map(|()| R::GetShmemConfig).boxed(),
    }
}

fn any_request() -> impl Strategy<Value = (FrontendRequest, RegionFormat)> {
    (proptest::sample::select(FrontendCode::ALL), format())
        .prop_flat_map(|(code, format)| request(code, format).prop_map(move |request| (request, format)))
}

fn any_reply() -> impl Strategy<Value = (FrontendCode, Reply)> {
    use FrontendCode as C;
    let code = |code| move |reply| (code, reply);
    prop_oneof![
        any::<u64>().prop_map(Reply::Number).prop_map(code(C::GetFeatures)),
        any::<u64>().prop_map(Reply::Number).prop_map(code(C::SetVringNum)),
        vring_state().prop_map(Reply::VringBase).prop_map(code(C::GetVringBase)),
        config().prop_map(Reply::Config).prop_map(code(C::GetConfig)),
        (inflight(), maybe_a_file())
            .prop_map(|(inflight, fd)| Reply::Inflight { inflight, fd })
            .prop_map(code(C::GetInflightFd)),
        maybe_a_file().prop_map(Reply::Userfault).prop_map(code(C::PostcopyAdvise)),
        (0..=0xffu64, maybe_a_file())
            .prop_map(|(value, fd)| Reply::NumberAndFile { value, fd })
            .prop_map(code(C::SetDeviceStateFd)),
        vec(any::<u64>(), 256).prop_map(Reply::SharedMemory).prop_map(code(C::GetShmemConfig)),
    ]
}

fn any_backend_request() -> impl Strategy<Value = BackendRequest> {
    use BackendRequest as B;
    prop_oneof![
        iotlb().prop_map(B::IotlbMsg),
        Just(()).prop_map(|()| B::ConfigChange),
        (any::<(u8, u64, u64)>(), maybe_a_file()).prop_map(|((index, size, offset), fd)| {
            B::VringHostNotifier { area: VringArea { index, size, offset }, fd }
        }),
        any::<u32>().prop_map(|index| B::VringCall { index }),
        any::<u32>().prop_map(|index| B::VringErr { index }),
        any::<[u8; 16]>().prop_map(B::SharedObjectAdd),
        any::<[u8; 16]>().prop_map(B::SharedObjectRemove),
        any::<[u8; 16]>().prop_map(B::SharedObjectLookup),
        (shared_memory_map(), a_file()).prop_map(|(map, fd)| B::ShmemMap { map, fd }),
        shared_memory_map().prop_map(B::ShmemUnmap),
        (11u32..).prop_map(B::Unknown),
    ]
}

/// A value in words, its files by what they are and not by their numbers.
fn words(value: &impl std::fmt::Debug, outgoing: &Outgoing<'_>) -> String {
    let text = format!("{value:?}");
    let mut parts = text.split("fd: ");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()));
    let files = outgoing.fds.iter().map(|fd| fstat(fd).unwrap().st_ino.to_string()).collect::<Vec<_>>();
    rest.fold(first, |text, part| text + "fd: " + part) + " " + &files.join(" ")
}

fn owned(outgoing: &Outgoing<'_>) -> Vec<OwnedFd> {
    outgoing.fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect()
}

fn size_is_fixed(request: &FrontendRequest) -> bool {
    use FrontendRequest as R;
    !matches!(request, R::Unimplemented(_) | R::SetLogFd(_) | R::GetInflightFd(_) | R::SetInflightFd { .. })
}

proptest! {
    #[test]
    fn a_request_comes_back_from_its_bytes((request, format) in any_request()) {
        let outgoing = request.encode(format);
        prop_assert!(outgoing.payload.len() <= MAX_PAYLOAD);
        let back =
            FrontendRequest::decode(outgoing.number, &outgoing.payload, owned(&outgoing), format).unwrap();
        prop_assert_eq!(words(&back, &back.encode(format)), words(&request, &outgoing));
        prop_assert_eq!(back.to_string(), request.to_string());
    }

    #[test]
    fn a_reply_comes_back_from_its_bytes((code, reply) in any_reply()) {
        let outgoing = reply.encode(code.number());
        prop_assert!(outgoing.payload.len() <= MAX_PAYLOAD);
        let back = Reply::decode(code, &outgoing.payload, owned(&outgoing)).unwrap();
        prop_assert_eq!(words(&back, &back.encode(code.number())), words(&reply, &outgoing));
    }

    #[test]
    fn a_request_of_the_backend_comes_back_from_its_bytes(request in any_backend_request()) {
        let outgoing = request.encode();
        let back = BackendRequest::decode(outgoing.number, &outgoing.payload, owned(&outgoing)).unwrap();
        prop_assert_eq!(words(&back, &back.encode()), words(&request, &outgoing));
    }

    #[test]
    fn a_payload_of_another_length_is_refused_by_name((request, format) in any_request(), cut in any::<usize>()) {
        prop_assume!(size_is_fixed(&request));
        let outgoing = request.encode(format);
        let longer = [&outgoing.payload[..], &[0]].concat();
        let mut wrong = vec![longer];
        if !outgoing.payload.is_empty() {
            wrong.push(outgoing.payload[..cut % outgoing.payload.len()].to_vec());
        }
        for payload in wrong {
            let result = FrontendRequest::decode(outgoing.number, &payload, owned(&outgoing), format);
            match (&request, result) {
                // User-Mode Linux sends more than the number of regions needs.
                (FrontendRequest::SetMemTable(_), Ok(_)) => prop_assert!(payload.len() > outgoing.payload.len()),
                (FrontendRequest::GetConfig(_), Ok(_)) => prop_assert_eq!(payload.len(), 12),
                (_, Err(error)) => {
                    let is_size = matches!(error, ProtocolError::Size { .. });
                    prop_assert!(is_size && error.to_string().starts_with(&request.name().to_string()), "{}", error);
                }
                (_, Ok(other)) => prop_assert!(false, "{} bytes were taken for {}", payload.len(), other),
            }
        }
    }

    #[test]
    fn a_file_too_many_or_too_few_is_refused_by_name((request, format) in any_request()) {
        prop_assume!(!matches!(request, FrontendRequest::Unimplemented(_)));
        let outgoing = request.encode(format);
        let mut more = owned(&outgoing);
        more.push(file());
        let mut fewer = owned(&outgoing);
        let mut wrong = vec![more];
        if fewer.pop().is_some() {
            wrong.push(fewer);
        }
        for fds in wrong {
            let result = FrontendRequest::decode(outgoing.number, &outgoing.payload, fds, format);
            match (&request, result) {
                (FrontendRequest::RemMemReg(_), Ok(_)) => {}
                (_, Err(error)) => {
                    let is_fds = matches!(error, ProtocolError::Fds { .. });
                    prop_assert!(is_fds && error.to_string().starts_with(&request.name().to_string()), "{}", error);
                }
                (_, Ok(other)) => prop_assert!(false, "taken for {}", other),
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_and_what_they_mean_they_mean_again(
        number in 0u32..60,
        mut payload in vec(any::<u8>(), 0..100),
        small in any::<bool>(),
        files in 0usize..4,
        format in format(),
    ) {
        if small {
            // Mostly zeroes: more of these pass the first checks.
            payload.iter_mut().enumerate().filter(|(i, _)| i % 4 != 0).for_each(|(_, byte)| *byte = 0);
        }
        let fds = || (0..files).map(|_| file()).collect::<Vec<_>>();
        if let Ok(request) = FrontendRequest::decode(number, &payload, fds(), format) {
            prop_assert_eq!(request.number(), number);
            let outgoing = request.encode(format);
            let again = FrontendRequest::decode(number, &outgoing.payload, owned(&outgoing), format).unwrap();
            prop_assert_eq!(words(&again, &again.encode(format)), words(&request, &outgoing));
        }
        if let Some(code) = FrontendCode::from_number(number) {
            let _ = Reply::decode(code, &payload, fds());
        }
        let _ = BackendRequest::decode(number, &payload, fds());
    }

    #[test]
    fn a_stream_of_messages_is_the_same_however_it_is_cut(
        messages in vec((1u32..50, vec(any::<u8>(), 0..200)), 1..6),
        cuts in vec(1usize..40, 1..20),
    ) {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours.into(), Side::Backend, Channel::Main);
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|(number, payload)| {
                let header = Header::request(*number, payload.len() as u32, false);
                [&header.to_bytes()[..], payload].concat()
            })
            .collect();
        let (mut rest, mut came) = (&stream[..], Vec::new());
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            peer.write_all(now).unwrap();
            while let Some(message) = connection.receive().unwrap() {
                came.push((message.header.request, message.payload));
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(came, messages);
    }

    #[test]
    fn a_stream_of_random_bytes_ends_in_an_error_or_waits(bytes in vec(any::<u8>(), 0..500), seemly in any::<bool>()) {
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(ours.into(), Side::Backend, Channel::Main);
        if seemly {
            peer.write_all(&Header::request(5, (bytes.len() / 2) as u32, true).to_bytes()).unwrap();
        }
        peer.write_all(&bytes).unwrap();
        drop(peer);
        // Every message takes 12 bytes at least.
        let outcome = (0..bytes.len() / 12 + 3).find_map(|_| connection.receive().err());
        prop_assert!(outcome.is_some());
    }
}

#[test]
fn a_table_of_user_mode_linux_is_taken() {
    // num_regions 1, and room for two regions all the same: 72 bytes.
    let mut payload = vec![0; 72];
    payload[0] = 1;
    payload[16..24].copy_from_slice(&0x10_0000u64.to_ne_bytes());
    let request = FrontendRequest::decode(5, &payload, vec![file()], RegionFormat::Plain).unwrap();
    assert!(
        matches!(&request, FrontendRequest::SetMemTable(regions) if regions.len() == 1 && regions[0].0.size == 0x10_0000)
    );
}

#[test]
fn regions_are_32_or_40_bytes_by_negotiation() {
    let region = MemoryRegion { guest_address: 1, size: 2, user_address: 3, ..MemoryRegion::default() };
    let request = FrontendRequest::SetMemTable(vec![(region, file())]);
    assert_eq!(request.encode(RegionFormat::Plain).payload.len(), 8 + 32);
    assert_eq!(request.encode(RegionFormat::Xen).payload.len(), 8 + 40);
    let single = FrontendRequest::AddMemReg { region, fd: file() };
    assert_eq!(single.encode(RegionFormat::Plain).payload.len(), 8 + 32);
    let outgoing = single.encode(RegionFormat::Xen);
    assert_eq!(outgoing.payload.len(), 8 + 40);
    let error =
        FrontendRequest::decode(37, &outgoing.payload, owned(&outgoing), RegionFormat::Plain).unwrap_err();
    assert_eq!(error.to_string(), "ADD_MEM_REG: payload of 48 bytes, must be 40");
}

#[test]
fn both_readings_of_no_advance_map_are_taken_and_one_is_sent() {
    let mut payload = vec![0; 48];
    payload[16..24].copy_from_slice(&0x1000u64.to_ne_bytes());
    for bits in [0xau32, 0x102] {
        payload[40..44].copy_from_slice(&bits.to_ne_bytes());
        let request = FrontendRequest::decode(37, &payload, vec![file()], RegionFormat::Xen).unwrap();
        assert_eq!(request.encode(RegionFormat::Xen).payload[40..44], 0xau32.to_ne_bytes());
    }
    for bits in [3u32, 8, 9, 4, 0x80] {
        payload[40..44].copy_from_slice(&bits.to_ne_bytes());
        let error = FrontendRequest::decode(37, &payload, vec![file()], RegionFormat::Xen).unwrap_err();
        assert!(error.to_string().contains("Xen mapping flags"), "{error}");
    }
}

#[test]
fn a_region_that_is_empty_or_wraps_is_refused() {
    for (guest, size, user, words) in [
        (0, 0, 0, "region size 0x0, must be more than 0"),
        (u64::MAX, 1, 0, "guest address 0xffffffffffffffff"),
        (0, 2, u64::MAX, "user address"),
    ] {
        let region =
            MemoryRegion { guest_address: guest, size, user_address: user, ..MemoryRegion::default() };
        let request = FrontendRequest::AddMemReg { region, fd: file() };
        let outgoing = request.encode(RegionFormat::Plain);
        let error = FrontendRequest::decode(37, &outgoing.payload, owned(&outgoing), RegionFormat::Plain)
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn refused_files_are_closed() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    FrontendRequest::decode(1, &[], vec![writer], RegionFormat::Plain).unwrap_err();
    // The end of the pipe comes only when nobody holds the writing end any more.
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_request_that_nobody_knows_and_one_that_nobody_implements_are_told_apart() {
    let decode =
        |number| FrontendRequest::decode(number, b"whatever", vec![file()], RegionFormat::Plain).unwrap();
    assert!(matches!(decode(45), FrontendRequest::Unknown(45)));
    assert!(matches!(decode(26), FrontendRequest::Unimplemented(FrontendCode::CreateCryptoSession)));
    assert_eq!(ProtocolError::unsupported(&decode(45)).to_string(), "request 45 is not supported here");
}

#[test]
fn the_vring_index_carries_whether_a_file_comes_with_it() {
    let decode =
        |value: u64, fds| FrontendRequest::decode(12, &value.to_ne_bytes(), fds, RegionFormat::Plain);
    assert!(matches!(decode(7, vec![file()]), Ok(FrontendRequest::SetVringKick { index: 7, fd: Some(_) })));
    assert!(matches!(decode(0x107, vec![]), Ok(FrontendRequest::SetVringKick { index: 7, fd: None })));
    for (value, fds, words) in [
        (7, vec![], "0 file descriptors, must be 1 (bit 8"),
        (0x107, vec![file()], "1 file descriptors, must be 0 (bit 8"),
        (0x207, vec![file()], "index and flags 0x207"),
    ] {
        let error = decode(value, fds).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn inflight_is_taken_in_both_of_its_lengths() {
    let request = FrontendRequest::SetInflightFd {
        inflight: Inflight { mmap_size: 1, mmap_offset: 2, queues: 3, queue_size: 4 },
        fd: file(),
    };
    let outgoing = request.encode(RegionFormat::Plain);
    assert_eq!(outgoing.payload.len(), 24);
    let short =
        FrontendRequest::decode(32, &outgoing.payload[..20], owned(&outgoing), RegionFormat::Plain).unwrap();
    assert_eq!(short.encode(RegionFormat::Plain).payload, outgoing.payload);
}

#[test]
fn a_refused_config_is_a_reply_without_data() {
    for payload in [&[][..], &[0; 12]] {
        let reply = Reply::decode(FrontendCode::GetConfig, payload, vec![]).unwrap();
        assert!(matches!(&reply, Reply::Config(config) if config.data.is_empty()));
        assert_eq!(reply.to_string(), "refused (no bytes)");
    }
}

#[test]
fn an_open_file_is_not_needed_to_describe_a_message() {
    let null = File::open("/dev/null").unwrap();
    let request =
        FrontendRequest::SetVringErr { index: 1, fd: Some(null.as_fd().try_clone_to_owned().unwrap()) };
    assert_eq!(request.to_string(), "SET_VRING_ERR queue 1: a file");
}
