//! A TCP socket with timeouts.

use std::io::{ErrorKind, IoSlice, Read, Result, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Deref;

use super::scaled_timeout;

/// A connection whose reads and writes fail only after the timeout.
pub struct Socket(TcpStream);

/// Repeats `act` while it is interrupted: a suspended machine interrupts waits with a time limit, without any signal
/// (signal(7)).
pub fn uninterrupted<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match act() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Socket {
    pub fn connect(address: SocketAddr) -> Result<Self> {
        Self::of(TcpStream::connect_timeout(&address, scaled_timeout())?)
    }

    /// Connects from an address of this machine, any of 127.0.0.0/8 for example.
    pub fn connect_from(source: IpAddr, address: SocketAddr) -> Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&address.into(), scaled_timeout())?;
        Self::of(socket.into())
    }

    pub fn of(stream: TcpStream) -> Result<Self> {
        let timeout = scaled_timeout();
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.0
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        uninterrupted(|| self.0.read(buffer))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        uninterrupted(|| self.0.write(bytes))
    }

    /// Writes all parts at once, so that the records of a flight stay together.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> Result<usize> {
        uninterrupted(|| self.0.write_vectored(parts))
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}
