pub mod config;
pub mod engine;
pub mod handlers;
pub mod job;
pub mod store;
pub mod worker;

/// The generated code of the contract, `proto/jobwire/v1`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("jobwire.v1");
    /// Every file of the contract, encoded, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/jobwire.v1.bin"));
}
