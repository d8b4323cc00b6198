//! Devices below the protocols: offloads, frames as they are on the wire, frames that no stack would send.

use crate::{Frame, Network};
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use std::{
    mem::zeroed,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::from_mut,
};

/// Whether a device may leave checksums to its hardware (linux/ethtool.h); for veth, to whoever comes next.
pub fn set_transmit_offload(network: &Network, device: &str, on: bool) -> Result<()> {
    const SET_TX_CHECKSUM: u32 = 0x17;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value { command: SET_TX_CHECKSUM, data: on.into() };
    let socket = network.within(|| std::net::UdpSocket::bind("127.0.0.1:0"))?;
    // SAFETY: plain data, all zero is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = from_mut(&mut value).cast();
    // SAFETY: the request names a device and points to a value that lives for the call.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, from_mut(&mut request)) };
    Errno::result(code).map(drop).with_context(|| format!("change the offloads of {device}"))
}

fn packet_socket(network: &Network, protocol: i32) -> Result<OwnedFd> {
    // SAFETY: plain arguments; the descriptor is ours.
    network.within(|| unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        Ok(OwnedFd::from_raw_fd(Errno::result(fd)?))
    })
}

/// Sends a frame out of a device as it is.
pub fn inject(network: &Network, device: &str, frame: &Frame) -> Result<()> {
    let socket = packet_socket(network, 0)?;
    // SAFETY: plain data, all zero is valid.
    let mut to: libc::sockaddr_ll = unsafe { zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = network.index(device)? as i32;
    // SAFETY: frame and address live for the call and have the sizes given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.0.as_ptr().cast(),
            frame.0.len(),
            0,
            from_mut(&mut to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    Errno::result(sent).context("send a frame")?;
    Ok(())
}

/// What arrives at any device of a namespace.
pub struct Sniffer(OwnedFd);

/// A frame, and whether its checksum was still to be filled in.
pub struct Caught {
    pub frame: Frame,
    pub partial: bool,
}

impl Sniffer {
    pub fn open(network: &Network, ethertype: u16) -> Result<Self> {
        let socket = packet_socket(network, i32::from(ethertype.to_be()))?;
        for (level, name, value) in
            [(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1), (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)]
        {
            let value: libc::c_int = value;
            // SAFETY: the value is an int and its size says so.
            let code = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    level,
                    name,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as u32,
                )
            };
            Errno::result(code)?;
        }
        Ok(Self(socket))
    }

    /// Everything since it was opened.
    pub fn caught(&self) -> Result<Vec<Caught>> {
        let mut all = Vec::new();
        while let Some(caught) = self.next()? {
            all.push(caught);
        }
        Ok(all)
    }

    fn next(&self) -> Result<Option<Caught>> {
        const CHECKSUM_NOT_READY: u32 = 8;
        let mut bytes = vec![0u8; 70_000];
        let mut control = [0u64; 8];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: plain data, all zero is valid; what it is then pointed to lives until the end of this function.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message describes buffers of ours.
        let length = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
        match Errno::result(length) {
            Err(Errno::EAGAIN) => return Ok(None),
            other => other.context("receive a frame")?,
        };
        bytes.truncate(length as usize);
        // SAFETY: the kernel has filled the control buffer with whole messages; auxiliary data begins with its status.
        let status = unsafe {
            let head = libc::CMSG_FIRSTHDR(&message);
            if head.is_null() { 0 } else { libc::CMSG_DATA(head).cast::<u32>().read_unaligned() }
        };
        Ok(Some(Caught { frame: Frame(bytes), partial: status & CHECKSUM_NOT_READY != 0 }))
    }

    /// All IPv4 packets caught have checksums that hold, none of them yet to be filled in if `complete`. At least one
    /// must have been caught.
    pub fn check_checksums(&self, name: &str, complete: bool) -> Result<()> {
        let caught = self.caught()?;
        ensure!(!caught.is_empty(), "{name}: nothing was caught");
        for Caught { frame, partial } in caught {
            ensure!(!(partial && complete), "{name}: a checksum was left to somebody else");
            if !partial && !frame.is_fragment() {
                frame.check_checksums(name);
            }
        }
        Ok(())
    }
}
