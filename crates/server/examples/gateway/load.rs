//! Load over keep-alive connections from one thread that spends little itself: one write, one read and a share of a
//! poll for each request. Not here: what is asked, and of whom.
//!
//! Closed (`rate` 0): each connection asks again as soon as it was answered. Open: requests fall due at an even rate,
//! and latencies count from then, so that a server that falls behind is not spared the wait.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Outcome;

/// More than any answer here.
const BUFFER_BYTES: usize = 16 << 10;
/// A server that says nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(20);

/// What came of it.
pub(crate) struct Loaded {
    /// Sorted.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) elapsed: Duration,
}

impl Loaded {
    pub(crate) fn at_ms(&self, part: f64) -> f64 {
        let index = (self.latencies.len() as f64 * part) as usize;
        let latency = self.latencies.get(index.min(self.latencies.len().saturating_sub(1)));
        latency.map_or(0.0, |d| d.as_secs_f64() * 1000.0)
    }

    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }
}

struct Connection {
    socket: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
    /// Since when a request is under way.
    asked: Option<Instant>,
}

impl Connection {
    fn ask(&mut self, request: &[u8], since: Instant) -> Outcome<()> {
        // A request is far smaller than a socket's empty buffer.
        if self.socket.write(request)? != request.len() {
            return Err("a request did not fit".into());
        }
        self.asked = Some(since);
        self.filled = 0;
        Ok(())
    }

    /// Whether the answer is complete.
    fn read(&mut self) -> Outcome<bool> {
        match self.socket.read(&mut self.buffer[self.filled..]) {
            Ok(0) => Err("the server closed a connection".into()),
            Ok(read) => {
                self.filled += read;
                self.is_whole()
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn is_whole(&self) -> Outcome<bool> {
        let bytes = &self.buffer[..self.filled];
        let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { return Ok(false) };
        let text = std::str::from_utf8(&bytes[..head])?;
        if !text.starts_with("HTTP/1.1 200") {
            return Err(format!("the server answers {}", String::from_utf8_lossy(bytes)).into());
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.ok_or("an answer without a length")?.parse()?;
        Ok(self.filled >= head + 4 + length)
    }
}

/// Asks for `seconds`, then waits for what is under way.
pub(crate) fn run(
    address: SocketAddr,
    request: &[u8],
    seconds: f64,
    connections: usize,
    rate: f64,
) -> Outcome<Loaded> {
    let mut poll = Poll::new()?;
    let mut all = Vec::with_capacity(connections);
    for index in 0..connections {
        let socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        poll.registry().register(&mut socket, Token(index), Interest::READABLE)?;
        all.push(Connection { socket, buffer: vec![0; BUFFER_BYTES], filled: 0, asked: None });
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut idle: VecDeque<usize> = (0..connections).collect();
    let mut events = Events::with_capacity(connections);
    let mut sent: u64 = 0;
    loop {
        let now = Instant::now();
        let mut pause = SILENCE;
        loop {
            if now >= end {
                break;
            }
            let due = match rate {
                0.0 => now,
                rate => start + Duration::from_secs_f64(sent as f64 / rate),
            };
            if due > now {
                pause = due - now;
                break;
            }
            let Some(index) = idle.pop_front() else { break };
            all[index].ask(request, due)?;
            sent += 1;
        }
        if now >= end && idle.len() == connections {
            break;
        }
        poll.poll(&mut events, Some(pause))?;
        if events.is_empty() && pause == SILENCE {
            return Err("the server says nothing any more".into());
        }
        for event in &events {
            let index = event.token().0;
            let connection = &mut all[index];
            if connection.read()? {
                latencies.extend(connection.asked.take().map(|asked| asked.elapsed()));
                idle.push_back(index);
            }
        }
    }
    latencies.sort_unstable();
    Ok(Loaded { latencies, elapsed: start.elapsed() })
}
