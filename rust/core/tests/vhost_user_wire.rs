//! Messages over a real socket pair: assembled however the stream is cut, with the descriptors that are theirs.

use std::{
    fs::File,
    io::{IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    cmsg_space,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use xenvirt_core::vhost_user::{
    Channel, Connection, FrontendRequest, Header, MAX_FDS, Message, ProtocolError, RegionFormat, Reply, Side,
    VringState,
};

fn backend() -> (UnixStream, Connection) {
    let (peer, ours) = UnixStream::pair().unwrap();
    (peer, Connection::new(ours.into(), Side::Backend, Channel::Main))
}

fn frontend() -> (UnixStream, Connection) {
    let (peer, ours) = UnixStream::pair().unwrap();
    (peer, Connection::new(ours.into(), Side::Frontend, Channel::Main))
}

fn bytes(header: Header, payload: &[u8]) -> Vec<u8> {
    [&header.to_bytes(), payload].concat()
}

fn write_with_fds(peer: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let sent = sendmsg(peer, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

fn some_file() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn parts(message: Option<Message>) -> Option<(Header, Vec<u8>, usize)> {
    message.map(|message| (message.header, message.payload, message.fds.len()))
}

#[test]
fn a_message_cut_at_every_byte_comes_out_whole_and_only_then() {
    let header = Header::request(8, 8, true);
    let message = bytes(header, &[7; 8]);
    for cut in 1..message.len() {
        let (mut peer, mut connection) = backend();
        peer.write_all(&message[..cut]).unwrap();
        assert!(connection.receive().unwrap().is_none());
        peer.write_all(&message[cut..]).unwrap();
        assert_eq!(parts(connection.receive().unwrap()), Some((header, vec![7; 8], 0)));
        assert!(connection.receive().unwrap().is_none());
    }
}

#[test]
fn messages_sent_in_one_write_come_out_one_by_one() {
    let (mut peer, mut connection) = backend();
    let (first, second) = (Header::request(3, 0, false), Header::request(2, 8, false));
    peer.write_all(&[bytes(first, &[]), bytes(second, &[1; 8])].concat()).unwrap();
    assert_eq!(parts(connection.receive().unwrap()), Some((first, vec![], 0)));
    assert_eq!(parts(connection.receive().unwrap()), Some((second, vec![1; 8], 0)));
    assert!(connection.receive().unwrap().is_none());
}

#[test]
fn descriptors_belong_to_the_message_with_any_of_whose_bytes_they_came() {
    let file = some_file();
    let first = bytes(Header::request(3, 0, false), &[]);
    let second = bytes(Header::request(12, 8, false), &[0; 8]);
    for cut in 0..second.len() {
        let (mut peer, mut connection) = backend();
        peer.write_all(&first).unwrap();
        peer.write_all(&second[..cut]).unwrap();
        write_with_fds(&peer, &second[cut..], &[file.as_fd()]);
        assert!(connection.receive().unwrap().unwrap().fds.is_empty());
        assert_eq!(connection.receive().unwrap().unwrap().fds.len(), 1, "cut at {cut}");
    }
}

#[test]
fn received_descriptors_are_close_on_exec() {
    let (peer, mut connection) = backend();
    write_with_fds(&peer, &bytes(Header::request(21, 0, false), &[]), &[some_file().as_fd()]);
    let message = connection.receive().unwrap().unwrap();
    let flags = rustix::io::fcntl_getfd(&message.fds[0]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn more_descriptors_than_a_message_may_have_end_the_connection() {
    let file = some_file();
    for (first, second) in [(MAX_FDS + 1, 0), (MAX_FDS, 1)] {
        let (peer, mut connection) = backend();
        let message = bytes(Header::request(5, 8, false), &[0; 8]);
        write_with_fds(&peer, &message[..12], &vec![file.as_fd(); first]);
        write_with_fds(&peer, &message[12..], &vec![file.as_fd(); second]);
        let error = connection.receive().unwrap_err();
        assert!(matches!(error, ProtocolError::Fds { .. }), "{error}");
        assert!(error.to_string().starts_with("SET_MEM_TABLE: "), "{error}");
        assert_eq!(connection.receive().unwrap_err(), error);
    }
}

#[test]
fn the_end_between_two_messages_is_told_from_the_end_inside_one() {
    let (mut peer, mut connection) = backend();
    peer.write_all(&bytes(Header::request(3, 0, false), &[])).unwrap();
    drop(peer);
    assert!(connection.receive().unwrap().is_some());
    assert_eq!(connection.receive().unwrap_err(), ProtocolError::Disconnected);

    for (cut, words) in [(5, "5 of 12 bytes of a header"), (16, "16 of 20 bytes of SET_VRING_NUM")] {
        let (mut peer, mut connection) = backend();
        peer.write_all(&bytes(Header::request(8, 8, false), &[0; 8])[..cut]).unwrap();
        drop(peer);
        let error = connection.receive().unwrap_err();
        assert!(error.is_disconnect() && error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_header_that_breaks_a_rule_ends_the_connection_in_words() {
    for (flags, size, words) in [
        (0, 0, "SET_OWNER: header flags 0x0, must have version 1"),
        (2, 0, "must have version 1"),
        (0x11, 0, "no bit set above bit 3"),
        (5, 0, "must not have the reply bit"),
        (1, 4097, "SET_OWNER: payload of 4097 bytes, must be at most 4096"),
        (1, u32::MAX, "must be at most 4096"),
    ] {
        let (mut peer, mut connection) = backend();
        peer.write_all(&bytes(Header { request: 3, flags, size }, &[])).unwrap();
        let error = connection.receive().unwrap_err();
        assert!(error.to_string().contains(words) && !error.is_disconnect(), "{error}");
    }
    let (mut peer, mut connection) = frontend();
    peer.write_all(&bytes(Header::request(1, 8, false), &[0; 8])).unwrap();
    assert!(connection.receive().unwrap_err().to_string().contains("must have the reply bit"));
}

#[test]
fn both_ends_of_ours_understand_each_other() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut backend = Connection::new(ours.into(), Side::Backend, Channel::Main);
    let mut frontend = Connection::new(theirs.into(), Side::Frontend, Channel::Main);
    let request = FrontendRequest::SetVringKick { index: 3, fd: Some(some_file()) };
    frontend.send_request(&request.encode(RegionFormat::Plain), true).unwrap();
    let message = backend.receive().unwrap().unwrap();
    assert!(message.header.needs_reply());
    let got =
        FrontendRequest::decode(message.header.request, &message.payload, message.fds, RegionFormat::Plain)
            .unwrap();
    assert!(matches!(got, FrontendRequest::SetVringKick { index: 3, fd: Some(_) }), "{got:?}");

    backend.send_reply(&Reply::VringBase(VringState { index: 3, value: 9 }).encode(11)).unwrap();
    let message = frontend.receive().unwrap().unwrap();
    let code = xenvirt_core::vhost_user::FrontendCode::GetVringBase;
    let reply = Reply::decode(code, &message.payload, message.fds).unwrap();
    assert!(matches!(reply, Reply::VringBase(VringState { index: 3, value: 9 })), "{reply:?}");
}

#[test]
fn what_a_full_socket_does_not_take_waits_and_keeps_its_descriptors() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, 4096).unwrap();
    let mut backend = Connection::new(ours.into(), Side::Backend, Channel::Main);
    let mut frontend = Connection::new(theirs.into(), Side::Frontend, Channel::Main);
    let file = some_file();
    let mut sent = 0;
    let refused = loop {
        let header = Header::request(12, 4096, false);
        match frontend.send(header, &[sent as u8; 4096], &[file.as_fd()]) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ProtocolError::Backlog { .. }), "{refused}");
    assert!(frontend.wants_write());
    let mut came = 0;
    while came < sent {
        frontend.flush().unwrap();
        while let Some(message) = backend.receive().unwrap() {
            assert_eq!((message.payload, message.fds.len()), (vec![came as u8; 4096], 1));
            came += 1;
        }
    }
    assert!(!frontend.wants_write());
}

#[test]
fn sending_to_a_peer_that_is_gone_is_a_disconnect() {
    let (peer, mut connection) = backend();
    drop(peer);
    assert_eq!(connection.send_reply(&Reply::Number(0).encode(3)).unwrap_err(), ProtocolError::Disconnected);
}
