//! Requests that are lists: an item takes two bytes on the wire at least, and hundreds in memory. So they are counted
//! before the first one is made.
//!
//! What else repeats in a request is made of texts and JSON values, which take some twenty times their bytes at most.

use bytes::Buf as _;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};

use super::status::status;
use crate::job::Error;

/// A repeated field of a request.
#[derive(Clone, Copy)]
pub struct List {
    pub field: &'static str,
    pub number: u32,
    /// Items that it may have.
    pub limit: usize,
}

impl List {
    pub fn requests(limit: usize) -> Self {
        Self { field: "requests", number: 1, limit }
    }

    pub fn progress(limit: usize) -> Self {
        Self { field: "progress", number: 4, limit }
    }

    /// Refuses an encoded request whose list is too long.
    pub fn check(self, request: &[u8]) -> Result<(), Error> {
        // A tag and a length.
        const LEAST: usize = 2;
        let Self { field, number, limit } = self;
        if request.len() / LEAST <= limit {
            return Ok(());
        }
        match count(request, number) {
            size if size <= limit => Ok(()),
            size => Err(Error::TooLarge { field: field.into(), limit: limit as u64, size: size as u64 }),
        }
    }
}

/// How often a field occurs, up to where the message is none: the decoder gives up there as well.
fn count(mut message: &[u8], number: u32) -> usize {
    let mut found = 0;
    while let Ok((tag, wire_type)) = decode_key(&mut message) {
        found += usize::from(tag == number);
        if skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    found
}

/// Decodes what another one decodes, unless the list is too long.
#[derive(Clone, Copy)]
pub struct Counted<T> {
    pub list: List,
    pub inner: T,
}

impl<C: Codec> Codec for Counted<C> {
    type Encode = C::Encode;
    type Decode = C::Decode;
    type Encoder = C::Encoder;
    type Decoder = Counted<C::Decoder>;

    fn encoder(&mut self) -> C::Encoder {
        self.inner.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Counted { list: self.list, inner: self.inner.decoder() }
    }
}

impl<D: Decoder<Error = Status>> Decoder for Counted<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<D::Item>, Status> {
        // The library has a message in one piece.
        debug_assert_eq!(buffer.chunk().len(), buffer.remaining());
        self.list.check(buffer.chunk()).map_err(status)?;
        self.inner.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.inner.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::{BatchSubmitRequest, JobSpec, LeaseProgress, RenewLeasesRequest, SubmitRequest};

    #[test]
    fn a_list_is_refused_only_if_it_is_too_long() {
        for size in 0..10 {
            let spec = Some(JobSpec { kind: "echo".into(), ..Default::default() });
            let requests = vec![SubmitRequest { spec, ..Default::default() }; size];
            let submits = BatchSubmitRequest { requests }.encode_to_vec();
            let renewal = RenewLeasesRequest {
                worker_id: "me".into(),
                lease_ids: vec!["lease".into(); 20],
                progress: vec![LeaseProgress::default(); size],
                ..Default::default()
            };
            let renewal = renewal.encode_to_vec();
            for limit in 0..10 {
                let refusal = |field: &str| match size > limit {
                    true => {
                        Err(Error::TooLarge { field: field.into(), limit: limit as u64, size: size as u64 })
                    }
                    false => Ok(()),
                };
                assert_eq!(List::requests(limit).check(&submits), refusal("requests"));
                assert_eq!(List::progress(limit).check(&renewal), refusal("progress"));
            }
        }
    }

    #[test]
    fn what_is_no_message_is_counted_up_to_there() {
        for end in [&b""[..], b"\x0a", b"\x0a\x05", b"\xff\xff\xff\xff\xff\xff", b"\x0f\x0a\0", b"\0\x0a\0"] {
            assert_eq!(
                count(&[&b"\x0a\0\x12\0\x0a\0"[..], end].concat(), 1) - usize::from(end.starts_with(b"\x0a")),
                2
            );
        }
    }

    #[test]
    fn what_else_repeats_takes_little() {
        assert!(size_of::<String>() <= 32 && size_of::<prost_types::Value>() <= 32);
    }
}
