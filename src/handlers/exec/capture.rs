use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// The beginning of what a process writes.
#[derive(Debug)]
pub struct Capture {
    pub bytes: Vec<u8>,
    /// There was more.
    pub truncated: bool,
    limit: usize,
}

impl Capture {
    /// Keeps the first `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), truncated: false, limit }
    }

    /// Reads to the end, also beyond the limit: a full pipe would stop the process.
    pub async fn fill(&mut self, reader: Option<impl AsyncRead + Unpin>) {
        let Some(mut reader) = reader else { return };
        let mut chunk = vec![0; CHUNK];
        // An error of a pipe says no more than its end does.
        while let Ok(read @ 1..) = reader.read(&mut chunk).await {
            let kept = read.min(self.limit - self.bytes.len());
            self.bytes.extend_from_slice(&chunk[..kept]);
            self.truncated |= kept < read;
        }
    }

    /// The first `limit` bytes of these.
    pub fn head(&self, limit: usize) -> Self {
        let bytes = &self.bytes[..self.bytes.len().min(limit)];
        Self { bytes: bytes.to_vec(), truncated: self.truncated || bytes.len() < self.bytes.len(), limit }
    }
}
