//! HTTP/2 frames by hand (RFC 9113), for what a well-kept client would never send.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{PATIENCE, Server};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const ACK: u8 = 1;

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The header block of a gRPC call, without compression (RFC 7541, 6.2.2).
pub fn headers(path: &str) -> Vec<u8> {
    // :method POST, :scheme http
    let mut block = vec![0x83, 0x86];
    for (index, value) in [(4, path), (1, "localhost"), (31, "application/grpc")] {
        literal(&mut block, index, value);
    }
    block.extend(b"\x00\x02te\x08trailers");
    block
}

fn literal(block: &mut Vec<u8>, index: u8, value: &str) {
    match index {
        ..15 => block.push(index),
        // The index goes on in a second byte.
        _ => block.extend([0x0f, index - 15]),
    }
    block.push(u8::try_from(value.len()).ok().filter(|&len| len < 127).expect("a short value"));
    block.extend(value.as_bytes());
}

/// A connection that has said its preface.
pub struct Connection(pub TcpStream);

impl Connection {
    pub async fn open(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.address()).await.expect("the server accepts connections");
        stream.write_all(PREFACE).await.expect("the preface is sent");
        let mut connection = Self(stream);
        connection.send(&frame(SETTINGS, 0, 0, &[])).await;
        connection
    }

    /// The server may have hung up already.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; None at the end of the connection.
    pub async fn frame(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        timeout(PATIENCE, read).await.expect("a frame, or the end")
    }

    /// The next frame of a kind; None at the end of the connection.
    pub async fn next(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.frame().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}
