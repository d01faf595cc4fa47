//! Carries what arrives at listening sockets across to a container.
//!
//! One thread waits for all listening sockets and carries datagrams; each connection has a thread of its own, as a
//! monitor's other clients have. All of them also wait for the end of a pipe that nobody writes to: closing it ends them
//! at once, so that the ports are free when the container is said to have ended.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

/// How long a container may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// After so long without a datagram the other side is forgotten; docker's number.
const IDLE: Duration = Duration::from_secs(90);
/// How many askers of one port are remembered: the oldest gives way.
const FLOWS: usize = 1024;
const STACK: usize = 256 * 1024;
const BUFFER: usize = 64 * 1024;

/// A listening socket, not waiting for anything, and where it leads.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener, SocketAddr),
    Udp(UdpSocket, SocketAddr),
}

/// The running thread. Dropping it closes every socket.
#[derive(Debug)]
pub(super) struct Proxy {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub(super) fn start(listeners: Vec<Listener>) -> io::Result<Self> {
        let (ended, stop) = pipe_with(PipeFlags::CLOEXEC)?;
        let work = move || Forwarding { listeners, flows: Vec::new(), ended: Arc::new(ended) }.run();
        let thread = thread::Builder::new().name("ports".into()).stack_size(STACK).spawn(work)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Somebody who sends datagrams, with the socket that stands for him on the container's side.
struct Flow {
    listener: usize,
    from: SocketAddr,
    socket: UdpSocket,
    used: Instant,
}

struct Forwarding {
    listeners: Vec<Listener>,
    flows: Vec<Flow>,
    ended: Arc<OwnedFd>,
}

impl Forwarding {
    fn run(mut self) {
        let mut buffer = vec![0; BUFFER];
        loop {
            let wait = if self.flows.is_empty() { None } else { Some(Duration::from_secs(5)) };
            let Ok(ready) = self.ready(wait) else { return };
            if ready[0] {
                return;
            }
            let (listening, flowing) = ready[1..].split_at(self.listeners.len());
            for (n, _) in flowing.iter().enumerate().filter(|(_, ready)| **ready) {
                self.answer(n, &mut buffer);
            }
            for (n, _) in listening.iter().enumerate().filter(|(_, ready)| **ready) {
                self.arrived(n, &mut buffer);
            }
            self.flows.retain(|flow| flow.used.elapsed() < IDLE);
        }
    }

    /// Waits; which of the pipe, the listeners and the flows have something.
    fn ready(&self, wait: Option<Duration>) -> io::Result<Vec<bool>> {
        let listeners = self.listeners.iter().map(|listener| match listener {
            Listener::Tcp(socket, _) => socket.as_fd(),
            Listener::Udp(socket, _) => socket.as_fd(),
        });
        let fds =
            [(*self.ended).as_fd()].into_iter().chain(listeners).chain(self.flows.iter().map(|f| f.socket.as_fd()));
        let mut polled: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        wait_for(&mut polled, wait)?;
        Ok(polled.iter().map(|p| !p.revents().is_empty()).collect())
    }

    fn arrived(&mut self, listener: usize, buffer: &mut [u8]) {
        match &self.listeners[listener] {
            Listener::Tcp(socket, to) => match socket.accept() {
                Ok((client, _)) => {
                    let (to, ended) = (*to, Arc::clone(&self.ended));
                    let work = move || {
                        let _ = connection(&client, to, (*ended).as_fd());
                    };
                    // Without a thread the connection is refused, by being closed.
                    let _ = thread::Builder::new().name("port".into()).stack_size(STACK).spawn(work);
                }
                // Out of descriptors, most likely: the connection waits, and so do we, for others to end.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(20)),
                Err(_) => {}
            },
            Listener::Udp(socket, to) => {
                if let Ok((length, from)) = socket.recv_from(buffer) {
                    let to = *to;
                    if let Ok(flow) = self.flow(listener, from, to) {
                        flow.used = Instant::now();
                        // Lost when nobody takes it, as datagrams are.
                        let _ = flow.socket.send(&buffer[..length]);
                    }
                }
            }
        }
    }

    fn flow(&mut self, listener: usize, from: SocketAddr, to: SocketAddr) -> io::Result<&mut Flow> {
        let at = match self.flows.iter().position(|f| f.listener == listener && f.from == from) {
            Some(at) => at,
            None => {
                let any: SocketAddr =
                    if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
                let socket = UdpSocket::bind(any)?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                if self.flows.len() >= FLOWS {
                    let oldest = self.flows.iter().enumerate().min_by_key(|(_, f)| f.used).map_or(0, |(n, _)| n);
                    self.flows.swap_remove(oldest);
                }
                self.flows.push(Flow { listener, from, socket, used: Instant::now() });
                self.flows.len() - 1
            }
        };
        Ok(&mut self.flows[at])
    }

