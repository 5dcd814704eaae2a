//! A durable job service over gRPC in one binary: submit, run, fetch and watch.
//!
//! The map of the crate, from the edge inwards:
//!
//! - [`cli`]: the `jobwire` program. [`client`]: what it talks to a server with, for other programs too. [`bench`]: load
//!   for a server.
//! - [`server`]: the services on one port. Only it and the client know gRPC.
//! - [`engine`]: batches calls, runs the timers, lets watchers follow the feed.
//! - [`worker`]: runs attempts. [`handlers`]: the built-in kinds, and the register of a program's own.
//! - [`store`]: keeps jobs and the feed of outcomes. [`store::sqlite`] is the embedded one,
//!   [`store::postgres`] the one that many servers share.
//! - [`job`]: the vocabulary and the rules, pure. [`config`]: every setting, with default and unit.
//!
//! A program that brings its own handlers starts with [`Server::builder`].

pub mod bench;
pub mod cli;
pub mod client;
pub mod config;
pub mod engine;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod handlers;
pub mod job;
#[cfg(test)]
mod reached;
pub mod server;
pub mod store;
pub mod worker;

pub use job::JobError;
pub use server::{Builder, ServeError, Server, stop_signal};
pub use worker::{Context, Handler};

/// The generated code of the contract, `proto/jobwire/v1`.
#[allow(missing_docs)]
pub mod proto {
    tonic::include_proto!("jobwire.v1");
    /// Every file of the contract, encoded, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/jobwire.v1.bin"));
}

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
