//! A push whose program is killed in the middle goes on with the next one, and never from bytes that are not its own.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::scene::Scene;
use crate::serve::Serving;

/// Bytes of the file in the layer; noise, so that no compression makes them fewer.
const SIZE: usize = 24 << 20;
/// What the first push may send.
const ENOUGH: u64 = 10 << 20;

/// Stands between a push and a registry, counts what is sent, and cuts.
struct Relay {
    address: String,
    sent: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
    /// Told when the limit was reached and the registry has dealt with what it got.
    cut: Receiver<()>,
}

impl Relay {
    /// With `garble`, a byte of what is sent before the cut becomes another one.
    fn start(registry: &str, garble: bool) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let (sent, limit) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(ENOUGH)));
        let (told, cut) = channel();
        let garble = Arc::new(Mutex::new(garble));
        let (to, counted, most) = (registry.to_owned(), sent.clone(), limit.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                let server = TcpStream::connect(&to).expect("the registry");
                let way =
                    Way { sent: counted.clone(), limit: most.clone(), garble: garble.clone(), told: told.clone() };
                std::thread::spawn(move || way.carry(client, server));
            }
        });
        Relay { address, sent, limit, cut }
    }
}

/// One connection.
struct Way {
    sent: Arc<AtomicU64>,
    limit: Arc<AtomicU64>,
    garble: Arc<Mutex<bool>>,
    told: Sender<()>,
}

impl Way {
    fn carry(self, mut client: TcpStream, mut server: TcpStream) {
        let (mut answers, mut asker) = (server.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
        let back = std::thread::spawn(move || {
            // Either end may go away.
            drop(std::io::copy(&mut answers, &mut asker));
            drop(asker.shutdown(Shutdown::Write));
        });
        let mut buffer = vec![0; 64 << 10];
        loop {
            let len = match client.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(len) => len,
            };
            let sent = self.sent.fetch_add(len as u64, Ordering::SeqCst) + len as u64;
            if sent > self.limit.load(Ordering::SeqCst) {
                drop(server.shutdown(Shutdown::Write));
                back.join().expect("what goes back");
                let _ = self.told.send(());
                return;
            }
            let mut garble = self.garble.lock().expect("no panic");
            if *garble
                && sent > ENOUGH / 2
                && let Some(at) = within_noise(&buffer[..len])
            {
                buffer[at] ^= 1;
                *garble = false;
            }
            if server.write_all(&buffer[..len]).is_err() {
                break;
            }
        }
        drop(server.shutdown(Shutdown::Write));
        drop(back.join());
    }
}

/// A place in a piece of a body that is no frame of it.
fn within_noise(piece: &[u8]) -> Option<usize> {
    let frame = |byte: &u8| *byte == b'\r' || *byte == b'\n';
    piece.windows(64).position(|around| !around.iter().any(frame)).map(|at| at + 32)
}

fn noise() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).take(SIZE / 8).flatten().collect()
}

/// Pushes until the program is killed in the middle of the layer, then again; gives how much the second one sent.
fn killed_and_again(garble: bool) -> u64 {
    let (scene, team) = (Scene::new(), Scene::new());
    let registry = Serving::start(&team, &[]);
    let served = registry.name("app:v1");
    let relay = Relay::start(served.split('/').next().expect("an address"), garble);
    let name = format!("{}/app:v1", relay.address);
    scene.write("noise", noise());
    scene.write("Dockerfile", "FROM scratch\nCOPY noise /noise\n");
    scene.rb(&["build", "-q", "-t", &name, "."]).ok();

    let mut push = scene.command(&["push", "-q", &name]).spawn().expect("it starts");
    relay.cut.recv().expect("the layer is on its way");
    push.kill().expect("SIGKILL");
    push.wait().expect("an end");
    assert_eq!(relay.sent.load(Ordering::SeqCst) / (1 << 20), ENOUGH >> 20, "it was killed in the middle");

    relay.limit.store(u64::MAX, Ordering::SeqCst);
    relay.sent.store(0, Ordering::SeqCst);
    scene.rb(&["push", "-q", &name]).ok();
    let sent = relay.sent.load(Ordering::SeqCst);
    let id = scene.inspect(&name)["Id"].clone();
    let other = Scene::new();
    other.rb(&["pull", "-q", &name]).ok();
    assert_eq!(other.inspect(&name)["Id"], id, "what arrived is the image");
    team.rb(&["system", "check"]).ok();
    sent
}

#[test]
fn a_push_that_was_killed_goes_on_where_the_registry_stands() {
    let sent = killed_and_again(false);
    assert!(sent < SIZE as u64 - ENOUGH / 2, "{sent} bytes were sent again");
}

/// Bytes that the registry has and that are not those of the layer now: the upload starts anew, and is right.
#[test]
fn a_push_does_not_go_on_from_other_bytes() {
    let sent = killed_and_again(true);
    assert!(sent > SIZE as u64, "{sent} bytes cannot be the whole layer");
}
