//! A wire to the database that can be cut: a loopback port in front of the server's Unix socket.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

type Ends = Arc<Mutex<Vec<(TcpStream, UnixStream)>>>;

pub(crate) struct Proxy {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    ends: Ends,
}

impl Proxy {
    pub(crate) fn start(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (is_cut, ends): (Arc<AtomicBool>, Ends) = Default::default();
        let (cut, open) = (is_cut.clone(), ends.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(server) = UnixStream::connect(&socket) else { continue };
                let pair = (client.try_clone().unwrap(), server.try_clone().unwrap());
                open.lock().unwrap().push(pair);
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pump(from, to));
                std::thread::spawn(move || pump(server, client));
            }
        });
        Self { address, is_cut, ends }
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://mintage@{}/{database}", self.address)
    }

    /// Closes every connection and takes no new one.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for (client, server) in self.ends.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn pump(mut from: impl Read, mut to: impl Write) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}
