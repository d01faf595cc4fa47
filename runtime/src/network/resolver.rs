//! The name server of a container, at 127.0.0.11 inside its network namespace.
//!
//! The names of neighbours are answered from what [`Names`] knows; everything else is passed on as it came to the servers
//! the host uses, from the host's side, where also a resolver on the host's loopback can be reached. The sockets
//! have ports by chance, to which rules inside the namespace lead from port 53: a server in the container can still have
//! that port itself.
//!
//! Threads, not tasks: a monitor has no runtime, and a question that is passed on waits in a thread of its own, of which
//! there is a fixed number at most.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rustix::event::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use super::nft::{self, Batch, Family, Hook};
use super::proxy::wait_for;
use super::publish::Protocol;
use super::{Error, Namespace};

/// Where containers find their name server; docker's address.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

const PORT: u16 = 53;
/// Seconds that a neighbour's address may be remembered: a container that is started again may have another.
const TIME_TO_LIVE: u32 = 5;
/// How long a server is waited for before the next is asked.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// Questions that wait for other servers, and connections, at a time.
const AT_ONCE: usize = 256;
const LONGEST_DATAGRAM: usize = 512;
const STACK: usize = 256 * 1024;

/// What a container may know of its neighbours.
pub trait Names: Send + Sync {
    /// The addresses of a name (lower case, without a dot at its end), of both families; `None` for a name that no
    /// neighbour has.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;

    /// The name of the neighbour with this address.
    fn name_of(&self, address: IpAddr) -> Option<String>;

    /// The servers that know everything else.
    fn servers(&self) -> Vec<IpAddr>;
}

/// The running server. Dropping it ends it.
pub struct Resolver {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Starts to answer inside the namespace.
    pub fn start(namespace: &Namespace, names: Arc<dyn Names>) -> Result<Self, Error> {
        let failed = |e: io::Error| Error::kernel("start the name server", e);
        let (datagrams, connections) = namespace.inside(listen)?.map_err(failed)?;
        let (ended, stop) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let server = Server {
            datagrams: Arc::new(datagrams),
            connections,
            names,
            busy: Arc::new(AtomicUsize::new(0)),
            ended: Arc::new(ended),
        };
        let thread = thread::Builder::new().name("names".into()).stack_size(STACK).spawn(move || server.run());
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The sockets, of the calling thread's namespace, and the rules that lead to them.
fn listen() -> io::Result<(UdpSocket, TcpListener)> {
    let datagrams = UdpSocket::bind((NAME_SERVER, 0))?;
    let connections = TcpListener::bind((NAME_SERVER, 0))?;
    let ports = [(Protocol::Udp, datagrams.local_addr()?.port()), (Protocol::Tcp, connections.local_addr()?.port())];
    let (datagrams, connections) = match redirect(ports) {
        Ok(()) => (datagrams, connections),
        Err(error) if nft::unsupported(&error) || error.kind() == io::ErrorKind::NotFound => {
            (UdpSocket::bind((NAME_SERVER, PORT))?, TcpListener::bind((NAME_SERVER, PORT))?)
        }
        Err(error) => return Err(error),
    };
    datagrams.set_nonblocking(true)?;
    connections.set_nonblocking(true)?;
    Ok((datagrams, connections))
}

fn redirect(ports: [(Protocol, u16); 2]) -> io::Result<()> {
    let mut socket = nft::open()?;
    let mut batch = Batch::new(Family::Ip4, "rbuild");
    batch.table();
    batch.base_chain("names", "nat", Hook::Output, nft::PRIORITY_DESTINATION_NAT);
    for (protocol, port) in ports {
        batch.rule("names", |rule| {
            rule.destination(NAME_SERVER).port(protocol.number(), PORT).redirect_to(NAME_SERVER, port);
        });
    }
    batch.send(&mut socket)
}

struct Server {
    datagrams: Arc<UdpSocket>,
    connections: TcpListener,
    names: Arc<dyn Names>,
    busy: Arc<AtomicUsize>,
    ended: Arc<OwnedFd>,
}

impl Server {
    fn run(&self) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let fds = [(*self.ended).as_fd(), self.datagrams.as_fd(), self.connections.as_fd()];
            let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            if wait_for(&mut polled, None).is_err() || !polled[0].revents().is_empty() {
                return;
            }
            let ready = [!polled[1].revents().is_empty(), !polled[2].revents().is_empty()];
            if ready[0]
                && let Ok((length, from)) = self.datagrams.recv_from(&mut buffer)
            {
                self.datagram(&buffer[..length], from);
            }
            if ready[1]
                && let Ok((stream, _)) = self.connections.accept()
            {
                let (names, ended) = (Arc::clone(&self.names), Arc::clone(&self.ended));
                self.apart(move || {
                    let _ = conversation(stream, &*names, (*ended).as_fd());
                });
            }
        }
    }

