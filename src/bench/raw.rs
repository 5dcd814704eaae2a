//! A codec that leaves messages as they are.

use bytes::{Buf as _, BufMut as _, Bytes};
use tonic::{
    Status,
    codec::{self, DecodeBuf, EncodeBuf},
};

/// Field 2 of WatchResultsResponse, `finished`, and field 1, the cursor: key and wire type (protobuf's encoding).
const CURSOR: u8 = 1 << 3 | 2;
const FINISHED: u8 = 2 << 3 | 2;

/// Whether a WatchResultsResponse tells an outcome. Reads no further than it must: the cursor is short and first.
pub fn is_outcome(message: &[u8]) -> bool {
    match message {
        [CURSOR, length, rest @ ..] => rest.get(usize::from(*length)) == Some(&FINISHED),
        _ => false,
    }
}

#[derive(Clone, Copy, Default)]
pub struct Codec;

impl codec::Codec for Codec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl codec::Encoder for Codec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl codec::Decoder for Codec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let size = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(size)))
    }
}
