use bytes::Bytes;

/// A document that goes into a job or comes out of it: exact bytes and a content type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    /// A media type, or empty if there is no document at all.
    pub content_type: String,
    /// Bytes of the stored body.
    pub size: usize,
    /// None when the reader did not ask for it.
    pub body: Option<Bytes>,
}

impl Payload {
    /// JSON text, compact or not.
    pub const JSON: &'static str = "application/json";
    /// UTF-8.
    pub const TEXT: &'static str = "text/plain";
    /// Anything.
    pub const BYTES: &'static str = "application/octet-stream";

    /// A document with its body.
    pub fn new(content_type: impl Into<String>, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { content_type: content_type.into(), size: body.len(), body: Some(body) }
    }

    /// No document: what a job without a payload carries.
    pub fn none() -> Self {
        Self { body: Some(Bytes::new()), ..Self::default() }
    }

    /// Whether there is no document.
    pub fn is_none(&self) -> bool {
        self.size == 0 && self.content_type.is_empty()
    }

    /// The same document without its body.
    pub fn omit_body(&self) -> Self {
        Self { body: None, ..self.clone() }
    }

    /// The body; empty if it was omitted.
    pub fn bytes(&self) -> Bytes {
        self.body.clone().unwrap_or_default()
    }
}