    fn datagram(&self, bytes: &[u8], from: SocketAddr) {
        let Some(question) = Question::read(bytes) else { return };
        let limit = question.limit();
        if let Some(answer) = question.answer(&*self.names) {
            // What cannot be sent is lost, as datagrams are.
            let _ = self.datagrams.send_to(&fitting(answer, limit), from);
            return;
        }
        let (names, socket, bytes) = (Arc::clone(&self.names), Arc::clone(&self.datagrams), bytes.to_vec());
        self.apart(move || {
            let ask = |server| ask_datagram(&bytes, server);
            let _ = socket.send_to(&passed_on(&question, &names.servers(), ask), from);
        });
    }

    /// Does the work in a thread, unless there are too many.
    fn apart(&self, work: impl FnOnce() + Send + 'static) {
        if self.busy.fetch_add(1, Ordering::AcqRel) >= AT_ONCE {
            self.busy.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let busy = Arc::clone(&self.busy);
        let work = move || {
            work();
            busy.fetch_sub(1, Ordering::AcqRel);
        };
        if thread::Builder::new().name("name".into()).stack_size(STACK).spawn(work).is_err() {
            self.busy.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Answers the questions of one connection, each with its length before it.
fn conversation(mut stream: TcpStream, names: &dyn Names, ended: BorrowedFd<'_>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    loop {
        let mut polled = [PollFd::from_borrowed_fd(ended, PollFlags::IN), PollFd::new(&stream, PollFlags::IN)];
        wait_for(&mut polled, Some(IDLE))?;
        if !polled[0].revents().is_empty() || polled[1].revents().is_empty() {
            return Ok(());
        }
        let bytes = receive(&mut stream)?;
        let Some(question) = Question::read(&bytes) else { return Ok(()) };
        let answer = match question.answer(names) {
            Some(answer) => answer.to_vec().map_err(io::Error::other)?,
            None => passed_on(&question, &names.servers(), |server| ask_stream(&bytes, server)),
        };
        send(&mut stream, &answer)?;
    }
}

fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn send(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat())
}

/// A message that asks something, or is nonsense from somebody who waits for an answer.
struct Question {
    message: Message,
    nonsense: bool,
}

impl Question {
    /// `None` for what is no question at all: it gets no answer.
    fn read(bytes: &[u8]) -> Option<Self> {
        const RESPONSE: u8 = 0x80;
        let id = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
        if bytes.get(2)? & RESPONSE != 0 {
            return None;
        }
        Some(match Message::from_vec(bytes) {
            Ok(message) if message.queries.len() == 1 => Self { message, nonsense: false },
            _ => {
                Self { message: Message::new(id, hickory_proto::op::MessageType::Query, OpCode::Query), nonsense: true }
            }
        })
    }

    /// How long an answer by datagram may be.
    fn limit(&self) -> usize {
        self.message.edns.as_ref().map_or(LONGEST_DATAGRAM, |_| usize::from(self.message.max_payload()))
    }

    fn respond(&self, code: ResponseCode) -> Message {
        let asked = &self.message.metadata;
        let mut answer = Message::error_msg(asked.id, asked.op_code, code);
        answer.metadata.recursion_desired = asked.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.queries.clone_from(&self.message.queries);
        answer
    }

    /// The answer, if the neighbours' names have it; `None` for what others must be asked.
    fn answer(&self, names: &dyn Names) -> Option<Message> {
        if self.nonsense {
            return Some(self.respond(ResponseCode::FormErr));
        }
        if self.message.metadata.op_code != OpCode::Query {
            return Some(self.respond(ResponseCode::NotImp));
        }
        let query = self.message.queries.first()?;
        if query.query_class() != DNSClass::IN {
            return None;
        }
        let records = match query.query_type() {
            kind @ (RecordType::A | RecordType::AAAA) => {
                let text = query.name().to_ascii().to_ascii_lowercase();
                let addresses = names.addresses(text.trim_end_matches('.'))?;
                addresses.into_iter().filter_map(|address| data_of(address, kind)).collect()
            }
            RecordType::PTR => {
                let net = query.name().parse_arpa_name().ok()?;
                if net.prefix_len() != net.max_prefix_len() {
                    return None;
                }
                let name = Name::from_ascii(format!("{}.", names.name_of(net.addr())?)).ok()?;
                vec![RData::PTR(PTR(name))]
            }
            _ => return None,
        };
        let mut answer = self.respond(ResponseCode::NoError);
        for data in records {
            answer.add_answer(Record::from_rdata(query.name().clone(), TIME_TO_LIVE, data));
        }
        Some(answer)
    }
}

fn data_of(address: IpAddr, kind: RecordType) -> Option<RData> {
    match (address, kind) {
        (IpAddr::V4(address), RecordType::A) => Some(RData::A(A(address))),
        (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(AAAA(address))),
        _ => None,
    }
}

/// The message as bytes; when they are too many, without its records and marked so, for the asker to ask by a connection.
fn fitting(message: Message, limit: usize) -> Vec<u8> {
    let bytes = message.to_vec().unwrap_or_default();
    if bytes.len() <= limit.max(LONGEST_DATAGRAM) { bytes } else { message.truncate().to_vec().unwrap_or_default() }
}

/// What the first server says that can answer.
fn passed_on(question: &Question, servers: &[IpAddr], ask: impl Fn(SocketAddr) -> io::Result<Vec<u8>>) -> Vec<u8> {
    let id = question.message.metadata.id.to_be_bytes();
    for server in servers {
        match ask(SocketAddr::new(*server, PORT)) {
            Ok(answer) if answer.get(..2) == Some(&id) && !has_failed(&answer) => return answer,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, %server, "a name server does not answer"),
        }
    }
    question.respond(ResponseCode::ServFail).to_vec().unwrap_or_default()
}

/// The server could not, or would not, find out.
fn has_failed(answer: &[u8]) -> bool {
    let code = answer.get(3).map_or(0, |b| b & 0xf);
    [ResponseCode::ServFail.low(), ResponseCode::Refused.low()].contains(&code)
}

fn ask_datagram(bytes: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(bytes)?;
    let mut buffer = vec![0; 64 * 1024];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn ask_stream(bytes: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    send(&mut stream, bytes)?;
    receive(&mut stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `web` has two addresses, `six` one of the newer kind; nobody else is known.
    struct Two;

    impl Names for Two {
        fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
            match name {
                "web" => Some(vec![IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 0, 3])]),
                "many" => Some((0..100).map(|n| IpAddr::from([10, 0, 1, n])).collect()),
                "six" => Some(vec![IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2])]),
                _ => None,
            }
        }

        fn name_of(&self, address: IpAddr) -> Option<String> {
            (address == IpAddr::from([10, 0, 0, 2])).then(|| "web.net".to_owned())
        }

        fn servers(&self) -> Vec<IpAddr> {
            Vec::new()
        }
    }

    fn asked(name: &str, kind: RecordType) -> Option<Message> {
        let mut message = Message::query();
        message.add_query(hickory_proto::op::Query::query(Name::from_ascii(name).expect("a name"), kind));
        let bytes = message.to_vec().expect("bytes");
        let answer = Question::read(&bytes).expect("a question").answer(&Two)?;
        assert_eq!(answer.metadata.id, message.metadata.id);
        Some(answer)
    }

    fn texts(message: &Message) -> Vec<String> {
        message.answers.iter().map(|record| record.data.to_string()).collect()
    }

    #[test]
    fn neighbours_are_known_in_any_case_and_others_are_passed_on() {
        assert_eq!(texts(&asked("WEB.", RecordType::A).expect("known")), ["10.0.0.2", "10.0.0.3"]);
        assert_eq!(texts(&asked("six.", RecordType::AAAA).expect("known")), ["fd00::2"]);
        assert_eq!(texts(&asked("2.0.0.10.in-addr.arpa.", RecordType::PTR).expect("known")), ["web.net."]);
        for (name, kind) in
            [("other.", RecordType::A), ("web.", RecordType::MX), ("9.0.0.10.in-addr.arpa.", RecordType::PTR)]
        {
            assert!(asked(name, kind).is_none(), "{name} {kind}");
        }
    }

    #[test]
    fn a_name_without_an_address_of_the_kind_is_no_error() {
        let answer = asked("web.", RecordType::AAAA).expect("known");
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let answer = asked("many.", RecordType::A).expect("known");
        let cut = Message::from_vec(&fitting(answer.clone(), 512)).expect("a message");
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        assert_eq!(Message::from_vec(&fitting(answer, 4096)).expect("a message").answers.len(), 100);
    }

    #[test]
    fn nonsense_gets_an_error_and_answers_get_nothing() {
        for junk in [&[][..], &[1], &[1, 2, 0x80, 0, 0, 1]] {
            assert!(Question::read(junk).is_none(), "{junk:?}");
        }
        let answer = Question::read(&[1, 2, 0, 0, 0, 9, 0, 0]).expect("a question").answer(&Two).expect("an answer");
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x0102, ResponseCode::FormErr));
        let nobody = passed_on(&Question::read(&[1, 2, 0, 0]).expect("a question"), &[], |_| Ok(Vec::new()));
        assert_eq!(Message::from_vec(&nobody).expect("a message").metadata.response_code, ResponseCode::ServFail);
    }
}
