//! Messages as protobuf JSON, in the spelling of grpcurl: camelCase, defaults left out.

use std::{
    io::{self, Write},
    sync::LazyLock,
};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

use super::Error;
use crate::proto;

/// The contract at run time. None cannot happen: the build wrote what this reads.
static CONTRACT: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).ok());

/// A message that knows its name in the contract.
pub(super) trait Named: Message {
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident)*) => {$(
        impl Named for proto::$message {
            const NAME: &'static str = concat!("jobwire.v1.", stringify!($message));
        }
    )*};
}

named! {
    GetResultResponse GetServerInfoResponse Job ListJobsResponse SubmitResponse WatchResultsResponse
}

/// Over several lines.
pub(super) fn pretty<M: Named>(message: &M) -> Result<String, Error> {
    write(message, PrettyFormatter::new())
}

/// In one line.
pub(super) fn compact<M: Named>(message: &M) -> Result<String, Error> {
    write(message, CompactFormatter)
}

fn write<M: Named>(message: &M, formatter: impl Formatter) -> Result<String, Error> {
    let fail = |error: &dyn std::fmt::Display| Error::Print(error.to_string());
    let descriptor = CONTRACT.as_ref().and_then(|contract| contract.get_message_by_name(M::NAME));
    let descriptor = descriptor.ok_or_else(|| fail(&format_args!("{} is not in the contract", M::NAME)))?;
    let message =
        DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|e| fail(&e))?;
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, WholeNumbers(formatter));
    message.serialize_with_options(&mut serializer, &SerializeOptions::new()).map_err(|e| fail(&e))?;
    String::from_utf8(text).map_err(|e| fail(&e))
}

/// Writes doubles without a fraction as whole numbers, since JSON documents travel as doubles.
struct WholeNumbers<F>(F);

macro_rules! forward {
    ($($method:ident($($argument:ident: $type:ty)?))*) => {$(
        fn $method<W: ?Sized + Write>(&mut self, writer: &mut W $(, $argument: $type)?) -> io::Result<()> {
            self.0.$method(writer $(, $argument)?)
        }
    )*};
}

impl<F: Formatter> Formatter for WholeNumbers<F> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        /// Every whole number up to here is a double.
        const EXACT: f64 = (1_u64 << 53) as f64;
        if value.fract() == 0.0 && value.abs() <= EXACT {
            return self.0.write_i64(writer, value as i64);
        }
        self.0.write_f64(writer, value)
    }

    forward! {
        begin_array() end_array() begin_array_value(first: bool) end_array_value()
        begin_object() end_object() begin_object_key(first: bool) begin_object_value() end_object_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Job, JobSpec, Payload, payload::Body, watch_results_response::Event};
    use prost_types::{Duration, Struct, Timestamp, Value, value::Kind};

    fn payload(body: Body) -> Option<Payload> {
        Some(Payload { body: Some(body), size_bytes: 1 << 40, ..Payload::default() })
    }

    #[test]
    fn spells_messages_as_grpcurl_does() {
        let greeting = Value { kind: Some(Kind::StringValue("world".into())) };
        let number = Value { kind: Some(Kind::NumberValue(1.0)) };
        let half = Value { kind: Some(Kind::NumberValue(0.5)) };
        let fields = [("hello".into(), greeting), ("n".into(), number), ("x".into(), half)].into();
        let body = Body::Json(Value { kind: Some(Kind::StructValue(Struct { fields })) });
        let spec = JobSpec {
            kind: "echo".into(),
            payload: payload(body),
            labels: [("tenant".into(), "acme".into())].into(),
            attempt_timeout: Some(Duration { seconds: 1, nanos: 500_000_000 }),
            ..JobSpec::default()
        };
        let job = Job {
            job_id: "a".into(),
            spec: Some(spec),
            state: 5,
            output: payload(Body::Data(vec![0xff].into())),
            submit_time: Some(Timestamp { seconds: 0, nanos: 0 }),
            ..Job::default()
        };
        assert_eq!(
            compact(&job).unwrap(),
            r#"{"jobId":"a","spec":{"kind":"echo","payload":{"json":{"hello":"world","n":1,"x":0.5},"#
                .to_owned()
                + r#""sizeBytes":"1099511627776"},"labels":{"tenant":"acme"},"attemptTimeout":"1.500s"},"#
                + r#""state":"STATE_SUCCEEDED","output":{"data":"/w==","sizeBytes":"1099511627776"},"#
                + r#""submitTime":"1970-01-01T00:00:00Z"}"#
        );
        assert!(pretty(&job).unwrap().starts_with("{\n  \"jobId\": \"a\","));
    }

    #[test]
    fn every_named_message_is_in_the_contract() {
        compact(&proto::GetResultResponse::default()).unwrap();
        compact(&proto::GetServerInfoResponse::default()).unwrap();
        compact(&proto::ListJobsResponse::default()).unwrap();
        compact(&proto::SubmitResponse::default()).unwrap();
        let event = Event::Finished(Box::default());
        let message = proto::WatchResultsResponse { cursor: "c".into(), event: Some(event) };
        assert_eq!(compact(&message).unwrap(), r#"{"cursor":"c","finished":{}}"#);
    }

    #[test]
    fn unknown_states_stay_numbers() {
        assert_eq!(compact(&Job { state: 99, ..Job::default() }).unwrap(), r#"{"state":99}"#);
    }
}