    /// Brings one answer back.
    fn answer(&mut self, n: usize, buffer: &mut [u8]) {
        let flow = &mut self.flows[n];
        if let Ok(length) = flow.socket.recv(buffer)
            && let Listener::Udp(socket, _) = &self.listeners[flow.listener]
        {
            flow.used = Instant::now();
            let _ = socket.send_to(&buffer[..length], flow.from);
        }
    }
}

/// Carries one connection to its end.
fn connection(client: &TcpStream, to: SocketAddr, ended: BorrowedFd<'_>) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&to, CONNECT)?;
    for socket in [client, &server] {
        socket.set_nonblocking(true)?;
        let _ = socket.set_nodelay(true);
    }
    let mut there = Direction::new(client, &server);
    let mut back = Direction::new(&server, client);
    while !(there.finished && back.finished) {
        let wants = |reads: &Direction<'_>, writes: &Direction<'_>| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reads.wants_to_read());
            flags.set(PollFlags::OUT, writes.wants_to_write());
            flags
        };
        let (of_client, of_server) = (wants(&there, &back), wants(&back, &there));
        let mut polled = vec![PollFd::from_borrowed_fd(ended, PollFlags::IN)];
        // A socket that is waited for in neither way would still report its end, again and again.
        polled.extend((!of_client.is_empty()).then(|| PollFd::new(client, of_client)));
        polled.extend((!of_server.is_empty()).then(|| PollFd::new(&server, of_server)));
        wait_for(&mut polled, None)?;
        if !polled[0].revents().is_empty() {
            return Ok(());
        }
        there.carry()?;
        back.carry()?;
    }
    Ok(())
}

/// One half of a connection.
struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    buffer: Box<[u8]>,
    /// What of the buffer is still to be written.
    left: std::ops::Range<usize>,
    /// Nothing more will be read.
    at_end: bool,
    finished: bool,
}

impl<'a> Direction<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream) -> Self {
        Self { from, to, buffer: vec![0; BUFFER].into(), left: 0..0, at_end: false, finished: false }
    }

    fn wants_to_read(&self) -> bool {
        !self.at_end && self.left.is_empty()
    }

    fn wants_to_write(&self) -> bool {
        !self.left.is_empty()
    }

    /// Reads and writes what can be at once.
    fn carry(&mut self) -> io::Result<()> {
        if self.wants_to_read() {
            match { self.from }.read(&mut self.buffer) {
                Ok(0) => self.at_end = true,
                Ok(length) => self.left = 0..length,
                Err(error) if is_not_yet(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if self.wants_to_write() {
            match { self.to }.write(&self.buffer[self.left.clone()]) {
                Ok(length) => self.left.start += length,
                Err(error) if is_not_yet(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if self.at_end && self.left.is_empty() && !self.finished {
            self.finished = true;
            let _ = self.to.shutdown(Shutdown::Write);
        }
        Ok(())
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

pub(super) fn wait_for(polled: &mut [PollFd<'_>], wait: Option<Duration>) -> io::Result<()> {
    let timeout = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
    loop {
        match poll(polled, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.map(|_| ())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address by chance and a proxy to it.
    fn proxied_tcp(server: &TcpListener) -> (Proxy, SocketAddr) {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        socket.set_nonblocking(true).expect("non-blocking");
        let address = socket.local_addr().expect("an address");
        (Proxy::start(vec![Listener::Tcp(socket, server.local_addr().expect("an address"))]).expect("start"), address)
    }

    #[test]
    fn a_connection_is_carried_both_ways_and_each_half_ends_by_itself() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let (_proxy, address) = proxied_tcp(&server);
        let mut client = TcpStream::connect(address).expect("connect");
        let (mut inside, _) = server.accept().expect("accept");
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            inside.read_to_end(&mut got).expect("the end of the question");
            inside.write_all(b"answer").expect("write");
            got
        });
        client.write_all(&sent).expect("write");
        client.shutdown(Shutdown::Write).expect("shutdown");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("read");
        assert_eq!(answer, b"answer");
        assert!(reader.join().expect("the server") == sent);
    }

    #[test]
    fn its_end_closes_connections_and_frees_the_port() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let (proxy, address) = proxied_tcp(&server);
        let mut client = TcpStream::connect(address).expect("connect");
        let (_inside, _) = server.accept().expect("accept");
        drop(proxy);
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
        TcpListener::bind(address).expect("the port again");
    }

    #[test]
    fn nobody_inside_closes_the_connection() {
        let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let (_proxy, address) = proxied_tcp(&gone);
        drop(gone);
        let mut client = TcpStream::connect(address).expect("connect");
        assert_eq!(client.read(&mut [0; 1]).unwrap_or(0), 0);
    }

    #[test]
    fn datagrams_find_back_to_who_asked() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        socket.set_nonblocking(true).expect("non-blocking");
        let address = socket.local_addr().expect("an address");
        let _proxy =
            Proxy::start(vec![Listener::Udp(socket, server.local_addr().expect("an address"))]).expect("start");
        let clients: Vec<UdpSocket> = (0..3)
            .map(|n| {
                let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
                client.connect(address).expect("connect");
                client.send(&[n]).expect("send");
                client
            })
            .collect();
        for _ in &clients {
            let mut buffer = [0; 8];
            let (length, from) = server.recv_from(&mut buffer).expect("receive");
            server.send_to(&[&buffer[..length], b"!"].concat(), from).expect("send");
        }
        for (n, client) in clients.iter().enumerate() {
            let mut buffer = [0; 8];
            let length = client.recv(&mut buffer).expect("receive");
            assert_eq!(&buffer[..length], [n as u8, b'!']);
        }
    }
}
